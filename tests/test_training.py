"""The loop: schedules, devices, seeds, refusals, and what is told while a run goes on.

What a kill or a fault leaves behind is tests/test_resume.py's.
"""

import dataclasses
import os
import pty
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from tiny import CPU, HERE, losses, moco, noise

from ssl_lessons import devices, evaluate, networks, training
from ssl_lessons.methods.base import Recipe
from ssl_lessons.methods.byol import BYOL
from ssl_lessons.methods.simsiam import SimSiam
from ssl_lessons.parameters import Unknown
from ssl_lessons.training import (
    TrainingError,
    build_optimizer,
    learning_rate,
    pick_device,
    pick_precision,
    pretrain,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------------------- schedules


def test_learning_rate_at_the_key_points():
    cosine = Recipe("r", "", lr=0.1, lr_batch=256, warmup=10, final_lr=0.01, schedule="cosine")

    def at(epoch, recipe=cosine, batch=512, epochs=100):
        return learning_rate(recipe, batch, epoch, epochs)

    assert at(0) == 0 and at(5) == pytest.approx(0.1) and at(10) == pytest.approx(0.2)  # 0.1 · 512 / 256
    assert at(55) == pytest.approx(0.2 * (0.01 + 0.99 / 2)) and at(100) == pytest.approx(0.002)
    assert at(10, batch=64) == pytest.approx(0.025)
    rates = [at(10 + 90 * i / 50) for i in range(51)]
    assert rates == sorted(rates, reverse=True)
    assert at(2, epochs=4) == pytest.approx(0.2)  # warm-up is at most half of a short run
    as_it_stands = dataclasses.replace(cosine, lr_batch=None)
    assert at(10, as_it_stands) == at(10, as_it_stands, batch=32) == 0.1
    step = dataclasses.replace(cosine, schedule="step", warmup=0)
    assert [round(at(e, step), 9) for e in (0, 59.9, 60, 79.9, 80, 100)] == [
        0.2,
        0.2,
        0.02,
        0.02,
        0.002,
        0.002,
    ]
    constant = dataclasses.replace(cosine, schedule="constant", warmup=0)
    assert {at(e, constant) for e in (0, 50, 100)} == {0.2}


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule is 'linear'; it must be one of: cosine, step, constant"):
        Recipe("r", "", schedule="linear", warmup=10)


def test_the_rate_of_each_step_is_the_schedules():
    method, seen = moco(warmup=1.0, lr=0.05, optimizer="sgd"), []
    first = next(iter(method.encoder.parameters()))

    def after_step(progress, wrapped=method.after_step):
        seen.append((progress, first.detach().clone()))
        wrapped(progress)

    method.after_step = after_step
    start = first.detach().clone()
    record = pretrain(method, noise(), epochs=2, **CPU)
    assert [progress for progress, _ in seen] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert torch.equal(seen[0][1], start) and not torch.equal(seen[1][1], start)  # warm-up begins at 0
    assert record["history"][-1]["lr"] == pytest.approx(learning_rate(method.recipe, 8, 1 + 2 / 3, 2))


def test_optimisers_are_built_from_the_recipe():
    built = {
        name: build_optimizer(moco(optimizer=name, weight_decay=0.3)) for name in ("sgd", "adam", "adamw")
    }
    assert [type(o).__name__ for o in built.values()] == ["SGD", "Adam", "AdamW"]
    assert built["sgd"].defaults["momentum"] == 0.9
    assert all(o.defaults["weight_decay"] == 0.3 for o in built.values())
    trained = {id(p) for group in built["sgd"].param_groups for p in group["params"]}
    method = moco()
    assert len(trained) == len(
        [*method.encoder.parameters(), *method.projector.parameters()]
    )  # no key encoder
    with pytest.raises(ValueError, match="optimizer is 'lamb'; it must be one of: sgd, lars, adam, adamw"):
        moco(optimizer="lamb")


def test_lars_scales_each_layer_and_leaves_biases_and_norms_alone():
    """One first step against the formula: η·‖w‖ / (‖g‖ + λ‖w‖), You et al. 2017 (arXiv:1708.03888)."""
    method = moco(optimizer="lars", lr=0.5, lr_batch=None, weight_decay=0.01, plain_norms=True)
    built = build_optimizer(method)
    torch.manual_seed(0)
    wanted = {}
    for name, p in method.named_parameters():
        if p.requires_grad:
            p.grad = torch.randn_like(p)
            w, g = p.detach(), p.grad
            if p.ndim == 1:
                wanted[name] = w - 0.5 * g
            else:
                trust = 1e-3 * w.norm() / (g.norm() + 0.01 * w.norm())
                wanted[name] = w - 0.5 * trust * (g + 0.01 * w)
    built.step()
    for name, p in method.named_parameters():
        if name in wanted:
            torch.testing.assert_close(p.detach(), wanted[name], atol=1e-6, rtol=1e-5)
    assert {p.ndim for name, p in method.named_parameters() if name in wanted} >= {1, 2, 4}


def test_a_predictor_may_have_a_rate_and_a_decay_of_its_own():
    """Ten times the rate of the rest, in every step of the cosine; the decay is its own where given."""
    settings = {"head": (16, 8), "predictor_hidden": 8, "predictor_lr": 10.0, "weight_decay": 0.3}
    settings |= {"optimizer": "sgd", "lr_batch": None, "lr": 0.01}
    method = BYOL(networks.conv4(), image_size=16, recipe="short", predictor_weight_decay=0.1, **settings)
    built = build_optimizer(method)
    mine = {id(p) for p in method.predictor.parameters()}
    decays = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    assert all(decay == (0.1 if p in mine else 0.3) for p, decay in decays.items())
    rates = []
    method.after_step = lambda progress: rates.append({g["scale"]: g["lr"] for g in built.param_groups})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_lessons.training.build_optimizer", lambda method: built)
        pretrain(method, noise(), epochs=2, batch_size=8, **CPU)
    assert len(rates) == 6 and rates[0][1.0] != rates[-1][1.0]
    assert all(rate[10.0] == pytest.approx(10 * rate[1.0]) for rate in rates)
    same = build_optimizer(BYOL(networks.conv4(), image_size=16, recipe="short", **settings))
    assert {group["weight_decay"] for group in same.param_groups} == {0.3}


def test_constant_rate_is_for_the_named_parts_only():
    fields = {"head": (16, 16), "predictor_hidden": 8, "predictor_lr": 1.0, "lr_batch": None}
    method = SimSiam(networks.conv4(), image_size=16, recipe="short", **fields)
    built = build_optimizer(method)
    constant = {id(p) for group in built.param_groups if group["constant"] for p in group["params"]}
    assert constant == {id(p) for p in method.predictor.parameters()}
    moved = {id(p) for group in built.param_groups for p in group["params"]}
    assert moved == {id(p) for p in method.parameters()}
    rates = []
    method.after_step = lambda progress: rates.append([g["lr"] for g in last.param_groups])
    last = built
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_lessons.training.build_optimizer", lambda method: built)
        pretrain(method, noise(), epochs=3, batch_size=8, **CPU)
    at = [group["constant"] for group in built.param_groups].index(True)
    falling = [step[1 - at] for step in rates]
    assert {step[at] for step in rates} == {method.recipe.lr}
    assert falling[0] == 0 and falling[-1] < 0.5 * method.recipe.lr


# ---------------------------------------------------------------------------------------------- devices


def test_unknown_devices_and_precisions_are_answered_with_the_known(monkeypatch):
    with pytest.raises(TrainingError, match="device 'gpu' is not known; choose auto, cpu, cuda"):
        pick_device("gpu")
    cpu = torch.device("cpu")
    with pytest.raises(
        TrainingError, match="precision 'half' is not known; choose one of: auto, fp32, bf16, fp16"
    ):
        pick_precision("half", cpu)
    with pytest.raises(TrainingError, match="'fp16' needs a GPU; choose fp32 or bf16 on a CPU"):
        pick_precision("fp16", cpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(TrainingError, match="PyTorch sees no cuda for device 'cuda'; choose auto or cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TrainingError, match="PyTorch sees 1 cuda for device 'cuda:3'"):
        pick_device("cuda:3")
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(
        TrainingError, match="progress 'loud' is not known; choose one of: auto, bars, lines, none"
    ):
        pretrain(moco(), noise(), **{**CPU, "progress": "loud"})


def test_auto_follows_the_machine(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # a Mac
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: True)  # not in torch 2.4
    assert pick_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == gpu
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # `accelerate launch --cpu`
    assert pick_device("auto") == torch.device("cpu")
    for capability, precision in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):  # (7, 5) is a T4
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert pick_precision("auto", gpu) == precision
    for has, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(devices, "_cpu_has_bf16", lambda has=has: has)
        assert pick_precision("auto", torch.device("cpu")) == precision
    assert pick_precision("fp32", gpu) == "fp32"


def test_bf16_trains_in_bf16_and_is_recorded():
    method, kinds = moco(), []
    method.encoder.network.blocks[0][0].register_forward_hook(lambda m, i, out: kinds.append(out.dtype))
    record = pretrain(method, noise(16), epochs=1, **{**CPU, "precision": "bf16"})
    assert kinds[0] == torch.bfloat16 and record["precision"] == "bf16" and losses(record)[0] > 0
    assert all(p.dtype == torch.float32 for p in method.parameters())


def test_a_run_within_a_run_changes_nothing_and_leaves_accelerate_as_it_was():
    """Accelerate keeps one state for a process: a monitor that trains at another precision, a user's own."""
    outer = Accelerator(cpu=True, mixed_precision="bf16")
    plain = pretrain(moco(), noise(16), **{**CPU, "precision": "bf16"})

    def monitor(encoder):
        return {"inner": pretrain(moco(start=1), noise(8), epochs=1, **CPU)["history"][0]["loss"]}

    kinds = []
    method = moco()
    method.encoder.network.blocks[0][0].register_forward_hook(lambda m, i, out: kinds.append(out.dtype))
    record = pretrain(method, noise(16), monitor=monitor, **{**CPU, "precision": "bf16"})
    assert set(kinds) == {torch.bfloat16} and losses(record)[0] == losses(plain)[0]
    assert outer.mixed_precision == "bf16"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_short_run_on_a_gpu(tmp_path, precision):
    settings = {"device": "cuda", "precision": precision, "progress": "none", "run": tmp_path / "run"}
    record = pretrain(moco(), noise(64), epochs=3, **settings)
    assert len(losses(record)) == 3 and all(0 < loss < 20 for loss in losses(record))
    assert record["precision"] == precision and torch.cuda.get_device_name() == record["device"]
    assert pretrain(moco(), noise(64), epochs=3, **settings)["history"] == record["history"]


# ---------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_trained_on_is_refused():
    with pytest.raises(TrainingError, match="noise has 5 images, less than batch_size 8; lower it"):
        pretrain(moco(), noise(5), batch_size=8, **CPU)
    assert pretrain(moco(), noise(5), **CPU)["batch_size"] == 5  # the recipe's 8, where there are as many
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"epochs": -1}):
        with pytest.raises(Unknown, match=f"{[*wrong][0]} is .*; it must be a whole number above 0"):
            pretrain(moco(), noise(), **wrong, **CPU)
    supervised = evaluate.Supervised(networks.Conv4((4, 4, 4, 4)), 3, 16)
    with pytest.raises(TrainingError, match="Supervised needs labels; noise train has none"):
        pretrain(supervised, noise(labels=False), epochs=1, batch_size=8, **CPU)
    assert losses(pretrain(supervised, noise(), epochs=1, batch_size=8, **CPU))[0] > 0


