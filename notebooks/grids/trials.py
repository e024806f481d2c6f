"""Trials of settings, judged on a held-out fifth of the training images; a test image is never opened.

    python notebooks/grids/trials.py PLAN.json [--workers 1] [--seconds 3600]
    python notebooks/grids/trials.py --speed --table

PLAN.json is a list of trials: dicts whose keys are those of `DEFAULTS`; "fields" replace those of the recipe,
"policy" and "policy_prime" those of the recipe's policies. Each that ends is a line of
data/results/trials.jsonl, a failed one too; `--speed` measures the networks that
were tried, and `--table` writes data/results/TRIALS.md.
"""

import argparse
import dataclasses
import datetime
import json
import math
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, TimeoutError, as_completed
from pathlib import Path

RAW = argparse.RawDescriptionHelpFormatter
RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"
DEFAULTS = {
    "method": "simclr",
    "note": "",  # what this trial changes
    "dataset": "imagenette",
    "size": 48,  # of the stored images, pixels
    "view": 32,
    "network": {},  # of networks.slim_resnet; or {"name": "resnet18", "stem": "imagenet"}
    "recipe": "short",
    "fields": {},
    "policy": {},
    "policy_prime": {},
    "epochs": 25,
    "batch_size": 128,
    "seed": 0,
    "every": 5,  # epochs between two looks at the held-out kNN
    "judged": "encoder",  # or "projector": the features behind it
}


