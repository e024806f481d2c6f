"""Several processes compute what one does: real processes on a CPU, 1 = 2 = 4."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from in_processes import METHODS, NORMS, Uneven, built, difference, ends
from tiny import HERE, losses

from ssl_lessons import cli
from ssl_lessons.records import Run

ENV = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}", "OMP_NUM_THREADS": "1"}
RUNS = [(f"{kind.__name__}-{norm}", size) for kind in METHODS for norm in NORMS for size in NORMS[norm][1:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What in_processes.py leaves."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, str(HERE / "in_processes.py"), str(folder)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_one_two_and_four_processes_are_the_same(folder):
    """Losses, gradients and all that is kept, BatchNorm's statistics and MoCo's queue among it."""
    differences = {}
    print(f"\n{'method, normalisation':<24}{'W':>2}{'loss':>10}{'gradient':>10}{'state':>10}")
    for run, size in RUNS:
        (alone,), each = ends(folder, run, "1", 1), ends(folder, run, str(size), size)
        found = difference(alone, each[0])
        print(f"{run:<24}{size:>2}" + "".join(f"{value:>10.1e}" for value in found.values()))
        differences[run, size] = max(found.values())
        for other in each[1:]:  # identical on every rank, the queue among it
            assert other["losses"] == each[0]["losses"]
            for name, value in each[0]["state"].items():
                assert "running" in name or torch.equal(value, other["state"][name]), name
    assert max(differences.values()) < 1e-5, differences


def test_no_image_is_lost_or_doubled(folder):
    for run, size in RUNS:
        (alone,) = ends(folder, run, "1", 1)
        assert len(alone["rows"]) == 3 and len(set(sum(alone["rows"], []))) == 24
        parts = [end["rows"] for end in ends(folder, run, str(size), size)]
        together = [sum(step, []) for step in zip(*parts, strict=True)]
        assert together == alone["rows"] and {len(rows) for rows in parts[-1]} == {8 // size}


ALL = ("SimCLR", "MoCo", "Relational", "BYOL", "SimSiam")
FAULTS = {
    "gathered without gradients": ("SimCLR", "Relational"),
    "own negatives": ("SimCLR", "Relational"),
    "own draws": ALL,
    "gradients not averaged": ALL,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_easily_forgotten_shows(folder, fault):
    for method in FAULTS[fault]:
        (alone,) = ends(folder, f"{method}-group", "1", 1)
        found = difference(alone, ends(folder, f"{method}-group", fault, 2)[0])
        assert found["gradient"] > 1e-3, (method, found)


def test_what_one_process_does_alone_mixes_nothing_up(folder):
    (alone,), each = ends(folder, "watched", "1", 1), ends(folder, "watched", "2", 2)
    for name, value in each[0]["state"].items():  # the heads, of which each process had work for one
        assert torch.equal(value, each[1]["state"][name]), name
    start = built(Uneven, "group").state_dict()
    moved = [name for name, value in each[0]["state"].items() if not torch.equal(value, start[name])]
    assert {"heads.0.weight", "heads.1.weight"} <= set(moved)
    assert each[0]["x"] == pytest.approx(alone["x"], abs=1e-5)  # a monitor waits for no other process
    assert not alone["error"] and all("report the same" in end["error"] for end in each)


def test_a_killed_process_ends_the_job_and_others_go_on(folder):
    """Two processes, one killed in its second epoch; then four, the first killed; then one: to the end."""
    two, four, one = json.loads((folder / "resume.json").read_text())
    assert "SIGKILL" in two["error"] and "SIGKILL" in four["error"] and one["error"] is None
    assert two["seconds"] < 60 and four["seconds"] < 60
    assert (two["epochs"], four["epochs"], one["epochs"]) == (1, 2, 4)
    found, expected = (Run.open(folder / name) for name in ("run", "undisturbed"))
    assert losses(found.record) == pytest.approx(losses(expected.record), abs=1e-5)
    ours, theirs = (run.load_resume()["method"] for run in (found, expected))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-5)


PRETRAIN = "pretrain --method simclr --dataset shapes --limit 64 --network conv4 --size 20 --crop 16"
PRETRAIN += " --epochs 1 --batch-size 16 --device cpu --precision fp32 --out"
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
LAUNCH += " --dynamo_backend no --main_process_port {port} -m ssl_lessons"


def test_the_command_line_in_two_processes(tmp_path, capfd):
    """`accelerate launch -m ssl_lessons pretrain …`: the numbers of one process, written and printed once."""
    assert cli.main([*PRETRAIN.split(), str(tmp_path / "one")]) == 0
    alone = capfd.readouterr().out
    with socket.socket() as free:  # a port of 0 is not taken by every version
        free.bind(("127.0.0.1", 0))
        launch = LAUNCH.format(port=free.getsockname()[1])
    command = [sys.executable, *launch.split(), *PRETRAIN.split(), str(tmp_path / "two")]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = [text[text.index("epoch   1/1") :] for text in (alone, done.stdout)]  # after any decoding
    assert printed[1].count("epoch   1/1") == 1
    assert len(printed[1].splitlines()) == len(printed[0].splitlines())
    one, two = (Run.open(tmp_path / name).record for name in ("one", "two"))
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert two["metrics"].keys() == one["metrics"].keys()


FORKED = """
import sys, torch
from accelerate import debug_launcher
from tiny import CPU, moco, noise
from ssl_lessons import pretrain

torch.set_num_threads(2)
torch.rand(500, 500) @ torch.rand(500, 500)  # by OpenMP's threads, which a fork does not have

def train(folder):
    pretrain(moco(), noise(), epochs=1, run=folder, **CPU)

debug_launcher(train, (sys.argv[1],), num_processes=2)
"""


def test_a_fork_of_a_process_with_several_threads_trains(tmp_path):
    """As in a notebook on a laptop, where nobody has set OMP_NUM_THREADS."""
    env = {name: value for name, value in ENV.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", FORKED, str(tmp_path / "run")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(Run.open(tmp_path / "run").record["history"]) == 1


def test_lesson_11_shows_what_several_processes_must_not_forget():
    """In its committed run two processes equal one, and each omission is seen."""
    record = Run.open(HERE.parent / "data" / "results" / "11-imagenette-class.json").record
    apart = {omission: difference for omission, (_, _, difference) in record["omissions"].items()}
    assert apart.pop("nothing") < 1e-5
    assert len(apart) == 3 and min(apart.values()) > 0.05, apart