def test_the_last_partial_batch_is_left_out_and_everything_else_is_seen():
    method, sizes = moco(), []
    method.encoder.register_forward_pre_hook(lambda m, inputs: sizes.append(len(inputs[0])))
    pretrain(method, noise(27), epochs=1, **CPU)
    assert sizes == [8] * 6  # 27 // 8 = 3 steps of two query passes each


# ---------------------------------------------------------------------------------------------- what is told


def test_history_says_what_happened():
    record = pretrain(moco(), noise(), **CPU)
    assert [row["epoch"] for row in record["history"]] == [1, 2]
    for row in record["history"]:
        assert {"loss", "positive_similarity", "negative_similarity", "accuracy", "queue_age"} <= set(row)
        assert 0 < row["embedding_std"] <= 1.1 and row["peak_memory"] > 1 << 20
    assert sum(row["seconds"] for row in record["history"]) <= record["seconds"]
    assert record["dataset"] == {"name": "noise", "split": "train", "size": 20, "images": 24} | {
        "fingerprint": "24-20",
        "origin": "",
    }
    assert (record["method"], record["view_size"], record["epochs"], record["batch_size"]) == (
        "MoCo",
        16,
        2,
        8,
    )


def test_a_seed_decides_and_another_seed_differs():
    def run(**settings):
        torch.manual_seed(settings.get("seed", 0) + 77)  # whatever was drawn before does not matter
        return losses(pretrain(moco(recipe="small_data", splits=2, start=1), noise(), **settings, **CPU))

    assert run(seed=4) == run(seed=4)
    assert run(seed=4) != run(seed=5)


