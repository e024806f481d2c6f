"""What a kill leaves behind, and what is noticed when a run goes wrong: real kills, real faults."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tiny import CPU, ENV, HERE, losses, moco, noise
from torch import nn
from torch.nn.functional import normalize
from torchvision.models import resnet18

from ssl_lessons import networks, records, training
from ssl_lessons.methods.base import Method, Objective, Recipe, embedding_std
from ssl_lessons.methods.moco import MoCo
from ssl_lessons.records import RecordError, Run
from ssl_lessons.training import TrainingError, pretrain
from ssl_lessons.views import CROP_ONLY

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------------------- kill -9

RECIPES = {
    "short": {"start": 3},  # AdamW, symmetric
    "split": {
        "start": 3,
        "recipe": "small_data",
        "splits": 2,
        "queue": 20,
    },  # keys shuffled by the global generator
}
CHILD = """
import os, signal, sys, time
import torch
import tiny, test_resume
from ssl_lessons.records import Run
from ssl_lessons.training import pretrain

torch.set_num_threads(1)
folder, recipe, where, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
method = tiny.moco(**test_resume.RECIPES[recipe])
calls = 0

def dying(original):
    def call(*args, **keywords):
        global calls
        calls += 1
        if where == "slow":
            time.sleep(0.2)
        elif calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **keywords)
    return call

if where in ("step", "slow"):
    method.after_step = dying(method.after_step)
else:
    setattr(Run, where, dying(getattr(Run, where)))
pretrain(method, tiny.noise(), epochs=3, run=folder, **{**tiny.CPU, "progress": "lines"})
"""


def same(one, two) -> bool:
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def what_counts(run: Run) -> dict:
    """The state of a run but for its clock."""
    state = run.load_resume()
    clock = ("seconds", "peak_memory")
    history = [{name: row[name] for name in row if name not in clock} for row in state["history"]]
    parts = {name: part for name, part in state.items() if name not in ("seconds", "record")}
    return {**parts, "history": history}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Final states of runs that nobody killed, by recipe."""
    torch.set_num_threads(1)
    ends = {}
    for name, settings in RECIPES.items():
        folder = tmp_path_factory.mktemp(name)
        pretrain(moco(**settings), noise(), epochs=3, run=folder, **CPU)
        ends[name] = what_counts(Run.open(folder))
    return ends


