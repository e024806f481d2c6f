"""Trials on a GPU that they cannot fill: each step is a CUDA graph, and several processes share a plan.

    for i in 1 2 3 4 5 6; do python notebooks/grids/together.py PLAN.json --out FOLDER & done; wait

A step on views of 32 pixels is some 500 kernels of microseconds, and launching them takes longer than
they do. Here a step is captured once and replayed, and the views of many steps are drawn in one pass of
the engine. What is computed is what `pretrain` computes; the draws of the views fall in another order. A
trial belongs to the process that takes it first. A plan is that of trials.py, with one more key: "judge":
"test" trains on all training images and judges by `evaluate.report` (nothing may be chosen by it). Lines
go to FOLDER/trials.jsonl; minutes there say nothing about speed.

(The trials of 26 November 2026 ran in twelve threads of one process, then in six processes of two
threads. Two threads of one process cost two captures in 58; so a process has one now.)
"""

import argparse
import datetime
import hashlib
import json
import time
import traceback
from pathlib import Path

import torch
import trials as single

from ssl_lessons import evaluate, images
from ssl_lessons.optim import build_optimizer, learning_rate, peak_rate
from ssl_lessons.records import device_name

CUDA = torch.device("cuda")
DEFAULTS = {**single.DEFAULTS, "judge": "held-out"}
PIXELS = 8192 * 32 * 32  # of the views that are drawn in one pass


def build(trial: dict, classes: int):
    """The trial's method: one of the five, or the supervised baseline."""
    if trial["fields"].get("direct"):
        raise ValueError("DirectPred branches in Python, which a graph does not replay; use trials.py")
    if trial["method"] != "supervised":
        return single.build(trial)
    torch.manual_seed(trial["seed"])
    network = single.network(trial)
    return evaluate.Supervised(network, classes, trial["view"], **trial["fields"])


def accuracy(encoder, train, test, view: int) -> float:
    """kNN accuracy as `evaluate.knn` has it, features and neighbours on the GPU."""
    with torch.autocast(CUDA.type, dtype=torch.bfloat16):
        x, y = (evaluate.features(encoder, store, view, CUDA.type, batch=1024) for store in (train, test))
    x, y = (torch.nn.functional.normalize(features.to(CUDA), dim=1) for features in (x, y))
    similarity, nearest = (y @ x.T).topk(evaluate.K, dim=1)
    weight = ((similarity - similarity[:, :1]) / evaluate.T).exp()
    votes = torch.zeros(len(y), len(train.classes), device=CUDA)
    votes.scatter_add_(1, train.labels.to(CUDA)[nearest], weight)
    return (votes.argmax(dim=1).cpu() == test.labels).double().mean().item()


