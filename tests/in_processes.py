"""What test_distributed.py starts: processes forked from one that has loaded everything, on a CPU with gloo.

`python in_processes.py FOLDER` leaves one file for each run and process in FOLDER, and FOLDER/resume.json.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import debug_launcher
from tiny import CPU, losses, noise

from ssl_lessons import networks, processes, training
from ssl_lessons.images import ImageStore
from ssl_lessons.methods import base, relational, simclr
from ssl_lessons.methods.base import Method
from ssl_lessons.methods.byol import BYOL
from ssl_lessons.methods.moco import MoCo
from ssl_lessons.methods.relational import Relational
from ssl_lessons.methods.simclr import SimCLR
from ssl_lessons.methods.simsiam import SimSiam

METHODS = (SimCLR, MoCo, Relational, BYOL, SimSiam)
NORMS = {"group": (1, 2, 4), "batch": (1, 2, 4)}  # numbers of processes that are compared
PLAIN = {"optimizer": "sgd", "lr": 0.01, "lr_batch": None, "warmup": 0.0, "batch_size": 8, "epochs": 1}
SIZES = {
    MoCo: {"queue": 20, "head": (16, 8)},
    BYOL: {"head": (16, 8), "predictor_hidden": 16},
    SimSiam: {"head": (16, 16), "predictor_hidden": 8},
    SimCLR: {"head": (16, 8), "head_norm": True},
    Relational: {"hidden": 16, "views": 3},
}


def built(kind: type[Method], norm: str = "batch", seed: int = 0, **fields) -> Method:
    torch.manual_seed(seed)
    network = networks.Conv4((4, 4, 8, 8))
    fields = {**PLAIN, **SIZES.get(kind, SIZES[SimCLR]), **fields}
    method = kind(network, image_size=16, recipe="short", **fields)
    return networks.normalise_by(method, norm)


def doubled(method: Method) -> None:
    """Compute in float64, but for the loss, which is cast: normalisation magnifies float32's rounding."""
    method.double()
    if isinstance(method, MoCo):
        method.queue = method.queue.float()  # as keys are
    augment = method.augment
    method.augment = lambda *given: [view.double() for view in augment(*given)]


def work(folder: str, name: str, norms: list[str]) -> None:
    """An epoch of each method: its rows, the averaged gradients of each step, its history, its end."""
    torch.set_num_threads(1)
    rank, size = processes.rank_and_size()
    rows, gradients = [], []
    read, average = ImageStore.batch, processes.average_gradients

    def batch(store, indices, device=None):
        rows.append(torch.as_tensor(indices).tolist())
        return read(store, indices, device)

    def averaged(module):
        average(module)
        named = module.named_parameters()
        gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})

    ImageStore.batch, processes.average_gradients = batch, averaged
    for kind in METHODS:
        for norm in norms:
            rows.clear(), gradients.clear()
            method = built(kind, norm, seed=rank)  # other weights on each: the first one's count
            doubled(method)
            record = training.pretrain(method, noise(27), stop_on_collapse=False, **CPU)
            assert size == 1 or not any(
                isinstance(m, processes.JointBatchNorm) for m in method.modules()
            )  # the network is its user's again
            end = {"rows": rows, "gradients": gradients, "losses": losses(record)}
            end["state"] = method.state_dict()
            torch.save(end, Path(folder, f"{kind.__name__}-{norm}-{name}-{rank}.pt"))
    ImageStore.batch, processes.average_gradients = read, average


def own_alone(z, dim=0):
    """Gathered, but only the process' own part carries gradients, as in many codes."""
    parts = list(processes.gathered(z.detach(), dim).chunk(2, dim))
    parts[processes.rank_and_size()[0]] = z
    return torch.cat(parts, dim)


FAULTS = {
    "gathered without gradients": [(simclr, "gathered", own_alone), (relational, "gathered", own_alone)],
    "own negatives": [
        (module, name, alone)
        for module in (simclr, relational)
        for name, alone in (("gathered", lambda z, dim=0: z), ("rank_and_size", lambda: (0, 1)))
    ],
    "own draws": [(base, "rank_and_size", lambda: (0, 1))],
    "gradients not averaged": [(processes, "average_gradients", lambda module: None)],
}


def faulty(folder: str) -> None:
    """Two processes with what is easily forgotten left out: each must show in the comparison."""
    for fault, changes in FAULTS.items():
        before = [(module, name, getattr(module, name)) for module, name, _ in changes]
        for module, name, wrong in changes:
            setattr(module, name, wrong)
        work(folder, fault, ["group"])
        for module, name, right in before:
            setattr(module, name, right)