def finish_and_compare(folder, recipe, expected):
    torch.manual_seed(12345)  # the process that goes on has drawn other numbers
    pretrain(
        moco(**{**RECIPES[recipe], "start": 99}), noise(), epochs=3, run=folder, **CPU
    )  # and other weights
    run = Run.open(folder)
    found = what_counts(run)
    assert same(found["method"]["queue"], expected["method"]["queue"])
    assert found["method"]["pointer"] == expected["method"]["pointer"]
    assert found["history"] == expected["history"] and same(found, expected)
    assert len(run.record["history"]) == 3 and not list(folder.glob("*.tmp"))
    network = networks.Conv4((4, 4, 8, 8))
    run.load_encoder(network)
    kept = {name.removeprefix("encoder.network."): t for name, t in expected["method"].items()}
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "recipe, where, count, epochs",
    [
        ("split", "step", 5, 1),  # in the middle of the second epoch
        ("short", "save_encoder", 2, 1),  # resume.pt is written, encoder and record are not
        ("split", "save", 5, 2),  # the last record (two start the run) is not written, all else is
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, undisturbed, recipe, where, count, epochs):
    command = [sys.executable, "-c", CHILD, str(tmp_path), recipe, where, str(count)]
    assert subprocess.run(command, env=ENV, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert len(Run.open(tmp_path).record["history"]) == epochs, "killed at another moment than meant"
    finish_and_compare(tmp_path, recipe, undisturbed[recipe])


def test_a_run_killed_from_outside_goes_on(tmp_path, undisturbed):
    command = [sys.executable, "-c", CHILD, str(tmp_path), "short", "slow", "0"]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline().startswith("epoch   1/3")
        time.sleep(0.3)
        child.kill()
    (tmp_path / "resume.pt.1.tmp").write_bytes(b"half")  # as a kill in the middle of a write leaves it
    assert len(Run.open(tmp_path).record["history"]) < 3
    finish_and_compare(tmp_path, "short", undisturbed["short"])


# ---------------------------------------------------------------------------------------------- going on


def test_a_finished_run_returns_at_once(tmp_path):
    done = moco()
    record = pretrain(done, noise(), run=tmp_path, **CPU)
    Run.open(tmp_path).add_metric("knn", 0.5, protocol="k 20")

    def written() -> dict:  # some versions of filelock touch its file
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"}

    files = written()
    again = moco(start=7)
    again.forward = None  # nothing is trained
    found = pretrain(again, noise(), run=tmp_path, **CPU)
    assert found["history"] == record["history"] and found["metrics"]["knn"]["value"] == 0.5
    assert same(again.state_dict(), done.state_dict())
    assert files == written()


def test_other_settings_are_refused_with_the_way_out(tmp_path):
    pretrain(moco(), noise(), run=tmp_path, **CPU)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for method, store, settings, named in (
        (moco(), noise(), {"seed": 1}, "another seed: 0, not 1"),
        (moco(), noise(), {"epochs": 5}, "another epochs: 2, not 5"),
        (moco(), noise(), {"batch_size": 4}, "another batch_size: 8, not 4"),
        (
            moco(temperature=0.5),
            noise(),
            {},
            "another recipe: {'temperature': 0.2}, not {'temperature': 0.5}",
        ),
        (
            moco(),
            noise(32),
            {},
            "another dataset: {'fingerprint': '24-20', 'images': 24}, not {'fingerprint'",
        ),
        (
            Poisoned(networks.Conv4(), image_size=16, recipe=moco().recipe),
            noise(),
            {},
            "another method: 'MoCo'",
        ),
    ):
        with pytest.raises(TrainingError) as caught:
            pretrain(method, store, run=tmp_path, **settings, **CPU)
        assert named in str(caught.value) and "name another folder" in str(caught.value)
    wider = MoCo(networks.Conv4((4, 4, 8, 16)), image_size=16, recipe=moco().recipe)
    with pytest.raises(
        TrainingError, match="the setup .network.* is not the one that made .*name another folder"
    ):
        pretrain(wider, noise(), run=tmp_path, **CPU)
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def as_of_an_older_version(run, record, change=lambda state: None) -> None:
    """Rewrite a run without checksums, and resume.pt without the record."""
    record = {name: part for name, part in record.items() if "checksum" not in name}
    (run / "record.json").write_text(json.dumps(record))
    state = torch.load(run / "resume.pt", weights_only=True)
    state.pop("record", None), state.pop("checksum", None)
    change(state)
    torch.save(state, run / "resume.pt")


EDITED = """
from ssl_lessons.methods.moco import MoCo

class Mine(MoCo):
    def after_step(self, progress=0.0):
        super().after_step(progress){change}
"""


def learners(folder, change=""):
    """MoCo with a class of the learner's own, defined in a file."""
    code, path = EDITED.format(change=change), folder / f"cell{len(change)}.py"
    path.write_text(code)
    names = {"__name__": "__main__"}
    exec(compile(code, str(path), "exec"), names)
    torch.manual_seed(0)
    return names["Mine"](networks.Conv4((4, 4, 8, 8)), image_size=16, recipe=moco().recipe)


def test_an_edited_class_does_not_get_the_old_history(tmp_path):
    run = tmp_path / "run"
    first = pretrain(learners(tmp_path), noise(), run=run, **CPU)
    files = {path.name: path.read_bytes() for path in run.iterdir()}
    assert (
        pretrain(learners(tmp_path, "  # thought about"), noise(), run=run, **CPU)["history"]
        == first["history"]
    )
    with pytest.raises(TrainingError, match="the code of Mine is not the one that .*name another folder"):
        pretrain(learners(tmp_path, "; self.step += 1"), noise(), run=run, **CPU)
    assert files == {path.name: path.read_bytes() for path in run.iterdir()}  # nothing is lost
    record = json.loads((run / "record.json").read_text())
    del record["source"], record["setup"]
    as_of_an_older_version(run, record)
    again = pretrain(learners(tmp_path, "; self.step += 1"), noise(), run=run, **CPU)
    assert again["history"] == first["history"]


def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path, undisturbed):
    command = [sys.executable, "-c", CHILD, str(tmp_path), "short", "slow", "0"]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline().startswith("epoch   1/3")
        with pytest.raises(RecordError, match="another process is writing into"):
            pretrain(moco(**RECIPES["short"]), noise(), epochs=3, run=tmp_path, **CPU)
        child.communicate()
    assert child.returncode == 0
    found = what_counts(Run.open(tmp_path))
    assert same(found, undisturbed["short"])


def test_without_its_checkpoint_a_run_starts_over(tmp_path):
    whole = pretrain(moco(), noise(), run=tmp_path, **CPU)
    before = losses(whole)
    (tmp_path / "resume.pt").unlink()  # as the message of a damaged one advises
    assert losses(pretrain(moco(), noise(), run=tmp_path, **CPU)) == before
    assert len(Run.open(tmp_path).record["history"]) == 2