class Captured:
    """One optimiser step of a method as a CUDA graph, in bf16: `step` copies the views in and replays it."""

    def __init__(self, method, optimizer, batch: int):
        self.method, self.optimizer = method, optimizer
        shape = (batch, 3, method.image_size, method.image_size)
        self.views = [
            torch.randn(shape, device=CUDA).to(memory_format=torch.channels_last) for _ in method.policies
        ]
        self.labels = torch.zeros(batch, dtype=torch.long, device=CUDA)
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), device=CUDA)  # a graph reads it anew in each replay
            if "capturable" in group:
                group["capturable"] = True
        before = {name: value.clone() for name, value in method.state_dict().items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # with a rate of 0: the optimiser makes its state, cuDNN chooses its kernels
                optimizer.zero_grad(set_to_none=True)
                self._once()
        torch.cuda.current_stream().wait_stream(side)
        optimizer.zero_grad(set_to_none=True)
        if hasattr(method, "_pending"):
            method._pending = []  # MoCo's keys of the passes above
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._once()
        self.pending = list(getattr(method, "_pending", []))  # those that after_step enqueues
        method.load_state_dict(before)
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()

    def _once(self) -> None:
        extra = {"labels": self.labels} if self.method.supervised else {}
        with torch.autocast(CUDA.type, dtype=torch.bfloat16, cache_enabled=False):
            self.loss, self.watch = self.method(self.views, **extra)
        self.loss.backward()
        self.optimizer.step()

    def step(self, views, labels, rates: list[float], progress: float) -> None:
        for mine, view in zip(self.views, views, strict=True):
            mine.copy_(view)
        if labels is not None:
            self.labels.copy_(labels)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"].fill_(rate)
        self.graph.replay()
        if self.pending:
            self.method._pending = list(self.pending)
        self.method.after_step(progress)


def train_epoch(method, captured, store, generator, epoch: int, epochs: int, batch: int) -> float:
    """One pass over the images, as `pretrain` makes it; the mean loss."""
    recipe, steps = method.recipe, len(store) // batch
    order = torch.randperm(len(store), generator=generator)[: steps * batch]
    labels = store.labels[order].to(CUDA) if method.supervised else None
    part = max(1, PIXELS // (method.image_size**2 * len(method.policies) * batch))  # steps
    total = torch.zeros((), device=CUDA)
    for step in range(steps):
        if step % part == 0:
            rows = order[step * batch : (step + part) * batch]
            views = method.augment(store.batch(rows), generator)
        moment = epoch + step / steps
        rate, peak = learning_rate(recipe, batch, moment, epochs), peak_rate(recipe, batch)
        groups = captured.optimizer.param_groups
        rates = [group["scale"] * (peak if group["constant"] else rate) for group in groups]
        first = step % part * batch
        seen = [view[first : first + batch] for view in views]
        some = None if labels is None else labels[step * batch : (step + 1) * batch]
        captured.step(seen, some, rates, (moment + 1 / steps) / epochs)
        total += captured.loss.detach()
    return float(total) / steps


def run(trial: dict, train, test) -> dict:
    """Train and judge one trial: its line for trials.jsonl."""
    view, epochs, batch = trial["view"], trial["epochs"], trial["batch_size"]
    started = time.perf_counter()
    method = build(trial, len(train.classes)).to(CUDA, memory_format=torch.channels_last).train()
    method.run_steps = epochs * (len(train) // batch)
    line = {**trial, "date": datetime.date.today().isoformat(), "device": device_name(CUDA), "loop": "graphs"}
    line |= {"torch": torch.__version__.split("+")[0], "train": len(train), "held_out": len(test)}
    line |= {
        "precision": "bf16",
        "knn_random": accuracy(single.judged_network(method, trial), train, test, view),
    }
    optimizer = build_optimizer(method)
    captured = Captured(method, optimizer, batch)
    generator = torch.Generator().manual_seed(trial["seed"])
    history = []
    for epoch in range(epochs):
        row = {
            "epoch": epoch + 1,
            "loss": train_epoch(method, captured, train, generator, epoch, epochs, batch),
        }
        if (epoch + 1) % trial["every"] == 0 or epoch + 1 == epochs:
            row |= {name: float(value) for name, value in captured.watch.items()}  # of the last step
            row["knn"] = accuracy(single.judged_network(method, trial), train, test, view)
        history.append(row)
    seconds = time.perf_counter() - started
    line["curve"] = [[row["epoch"], round(row["knn"], 4)] for row in history if "knn" in row]
    line |= {name: round(value, 4) for name, value in history[-1].items() if name != "epoch"}
    line |= {"images_seen": method.run_steps * batch, "minutes": round(seconds / 60, 2)}
    if trial["judge"] == "test":
        encoder = method.encoder.float()
        metrics = evaluate.report(encoder, train, test, view, seed=trial["seed"], device=CUDA.type)
        line["metrics"] = {name: metric["value"] for name, metric in metrics.items()}
    return line


def stores(trial: dict):
    """The images to learn from and to judge by, on the GPU."""
    if trial["judge"] == "test":
        pair = [
            images.load(trial["dataset"], split, trial["size"], progress=False) for split in ("train", "test")
        ]
    else:
        pair = single.held_out(trial["dataset"], trial["size"])
    return [store.to(CUDA, 8 << 30) for store in pair]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after these, take no new trial")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    begun, loaded = time.time(), {}
    claims = arguments.out / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    for trial in json.loads(arguments.plan.read_text()):
        trial = {**DEFAULTS, **trial}
        mark = hashlib.sha256(json.dumps(trial, sort_keys=True).encode()).hexdigest()[:16]
        if time.time() - begun > arguments.seconds:
            break
        try:
            (claims / mark).mkdir()
        except FileExistsError:
            print(f"another process has or had it: {trial['method']} {trial['note']}", flush=True)
            continue
        where = (trial["dataset"], trial["size"], trial["judge"])
        if where not in loaded:
            loaded[where] = stores(trial)
        try:
            line = run(trial, *loaded[where])
        except Exception as error:  # a trial that fails is a line like the others, and the rest go on
            traceback.print_exc()
            line = {**trial, "error": f"{type(error).__name__}: {error}"[:500]}
        with (arguments.out / "trials.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{time.time() - begun:5.0f} s  {single.told(line)}", flush=True)


if __name__ == "__main__":
    main()