def direct_predictor(width: int, memory: float = 0.3, epsilon: float = 0.1):
    """BYOL's predictor in closed form: DirectPred, Tian et al. 2021 (arXiv:2102.06810), section 5.

    A symmetric matrix with the eigenvectors of the correlation of z, and eigenvalues √s + ε of its s.
    """
    import torch

    class Direct(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("correlation", torch.eye(width) / width)
            self.register_buffer("matrix", torch.eye(width))
            self.calls = 0

        def forward(self, z):
            if self.training:
                with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
                    now = z.float().T @ z.float() / len(z)
                    self.correlation.lerp_(now, 1 - memory)
                    if self.calls % 10 == 0:  # both views; every fifth step
                        values, vectors = torch.linalg.eigh(self.correlation)
                        values = (values / values.max()).clamp_min(0)
                        scale = values.sqrt() + epsilon
                        self.matrix.copy_(vectors * scale @ vectors.T)
                    self.calls += 1
            return z @ self.matrix.to(z.dtype)

    return Direct()


def take_away(simsiam, part: str) -> None:
    """SimSiam without its "stop-gradient", "predictor" or "BatchNorm" (that of the heads), in place."""
    import torch
    import torch.nn.functional as F

    from ssl_lessons.methods.base import Objective, embedding_std
    from ssl_lessons.networks import normalise_by

    def forward(views):
        z1, z2 = (simsiam.projector(simsiam.encoder(view)).float() for view in views)
        p1, p2 = (simsiam.predictor(z).float() for z in (z1, z2))
        loss = -(F.cosine_similarity(p1, z2, dim=1) + F.cosine_similarity(p2, z1, dim=1)).mean() / 2
        return Objective(loss, {"embedding_std": embedding_std(F.normalize(z1.detach(), dim=1))})

    if part == "predictor":
        simsiam.predictor = torch.nn.Identity()
    elif part == "BatchNorm":
        for head in (simsiam.projector, simsiam.predictor):
            normalise_by(head, "none")
    elif part == "stop-gradient":
        simsiam.forward = forward  # the loss as before, but gradients flow into both sides
    else:
        raise ValueError(f"SimSiam has no part {part!r}; choose stop-gradient, predictor or BatchNorm")


def cosine_head():
    """A fixed ruler in the relation head's place: the cosine of two features, with a scale and an offset."""
    import torch
    import torch.nn.functional as F

    class CosineHead(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(10.0))
            self.offset = torch.nn.Parameter(torch.tensor(-5.0))  # even odds at a cosine of a half

        def score(self, features, first, second):
            unit = F.normalize(features.float(), dim=1)
            return self.scale * (unit[first] * unit[second]).sum(dim=1) + self.offset

    return CosineHead()


HEAD = """# Trials

Written by `python notebooks/grids/trials.py --table` from [trials.jsonl](trials.jsonl), which holds
all settings. Each is judged by weighted kNN (k 20, t 0.07, backbone, last epoch) on a held-out
fifth of the training images; no test image is opened. Beside it the same network before training.
One seed each unless said: two settings closer than about three points are not told apart (the
standard error of a difference is 1.6 points, and of the repeats here one pair lies 2.7 apart).

Without a network named, it is `slim_resnet()` at 32 px from images stored at 48 px. Images are in
thousands, counted once however many views are made of each. Minutes include judging; on a GPU
several trials ran at once ("graphs": by together.py), and those say nothing about speed. "net"
trials were given epochs by each network's measured speed (the table at the end), for about three
minutes on two CPU cores.

Words: "lesson" is the recipe before `short`, and gone; K views of each image; "standard" colours are jitter
0.4, 0.4, 0.4, 0.1 and greyscale 0.2, "gentle" ones 0.2, 0.2, 0.2, 0.05 and none, "half" ones gentle
with the greyscale; "x10" is the predictor's rate as a multiple of the others'. BYOL's trials start
from AdamW 2e-3, τ 0.97 rising to 1, heads 512–128, predictor 512 and standard colours; "P" is
gentle colours, rate 1e-3 and x10.

Two SimSiam trials ("views 4") used an averaged target of several views (FastSiam), which won
nothing at equal work and is not in the package; two SimCLR trials on a CPU were noted by hand from
their output, without curve.

The "cause" trials take BYOL's old failure on the full ResNet-18 apart. There, with ImageNet's stem, it ends
below its random encoder with SGD and τ 0.95, and with AdamW and a rising τ as well; on `slim_resnet()` it
ends above with both, by little in twelve epochs. So the network was the cause, not the optimiser or τ."""


def network(trial: dict):
    """The trial's network, freshly drawn from the global generator."""
    from ssl_lessons import networks

    settings = trial["network"]
    if "name" in settings:
        return networks.build(settings["name"], trial["view"], settings.get("stem"))
    return networks.slim_resnet(**settings)


def with_tuples(values: dict) -> dict:
    """What JSON gave as lists, as recipes and policies have it."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def build(trial: dict):
    """The method of a trial, on a fresh network."""
    import torch

    from ssl_lessons.lab import METHODS
    from ssl_lessons.methods.base import choose

    torch.manual_seed(trial["seed"])
    method = METHODS[trial["method"]]
    recipe = choose(method.recipes, trial["recipe"])
    fields = with_tuples(trial["fields"])
    for name in ("policy", "policy_prime"):
        if hasattr(recipe, name):
            changes = trial[name] or (trial["policy"] if name == "policy_prime" else {})
            fields[name] = dataclasses.replace(getattr(recipe, name), **with_tuples(changes))
    direct, without = fields.pop("direct", False), fields.pop("without", None)
    ruler = fields.pop("ruler", "head")
    made = method(network(trial), image_size=trial["view"], recipe=recipe, **fields)
    if direct:
        made.predictor = direct_predictor(made.recipe.head[-1])
    if without:
        take_away(made, without)
    if ruler == "cosine":
        made.head = cosine_head()
    return made


def judged_network(method, trial: dict):
    """What a trial's kNN looks at: the encoder, or the encoder with the projector behind it."""
    import torch

    if trial["judged"] == "encoder":
        return method.encoder
    return torch.nn.Sequential(method.encoder, method.projector)


def held_out(dataset: str, size: int):
    """Four fifths of the training images to learn from, one fifth to judge by: the same in every trial."""
    import torch

    from ssl_lessons import evaluate, images

    store = images.load(dataset, "train", size, progress=False)
    rows = evaluate.stratified(store.labels, 0.2, seed=0)
    kept = torch.ones(len(store), dtype=torch.bool)
    kept[rows] = False
    return store.subset(kept.nonzero()[:, 0]), store.subset(rows)


def run(trial: dict, device: str = "auto") -> dict:
    """Train and judge one trial: its line for trials.jsonl."""
    import torch

    from ssl_lessons import evaluate, pretrain
    from ssl_lessons.devices import pick_device
    from ssl_lessons.records import device_name

    trial = {**DEFAULTS, **trial}
    line = {**trial, "date": datetime.date.today().isoformat(), "device": device_name(pick_device(device))}

    def knn(_) -> dict[str, float]:
        encoder = judged_network(method, trial)
        x, y = (evaluate.features(encoder, store, trial["view"], device, "auto") for store in (train, test))
        return {"knn": (evaluate.knn(x, train.labels, y) == test.labels).float().mean().item()}

    started = time.perf_counter()
    try:
        train, test = held_out(trial["dataset"], trial["size"])
        line |= {"torch": torch.__version__.split("+")[0], "train": len(train), "held_out": len(test)}
        method = build(trial)
        line["knn_random"] = knn(method.encoder)["knn"]
        settings = {"epochs": trial["epochs"], "batch_size": trial["batch_size"], "seed": trial["seed"]}
        settings |= {"monitor": knn, "monitor_every": trial["every"], "stop_on_collapse": False}
        record = pretrain(method, train, device=device, progress="none", **settings)
        history = record["history"]
        line["knn"] = history[-1]["knn"]
        line["curve"] = [[row["epoch"], round(row["knn"], 4)] for row in history if "knn" in row]
        line["spread"] = round(history[-1]["embedding_std"], 3)
        line["loss"] = round(history[-1]["loss"], 4)
        line["precision"] = record["precision"]
        line["images_seen"] = trial["epochs"] * (len(train) // trial["batch_size"]) * trial["batch_size"]
    except Exception as error:  # a trial that fails is a line like the others, and the rest go on
        line["error"] = f"{type(error).__name__}: {error}"
    line["minutes"] = round((time.perf_counter() - started) / 60, 2)
    return line


def described(line: dict) -> str:
    """What a trial changes, with its dataset and seed where they are not the usual ones."""
    where = "" if line["dataset"] == "imagenette" else f" ({line['dataset']})"
    return line["note"] + where + (f", seed {line['seed']}" if line["seed"] else "")


def table(lines: list[dict]) -> str:
    """TRIALS.md: a line a trial, by method, best first."""
    methods = dict.fromkeys(line["method"] for line in lines)
    text = [HEAD]
    for method in methods:
        rows = [line for line in lines if line["method"] == method]
        rows.sort(key=lambda line: -line.get("knn", 0))
        text += [
            "",
            f"## {method}",
            "",
            "| date | what changed | epochs | images, k | kNN | random | gain | min | device |",
        ]
        text += ["|---|---|--:|--:|--:|--:|--:|--:|---|"]
        for line in rows:
            start = f"| {line.get('date', '')} | {described(line)} | {line['epochs']} |"
            where = line.get("device", "").replace("NVIDIA ", "").replace(" 80GB HBM3", "")
            where += ", graphs" if line.get("loop") == "graphs" else ""
            if "error" in line:
                failed = line["error"].splitlines()[0][:70].replace("|", "/")
                text.append(f"{start} – | failed: {failed} | | | | {where} |")
                continue
            knn, random = 100 * line["knn"], 100 * line["knn_random"]
            cells = f"{line['images_seen'] / 1000:.0f} | {knn:.1f} | {random:.1f} | {knn - random:+.1f}"
            text.append(f"{start} {cells} | {line['minutes']:.1f} | {where} |")
    text += ["", *judged(RESULTS / "h100.jsonl")]
    path = RESULTS / "networks.json"
    if path.exists():
        measured = json.loads(path.read_text(encoding="utf-8"))
        text += ["", "## Speed of the networks", "", measured["what"], ""]
        text += ["| network | px | images a second |", "|---|--:|--:|"]
        text += [f"| {row['note']} | {row['view']} | {row['rate']:.0f} |" for row in measured["networks"]]
    return "\n".join(text) + "\n"


def judged(path: Path) -> list[str]:
    """Lines of Markdown: what together.py judged on test images, mean and sample deviation over seeds."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    whole = [line for line in lines if "metrics" in line]
    lost = [f"{line['method']} seed {line['seed']}" for line in lines if "error" in line]
    names = {"knn": "kNN", "linear_100": "linear", "linear_10": "linear 10 %", "linear_1": "linear 1 %"}
    text = ["## On the test images, on a GPU", ""]
    text += [
        "What the trials had chosen, trained on all training images by together.py on one "
        f"{whole[0]['device']} and judged by `evaluate.report`, last epoch; nothing was chosen by these "
        "numbers. In per cent, mean ± sample standard deviation over the seeds. "
        f"Lost to a failed capture: {', '.join(lost) or 'none'}.",
        "",
    ]
    text += [f"| method | images | epochs | seeds | random, kNN | {' | '.join(names.values())} |"]
    text += ["|---|---|--:|--:|--:|" + "--:|" * len(names)]
    for method, dataset in dict.fromkeys((line["method"], line["dataset"]) for line in whole):
        some = [line for line in whole if (line["method"], line["dataset"]) == (method, dataset)]
        cells = [f"{100 * statistics.fmean(line['knn_random'] for line in some):.1f}"]
        for name in names:
            values = [100 * line["metrics"][name] for line in some]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
        text.append(f"| {method} | {dataset} | {some[0]['epochs']} | {len(some)} | {' | '.join(cells)} |")
    return text


def speeds(lines: list[dict], turns: int = 3, steps: int = 5) -> dict:
    """Images a second of SimCLR's whole step for each network that was tried, on this machine's CPU.

    Turns go round, so that a disturbance meets all alike; of the turns' medians the middle one counts.
    """
    tried = {"ResNet-10, half": DEFAULTS}
    tried |= {line["note"][4:]: line for line in lines if line["note"].startswith("net ")}
    tried.pop("ResNet-10 half, stride, 10 epochs", None)  # one network twice
    rates = {note: [] for note in tried}
    for _ in range(turns):
        for note, trial in tried.items():
            seconds, where = step_seconds(trial, steps)
            rates[note].append(128 / statistics.median(seconds))
    what = f"SimCLR's step, batches of 128, {where}, {datetime.date.today().isoformat()}; "
    what += f"the middle of {turns} turns of {steps} steps each."
    rows = [
        {"note": note, "view": tried[note]["view"], "rate": round(statistics.median(found), 1)}
        for note, found in rates.items()
    ]
    return {"what": what, "networks": rows}


def step_seconds(trial: dict, steps: int) -> tuple[list[float], str]:
    """Seconds of some steps of SimCLR around a trial's network on the CPU, and with what they were made."""
    import torch

    from ssl_lessons import devices, images
    from ssl_lessons.optim import build_optimizer
    from ssl_lessons.records import device_name

    cpu = torch.device("cpu")
    precision = devices.pick_precision("auto", cpu)
    store = images.load("imagenette", "train", trial["size"], progress=False)
    trial = {**DEFAULTS, **{key: trial[key] for key in ("network", "view")}, "recipe": "short"}
    method = build(trial).to(memory_format=torch.channels_last).train()
    optimizer, generator = build_optimizer(method), torch.Generator().manual_seed(0)
    seconds = []
    for step in range(steps + 2):  # two to warm up
        began = time.perf_counter()
        views = method.augment(store.batch(torch.arange(128) + 128 * step), generator)
        with devices.autocast(cpu, precision):
            loss, _ = method(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    version = torch.__version__.split("+")[0]
    return seconds[2:], f"{device_name(cpu)}, {precision}, torch {version}"


def told(line: dict) -> str:
    """A line for the terminal."""
    found = line.get("error") or f"kNN {line['knn']:.1%} (random {line['knn_random']:.1%})"
    return f"{line['method']:<11}{line['note']:<44}{found}   {line.get('minutes', 0):.2f} min"


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def run_all(plan: list[dict], out: Path, workers: int, seconds: float) -> None:
    """Run a plan in `workers` processes, in its order, and write each line when it is there. When the seconds
    are over, no trial is begun, and those that run are waited for."""

    def write(line: dict) -> None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(told(line), flush=True)

    threads = max(1, (os.cpu_count() or 1) // workers)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _use_threads, (threads,)) as pool:
        running = {pool.submit(run, trial) for trial in plan}
        try:
            for future in as_completed(set(running), timeout=seconds if math.isfinite(seconds) else None):
                running.discard(future)
                write(future.result())
        except TimeoutError:
            for future in [future for future in running if not future.cancel()]:
                write(future.result())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", nargs="?")
    parser.add_argument("--table", action="store_true", help="write TRIALS.md from trials.jsonl")
    parser.add_argument("--speed", action="store_true", help="measure the networks into networks.json")
    parser.add_argument("--out", type=Path, default=RESULTS / "trials.jsonl")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    arguments = parser.parse_args()
    if arguments.speed or arguments.table:
        logged = (RESULTS / "trials.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [json.loads(line) for line in logged]
    if arguments.speed:
        (RESULTS / "networks.json").write_text(json.dumps(speeds(logged), indent=1) + "\n", encoding="utf-8")
    if arguments.table:
        (RESULTS / "TRIALS.md").write_text(table(logged), encoding="utf-8")
    if arguments.plan is None:
        raise SystemExit
    run_all(json.loads(Path(arguments.plan).read_text()), arguments.out, arguments.workers, arguments.seconds)