def test_a_run_object_may_be_passed_on_disk_or_in_memory(tmp_path):
    on_disk, in_memory = Run.create(tmp_path / "run", network={"name": "conv4"}), Run.in_memory()
    for run in (on_disk, in_memory):
        run.add_metric("knn_random", 0.25, protocol="before training")
        assert pretrain(moco(), noise(), run=run, **CPU) is run.record
        assert len(run.record["history"]) == 2 and run.record["metrics"]["knn_random"]["value"] == 0.25
    assert (
        Run.open(tmp_path / "run").record == on_disk.record and on_disk.record["network"]["name"] == "conv4"
    )


def test_a_monitor_may_return_numpy_numbers(tmp_path):
    def monitor(encoder):
        return {"knn": np.float64(0.5), "other": np.float32(0.25)}

    first = pretrain(moco(), noise(), run=tmp_path, monitor=monitor, **CPU)
    assert pretrain(moco(), noise(), run=tmp_path, monitor=monitor, **CPU)["history"] == first["history"]
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert state["history"][0]["knn"] == 0.5 and type(state["history"][0]["other"]) is float


# ---------------------------------------------------------------------------------------------- going wrong


def test_an_absurd_rate_is_noticed_before_anything_is_kept(tmp_path):
    method = moco(lr=1e30, optimizer="sgd", warmup=0.0)
    with pytest.raises(TrainingError, match=r"in epoch 1 \(none is kept\); try a lower lr, a longer warm-up"):
        pretrain(method, noise(), run=tmp_path / "run", **CPU)
    assert not (tmp_path / "run" / "resume.pt").exists()
    assert Run.open(tmp_path / "run").record["history"] == []


class Poisoned(MoCo):
    """MoCo that meets a bad batch: "loss" makes the loss NaN, "gradient" only what flows back from it."""

    _poison, _at, _steps = "", -1, 0  # no settings of the run

    def forward(self, views):
        objective = super().forward(views)
        self._steps += 1
        if self._poison and self._steps > self._at:
            zero = sum(p.sum() for p in self.projector.parameters()) * 0
            bad = zero.sqrt() if self._poison == "gradient" else zero * float("nan")  # √ at 0 has slope 0 · ∞
            return Objective(objective.loss + bad, objective.diagnostics)
        return objective


@pytest.mark.parametrize("poison, steps", [("loss", 7), ("gradient", 8)])  # 3 steps an epoch: the third epoch
def test_nan_is_noticed_and_the_last_good_checkpoint_is_usable(tmp_path, poison, steps):
    def method(**fields):
        torch.manual_seed(0)
        fields |= {"queue": 20, "head": (16, 8), "batch_size": 8, "epochs": 4}
        return Poisoned(networks.Conv4((4, 4, 8, 8)), image_size=16, recipe="short", **fields)

    whole = pretrain(method(), noise(), run=tmp_path / "whole", **CPU)
    ill = method()
    ill._poison, ill._at = poison, steps
    problem = "the loss is nan" if poison == "loss" else "a weight is NaN"
    with pytest.raises(TrainingError, match=rf"{problem}.* in epoch 3 \(checkpoint 2 is kept in .*ill\)"):
        pretrain(ill, noise(), run=tmp_path / "ill", **CPU)
    kept = Run.open(tmp_path / "ill")
    assert losses(kept.record) == losses(whole)[:2]
    kept.load_encoder(networks.Conv4((4, 4, 8, 8)))
    assert losses(pretrain(method(), noise(), run=kept, **CPU)) == losses(whole)  # well again, it goes on