class Uneven(SimCLR):
    """Each process has work for a head of its own, and for the projector."""

    def build(self, r):
        policies = super().build(r)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(8, 1) for _ in range(2))
        return policies

    def forward(self, views):
        objective = super().forward(views)
        own = self.heads[processes.rank_and_size()[0]](self.embed(views[0]))
        return base.Objective(objective.loss + own.square().mean(), objective.diagnostics)


class Chatty(SimCLR):
    """Reports in one process what it does not in the other."""

    def forward(self, views):
        objective = super().forward(views)
        names = {f"x{processes.rank_and_size()[0]}": 1.0}
        return base.Objective(objective.loss, {**objective.diagnostics, **names})


def watched(folder: str) -> None:
    """What only one process does: a head of its own, a monitor that gathers, a diagnostic."""
    torch.set_num_threads(1)
    rank = processes.rank_and_size()[0]

    def monitor(method):
        generator = torch.Generator().manual_seed(3)
        return lambda encoder: {"x": method(method.augment(noise(8).images, generator)).loss.item()}

    uneven, monitored = built(Uneven, "group"), built(SimCLR, "group")
    training.pretrain(uneven, noise(24), stop_on_collapse=False, **CPU)
    record = training.pretrain(monitored, noise(24), monitor=monitor(monitored), **CPU)
    error = ""
    try:
        training.pretrain(built(Chatty, "group"), noise(24), stop_on_collapse=False, **CPU)
    except ValueError as raised:
        error = str(raised)
    end = {"state": uneven.state_dict(), "x": record["history"][-1]["x"], "error": error}
    torch.save(end, Path(folder, f"watched-{processes.rank_and_size()[1]}-{rank}.pt"))


def until_killed(folder: str, kill: tuple[int, int] | None) -> None:
    """A run of four epochs, in which the process `kill[0]` dies in the middle of the epoch `kill[1]`."""
    torch.set_num_threads(1)
    method, calls = built(MoCo, "group", epochs=4), 0
    wrapped = method.after_step

    def after_step(progress):
        nonlocal calls
        calls += 1
        if kill and processes.rank_and_size()[0] == kill[0] and progress > (kill[1] - 0.5) / 4:
            os.kill(os.getpid(), signal.SIGKILL)
        wrapped(progress)

    method.after_step = after_step
    training.pretrain(method, noise(24), run=folder, stop_on_collapse=False, **CPU)


def ends(folder, run: str, size: str, count: int) -> list[dict]:
    return [torch.load(folder / f"{run}-{size}-{rank}.pt", weights_only=True) for rank in range(count)]


def difference(one: dict, other: dict) -> dict[str, float]:
    """The largest differences of two ends: of the epoch's loss, of the steps' gradients as a share of their
    largest value, of weights and buffers after."""
    loss = max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True))
    gradient = 0.0
    for a, b in zip(one["gradients"], other["gradients"], strict=True):
        assert a.keys() == b.keys()
        largest = max(value.abs().max() for value in a.values())
        gradient = max(gradient, *(float((a[n] - b[n]).abs().max() / largest) for n in a))
    floats = [n for n, value in one["state"].items() if value.is_floating_point()]
    state = max(float((one["state"][n] - other["state"][n]).abs().max()) for n in floats)
    return {"loss": loss, "gradient": gradient, "state": state}


def compared(folder: str) -> None:
    """One, two and four processes: every method, by each normalisation."""
    for size in (1, 2, 4):
        norms = [norm for norm in NORMS if size in NORMS[norm]]
        debug_launcher(work, (folder, str(size), norms), num_processes=size)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    compared(folder)
    debug_launcher(faulty, (folder,), num_processes=2)
    for size in (1, 2):
        debug_launcher(watched, (folder,), num_processes=size)
    ends, run = [], str(Path(folder, "run"))
    for size, kill in ((2, (1, 2)), (4, (0, 3)), (1, None)):
        begun, error = time.time(), None
        try:
            debug_launcher(until_killed, (run, kill), num_processes=size)
        except Exception as raised:
            error = str(raised)
        epochs = json.loads(Path(run, "record.json").read_text())["history"]
        ends.append({"seconds": time.time() - begun, "error": error, "epochs": len(epochs)})
    until_killed(str(Path(folder, "undisturbed")), None)
    Path(folder, "resume.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(sys.argv[1])