def test_the_monitor_is_called_as_documented_and_leaves_train_mode():
    method, seen = moco(), []

    def monitor(encoder):
        encoder.eval()
        seen.append(encoder is method.encoder)
        return {"knn": torch.tensor(0.5)}

    modes = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    record = pretrain(method, noise(8), epochs=5, monitor=monitor, monitor_every=2, **CPU)
    assert seen == [True] * 3
    assert [row["epoch"] for row in record["history"] if "knn" in row] == [2, 4, 5]
    assert all(modes) and record["history"][1]["knn"] == 0.5


def test_each_row_is_handed_over_as_it_comes():
    rows = []
    record = pretrain(moco(), noise(8), epochs=3, on_epoch=rows.append, **CPU)
    assert rows == record["history"] and len(rows) == 3


TERMINAL = """
import tiny as t
from ssl_lessons.training import pretrain
pretrain(t.moco(), t.noise(), monitor=lambda encoder: {"knn": 0.25}, epochs=3, device="cpu", precision="fp32")
"""


def test_a_terminal_gets_one_line_an_epoch():
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", TERMINAL]
    done = subprocess.run(command, stdout=theirs, env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"})
    os.close(theirs)
    lines = os.read(ours, 10000).decode().splitlines()
    os.close(ours)
    assert done.returncode == 0 and len(lines) == 3, lines
    for epoch, line in enumerate(lines, 1):
        assert line.startswith(f"epoch   {epoch}/3   loss ") and "kNN 25.0%" in line and line.endswith(" s")


class Drawn:
    """Stands for a cell's output: `display` returns one, and it keeps what it is updated with: of a figure
    the points of its visible curves."""

    shown: list = []

    def __init__(self, *things, **options):
        for thing in things:
            if isinstance(thing, Figure):
                axes = [axis for axis in thing.axes if axis.get_visible()]
                thing = {axis.get_ylabel(): axis.lines[0].get_xydata().tolist() for axis in axes}
            self.shown.append(thing)

    update = __init__


@pytest.fixture
def notebook(monkeypatch):
    """Bars and curves go to a list, as if to a notebook's output."""
    import IPython.display
    import matplotlib.pyplot as plt
    from fastprogress import fastprogress

    monkeypatch.setattr(IPython.display, "display", Drawn)
    for name, thing in (("display", Drawn), ("HTML", IPython.display.HTML), ("plt", plt)):
        monkeypatch.setattr(fastprogress, name, thing, raising=False)  # version 1.0.3 imports them itself
    monkeypatch.setattr(fastprogress, "IN_NOTEBOOK", True)
    monkeypatch.setattr(fastprogress, "master_bar", fastprogress.NBMasterBar)
    monkeypatch.setattr(fastprogress, "progress_bar", fastprogress.NBProgressBar)
    monkeypatch.setattr(Drawn, "shown", [])
    return Drawn.shown


@pytest.mark.parametrize("every", [1, 2], ids=["first epoch judged", "first epoch not judged"])
def test_a_notebook_gets_bars_and_a_curve_from_the_first_batches_on(every, notebook, tmp_path):
    settings = {**CPU, "progress": "bars", "monitor": lambda encoder: {"knn": 0.25}, "monitor_every": every}
    record = pretrain(moco(), noise(), run=tmp_path, **settings)
    empty, early, *later = [thing for thing in notebook if isinstance(thing, dict)]
    ((step, loss),) = early["loss"]
    assert step == pytest.approx(1 / 3) and loss > 0 and "kNN accuracy" not in early
    rows = [[epoch, pytest.approx(row["loss"])] for epoch, row in enumerate(record["history"], 1)]
    judged = [[epoch, 0.25] for epoch in (1, 2) if epoch % every == 0]
    first = {"loss": rows[:1], "kNN accuracy": judged[:1]} if every == 1 else {"loss": rows[:1]}
    assert later == [first, {"loss": rows, "kNN accuracy": judged}]
    words = [f"{thing}{getattr(thing, 'data', '')}" for thing in notebook]
    assert any("epoch   1/2   loss" in text for text in words)
    assert "epoch   2/2   loss" in words[-1] and "progress" not in words[-1], (
        "the last line stays without bars"
    )

    notebook.clear()  # read from disk, the run still shows its curve
    assert pretrain(moco(), noise(), run=tmp_path, **settings)["history"] == record["history"]
    assert notebook[-1] == later[-1]


def test_the_console_bars_work_too(capsys):
    assert len(pretrain(moco(), noise(), **{**CPU, "progress": "bars"})["history"]) == 2
    assert "[3/3" in capsys.readouterr().out


def test_curves_of_negative_and_zero_losses_can_be_drawn(notebook):
    for first in (-0.5, 0.0):
        history = [{"epoch": 1, "loss": first, "seconds": 1.0}, {"epoch": 2, "loss": -1.0, "seconds": 1.0}]
        shown = training._Progress("bars", history, 2)
        assert notebook[-1] == {"loss": [[1, first], [2, -1.0]]}  # without kNN there is no second curve
        low, high = shown.lines[0].axes.get_ylim()
        assert low <= -1.0 and first <= high