class Collapsing(Method):
    """Two views pulled together and nothing that pushes apart: the textbook collapse."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.recipe = Recipe(
            "collapsing", "a test", optimizer="adam", lr=0.01, lr_batch=None, schedule="constant"
        )
        self.image_size, self.policies = 16, (CROP_ONLY, CROP_ONLY)
        self.encoder = networks.tap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 16)), image_size=16)
        self.centre = nn.Parameter(torch.randn(16) / 10_000)  # the short way out: the same answer for all

    def forward(self, views):
        one, two = (normalize(self.encoder(view) + 3000 * self.centre, dim=1) for view in views)
        loss = 2 - 2 * (one * two).sum(dim=1).mean()
        return Objective(loss, {"embedding_std": embedding_std(one.detach())})


def test_collapse_is_noticed_and_may_be_watched(tmp_path):
    settings = {**CPU, "epochs": 12, "batch_size": 12, "run": tmp_path / "run"}
    with pytest.raises(
        TrainingError, match="embeddings collapse in epoch .*stop_on_collapse=False"
    ) as caught:
        pretrain(Collapsing(), noise(48), **settings)
    kept = Run.open(tmp_path / "run")
    done = len(kept.record["history"])
    assert 1 <= done < 12 and f"checkpoint {done} is kept in {kept.folder}" in str(caught.value)
    watched = pretrain(Collapsing(), noise(48), **settings, stop_on_collapse=False)["history"]
    assert watched[:done] == kept.record["history"] and len(watched) == 12
    spread = [row["embedding_std"] for row in watched]
    assert spread[0] > 0.1 and spread[-1] < 0.1 * spread[0] and watched[-1]["loss"] < 0.01  # a splendid loss


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()],
    ids=["GPU", "Python"],
)
def test_out_of_memory_is_answered_with_the_batch_to_try(error):
    method = moco()
    method.forward = lambda views: (_ for _ in ()).throw(error)
    with pytest.raises(TrainingError, match="a batch of 8 at 16 pixels does not fit.*try batch_size=4"):
        pretrain(method, noise(), **CPU)


def test_other_errors_pass_as_they_are():
    method, error = moco(), RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    method.forward = lambda views: (_ for _ in ()).throw(error)
    with pytest.raises(RuntimeError) as caught:
        pretrain(method, noise(), **CPU)
    assert caught.value is error and error.__cause__ is None


MEMORY = """
import resource
import tiny as t
from ssl_lessons import networks
from ssl_lessons.methods.moco import MoCo
from ssl_lessons.training import TrainingError, pretrain
import torch
torch.set_num_threads(1)
store = t.noise(256, 32)
method = MoCo(networks.conv4(), image_size=48, recipe="short", queue=64, batch_size=256, epochs=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    pretrain(method, store, **t.CPU)
except TrainingError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is enforced on Linux")
def test_a_machine_really_out_of_memory_is_told_the_batch_to_try():
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=env, capture_output=True, text=True)
    expected = "a batch of 256 at 48 pixels does not fit in the memory of this machine; try batch_size=128"
    assert expected in done.stdout, done.stderr[-2000:]


def test_the_kept_encoder_loads_into_plain_torchvision(tmp_path):
    network = networks.resnet18(32, stem="imagenet")
    method = MoCo(network, image_size=32, recipe="moco_v2", queue=8, batch_size=4, epochs=1)
    pretrain(method, noise(4, 32), run=tmp_path / "run", **CPU)
    plain = resnet18(weights=None)
    Run.open(tmp_path / "run").load_encoder(plain)  # strict
    assert torch.equal(plain.layer4[1].conv2.weight, network.layer4[1].conv2.weight)


def test_a_run_of_an_older_version_goes_on_where_it_stopped(tmp_path):
    """Its record lacks the fields that a recipe got since, its optimiser's groups their rate's factor."""
    whole = pretrain(moco(), noise(), epochs=2, **CPU)
    stopped = {"on_epoch": lambda row: 1 / 0}
    with pytest.raises(ZeroDivisionError):
        pretrain(moco(), noise(), epochs=2, run=tmp_path, **stopped, **CPU)
    record = json.loads((tmp_path / "record.json").read_text())
    assert len(record["history"]) == 1
    for name in ("predictor_lr", "predictor_weight_decay"):
        del record["recipe"][name]

    def change(state):
        for group in state["optimizer"]["param_groups"]:
            del group["scale"]

    as_of_an_older_version(tmp_path, record, change)
    again = pretrain(moco(), noise(), epochs=2, run=tmp_path, **CPU)
    assert losses(again) == losses(whole)
    record["recipe"]["lr"] = 7.0
    as_of_an_older_version(tmp_path, record)
    with pytest.raises(TrainingError, match="another recipe: {'lr': 7.0}"):
        pretrain(moco(), noise(), epochs=2, run=tmp_path, **CPU)


def test_a_run_gone_on_with_under_another_version_goes_on_under_its_own(tmp_path, monkeypatch):
    """What another version says of a set-up is not noted as that of the record's version."""

    def an_epoch() -> None:
        with pytest.raises(ZeroDivisionError):
            pretrain(moco(), noise(), epochs=4, run=tmp_path, on_epoch=lambda row: 1 / 0, **CPU)

    an_epoch()
    setup, own = (Run.open(tmp_path).record[name] for name in ("setup", "versions"))
    with monkeypatch.context() as there:
        there.setattr(records, "versions", lambda: {**own, "torch": "0"})
        there.setattr(training, "_setup_of", lambda method: "as it is said there")
        an_epoch()
    assert Run.open(tmp_path).record["setup"] == setup
    an_epoch()
    monkeypatch.setattr(training, "_setup_of", lambda method: "another set-up")
    with pytest.raises(TrainingError, match="the setup"):
        pretrain(moco(), noise(), epochs=4, run=tmp_path, **CPU)
