"""What a run is besides its code: its set-up, its draws, what watches it. Networks as people set them up."""

import dataclasses
import functools
import itertools
import json
import logging
import math
import random
import shutil
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_runs import NETWORK, train, two_runs
from tiny import CPU, losses, noise
from torch import nn
from torchvision.transforms import v2

from ssl_lessons import evaluate, lab, networks, records
from ssl_lessons.methods.base import Method, Objective, Recipe
from ssl_lessons.methods.byol import BYOL
from ssl_lessons.methods.moco import MoCo
from ssl_lessons.methods.simclr import SimCLR
from ssl_lessons.parameters import Unknown
from ssl_lessons.records import RecordError, Run, Unreadable
from ssl_lessons.training import TrainingError, pretrain
from ssl_lessons.views import CROP_ONLY, MEAN, STD

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the network is read at", "ignore:queue .* is longer"),
]
SETTINGS = {**CPU, "stop_on_collapse": False}


def body(act=None, stride=1, pool=nn.AdaptiveAvgPool2d, **_) -> nn.Sequential:
    layers = [nn.Conv2d(3, 8, 3, stride), nn.BatchNorm2d(8), act or nn.ReLU(), pool(1), nn.Flatten()]
    return nn.Sequential(*layers)


def method(kind=SimCLR, network=None, layer=None, **fields):
    torch.manual_seed(0)
    fields = {"batch_size": 8, "epochs": 1, **({"queue": 16} if kind is MoCo else {}), **fields}
    return kind(network or body(), layer, image_size=16, recipe="short", **fields)


class Scaled(SimCLR):
    """A learner's own: its loss has a factor that is no field of a recipe."""

    alpha = 1.0

    def forward(self, views):
        objective = super().forward(views)
        return Objective(self.alpha * objective.loss, objective.diagnostics)


def scaled(alpha):
    own = method(Scaled)
    own.alpha = alpha
    return own


def times(images, factor):
    return images[:, :, 2:18, 2:18] * factor


def closed(factor):
    return lambda images: times(images, factor)


def frozen(which):
    network = body()
    network[1].train(not which)
    return method(network=network)


def written(code: str, change="", **names):
    """What a cell of a learner's defines: names of `code`, with a change of it."""
    names |= {"__name__": "__main__", "SimCLR": SimCLR, "Objective": Objective, "torch": torch, "nn": nn}
    names |= {"dataclasses": dataclasses, "functools": functools, "logging": logging}
    exec(code.replace("HALF", change or "0.5"), names)
    return names


CELLS = {  # each with a number that changes what is learnt, where neither class nor recipe says it
    "a global function": """
def mine(loss): return HALF * loss
class Own(SimCLR):
    def forward(self, views):
        objective = super().forward(views)
        return Objective(mine(objective.loss), objective.diagnostics)
""",
    "a global number": """
factor = HALF
class Own(SimCLR):
    def forward(self, views):
        objective = super().forward(views)
        return Objective(factor * objective.loss, objective.diagnostics)
""",
    "a list of the class": """
class Own(SimCLR):
    factors = [HALF]
    def forward(self, views):
        objective = super().forward(views)
        return Objective(self.factors[0] * objective.loss, objective.diagnostics)
""",
    "a dataclass": """
@dataclasses.dataclass
class Times:
    by: float = 1.0
    def __call__(self, images): return images[:, :, 2:18, 2:18] * HALF * self.by
augment = Times()
""",
    "a bound method": """
class Times:
    def __init__(self, by): self.by = by
    def go(self, images): return images[:, :, 2:18, 2:18] * self.by
augment = Times(HALF).go
""",
    "a keyword's default": "def augment(images, *, by=HALF): return images[:, :, 2:18, 2:18] * by",
    "an array": """
class Times(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = np.array([HALF])
    def forward(self, images): return images[:, :, 2:18, 2:18] * float(self.by[0])
augment = Times()
""",
}


@pytest.mark.filterwarnings("ignore:.*draws once")
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_that_was_edited_and_run_again(tmp_path, fault, name):
    kind = fault("another set-up under an old run")

    def built(change="", above=""):
        names = written(above + CELLS[name], change, np=np)
        own = {"augment": names["augment"]} if "augment" in names else {}
        return method(names.get("Own", SimCLR), **own)

    first = pretrain(built(), noise(16), run=tmp_path / "run", **SETTINGS)
    again = pretrain(built("0.5", "# a comment\n"), noise(16), run=tmp_path / "run", **SETTINGS)
    kind.right(losses(again) == losses(first), "lost")
    with kind.refused(TrainingError, says=("is not the one that made", "another folder")):
        pretrain(built("0.25"), noise(16), run=tmp_path / "run", **SETTINGS)


QUIET = {  # what is no setting: the same cell, run again, goes on
    "what it has counted": """
class Own(SimCLR):
    def forward(self, views):
        self.calls = getattr(self, "calls", 0) + 1
        self.last = views[0].detach()
        return super().forward(views)
""",
    "a logger": """
class Own(SimCLR):
    def build(self, r):
        self.log = logging.getLogger("mine")
        self.lock = __import__("threading").Lock()
        return super().build(r)
""",
    "functions in a tuple": """
def one(x): return x
class Own(SimCLR):
    stages = (one, one, lambda x: x)
""",
    "a module closed over": """
def outer():
    import numpy, torch
    return lambda images: torch.flip(images[:, :, 2:18, 2:18], (-1,)) * float(numpy.float32(1))
augment = outer()
""",
}


@pytest.mark.parametrize("name", QUIET)
def test_what_is_no_setting_refuses_no_run(tmp_path, fault, name):
    kind = fault("what is no set-up")

    def built():
        names = written(QUIET[name])
        own = {"augment": names["augment"]} if "augment" in names else {}
        return method(names.get("Own", SimCLR), **own)

    own = built()
    first = pretrain(own, noise(16), run=tmp_path / "run", **SETTINGS)
    for again in (own, built()):  # the same object, and another kernel's
        kind.right(pretrain(again, noise(16), run=tmp_path / "run", **SETTINGS) == first, "lost")
    evaluate.features(own.encoder, noise(16), 16, "cpu", cache=tmp_path / "cache")


def test_a_lambdas_line_may_be_reworded(tmp_path, fault):
    first = method(augment=lambda images: images[:, :, 2:18, 2:18] * 0.5)
    pretrain(first, noise(16), run=tmp_path, **SETTINGS)
    other, word = method(augment=lambda images: images[:, :, 2:18, 2:18] * 0.5), "another word"
    fault("what is no set-up").right(pretrain(other, noise(16), run=tmp_path, **SETTINGS) and word)


def test_a_look_at_ones_own_network_freezes_nothing(fault):
    network, seen = body(), []
    own = method(network=network)
    network.eval()
    with torch.no_grad():
        network(torch.rand(2, 3, 16, 16))
    monitor = lambda f: (network.eval(), seen.append(network[1].running_mean.clone()), {})[-1]  # noqa: E731
    pretrain(own, noise(16), epochs=3, monitor=monitor, **SETTINGS)
    moved = [not torch.equal(one, other) for one, other in itertools.pairwise([torch.zeros(8), *seen])]
    fault("frozen BatchNorm").right(moved == [True] * 3)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_monitor_that_is_interrupted_loses_no_epoch(tmp_path, fault, stop):
    def monitor(encoder):
        raise stop

    with pytest.raises(stop):
        pretrain(method(epochs=2), noise(16), run=tmp_path, monitor=monitor, **SETTINGS)
    fault("odd monitors").right(len(Run.open(tmp_path).record["history"]) == 1, "lost")


@pytest.mark.filterwarnings("ignore:.*draws once")
def test_a_bicubic_augmentation_is_clamped(fault):
    mode = v2.InterpolationMode.BICUBIC
    own = method(augment=v2.RandomResizedCrop(16, interpolation=mode, antialias=True))
    views = own.augment((noise(16).images > 127).to(torch.uint8) * 255)
    low, high = (x.item() for x in torch.cat([unnormalised(view) for view in views]).aminmax())
    fault("augmentations").right(low >= 0 and high <= 1)


def unnormalised(view):
    return view * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


@pytest.mark.filterwarnings("ignore:.*draws once")
def test_an_augmentation_of_a_whole_batch_is_called_with_that(fault):
    own = method(augment=lambda images: images[torch.randperm(16)][:, :, 2:18, 2:18])
    fault("augmentations").right(len(own.augment(noise(16).images)[0]) == 16)


# ---- A run's folder, and a trial's, is of one set-up ----

SETUPS = {
    "an attribute": scaled,
    "an activation": lambda changed: method(network=body(nn.GELU() if changed == 0.5 else nn.ReLU())),
    "a dropout's share": lambda share: method(network=body(nn.Dropout(share / 2))),
    "a stride": lambda share: method(network=body(stride=int(1 / share))),
    "a pooling": lambda share: method(
        network=body(pool=nn.AdaptiveAvgPool2d if share == 1 else nn.AdaptiveMaxPool2d)
    ),
    "a layer": lambda share: method(layer="0" if share == 1 else "1"),
    "frozen statistics": lambda share: frozen(share == 0.5),
    "a transform's numbers": lambda share: method(
        augment=v2.Compose([v2.RandomResizedCrop(16, scale=(0.4 * share, 1), antialias=True)])
    ),
    "a partial's argument": lambda share: method(augment=functools.partial(times, factor=share)),
    "what a function closes over": lambda share: method(augment=closed(share)),
}


@pytest.mark.filterwarnings("ignore:.*draws once")
@pytest.mark.parametrize("name", SETUPS)
def test_a_run_is_of_one_setup(tmp_path, fault, name):
    build, kind = SETUPS[name], fault("another set-up under an old run")
    first = pretrain(build(1.0), noise(16), run=tmp_path / "run", **SETTINGS)
    again = pretrain(build(1.0), noise(16), run=tmp_path / "run", **SETTINGS)
    kind.right(losses(again) == losses(first))
    with kind.refused(TrainingError, says=("setup", "another folder")):
        pretrain(build(0.5), noise(16), run=tmp_path / "run", **SETTINGS)
    kind.right(Run.open(tmp_path / "run").record["history"] == first["history"], "lost")


@pytest.fixture
def lesson(tmp_path):
    facts = {"run_dir": tmp_path, "seed": 0, "device": "cpu", "lesson": "00", "earlier": 0.0, "trials": {}}
    return SimpleNamespace(**facts)


@pytest.mark.filterwarnings("ignore:.*draws once")
@pytest.mark.parametrize("name", SETUPS)
def test_a_trial_is_of_one_setup(lesson, fault, name, capsys):
    build, kind = SETUPS[name], fault("another set-up under an old trial")

    def value(share):
        settings = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
        run = lab.trial(
            lesson, "t", lambda: build(share), noise(16), measure=lambda m: {"q": 1.0}, **settings
        )
        return run.folder

    kind.right(value(1.0) == value(1.0) and value(1.0) != value(0.5))


def test_a_trial_is_of_one_measure_and_whole_or_not_there(lesson, fault):
    kind = fault("a trial half measured")
    settings = {"epochs": 1, "batch_size": 8, "precision": "fp32"}

    def tried(measure):
        return lab.trial(lesson, "t", method, noise(16), measure=measure, **settings).record["metrics"]

    measured = tried(lambda m: {"q": 1.0})["q"]["value"], tried(lambda m: {"q": 2.0})["q"]["value"]
    kind.right(measured == (1.0, 2.0))
    for bad in ("x", torch.zeros(2)):
        with pytest.raises((ValueError, RuntimeError)):
            tried(lambda m, bad=bad: {"a": 0.5, "b": bad})
        kind.right({*tried(lambda m, bad=bad: {"a": 0.7, "b": 0.25})} == {"a", "b"})


def test_what_takes_no_training_does_not_take_a_trained_runs_folder(lesson, tmp_path, fault):
    facts = {"network": "conv4", "view": 16, "stem": None, "precision": "fp32", "profile": "class"}
    facts |= {"batch_size": 8, "epochs": 1, "recipe": "short", "supervised_epochs": 1}
    own = SimpleNamespace(**vars(lesson), **facts)
    run = lab.trained(own, "simclr", noise(16), folder=tmp_path / "run")
    with fault("two runs in one folder").refused(RecordError, says=("SimCLR", "random", "another folder")):
        lab.trained(own, "random", noise(16), folder=tmp_path / "run")
    fault("two runs in one folder").right(Run.open(tmp_path / "run").record == run.record, "lost")


# ---- What is drawn, and what watches ----

DRAWS = {"torch": lambda: torch.rand(()).item(), "Python": random.random, "NumPy": np.random.rand}


def drawing(draw):
    def augment(images):
        return images[:, :, 2:18, 2:18] * draw()

    return augment


@pytest.mark.filterwarnings("ignore:.*draws once")
@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_is_of_every_generator_and_a_resumed_run_goes_on_with_it(tmp_path, fault, name):
    def trained(epochs=3, **settings):
        own = method(augment=drawing(DRAWS[name]), epochs=3)
        return losses(pretrain(own, noise(16), **settings, **SETTINGS))

    def stop(row):
        raise KeyboardInterrupt

    whole, kind = trained(), fault("draws of another library")
    DRAWS[name]()
    kind.right(trained() == whole)
    with pytest.raises(KeyboardInterrupt):
        trained(run=tmp_path / "run", on_epoch=stop)
    DRAWS[name]()
    kind.right(trained(run=tmp_path / "run") == whole)


WATCHES = {
    "draws": lambda: {"monitor": lambda f: {"x": sum(draw() for draw in DRAWS.values())}},
    "seeds": lambda: {"monitor": lambda f: (torch.manual_seed(9), random.seed(9), np.random.seed(9), {})[-1]},
    "on_epoch draws": lambda: {"on_epoch": lambda row: [draw() for draw in DRAWS.values()]},
    "on_epoch writes": lambda: {"on_epoch": lambda row: row.update(loss=0.0)},
    "on_epoch takes": lambda: {"on_epoch": lambda row: row.pop("loss")},
    "on_epoch adds": lambda: {"on_epoch": lambda row: row.update(best=np.float32(1))},
}


@pytest.mark.parametrize("name", WATCHES)
def test_a_run_is_the_same_watched_or_not(tmp_path, fault, name):
    def trained(**settings):
        own = method(MoCo, splits=2, epochs=2)  # its keys are shuffled by a global draw
        return losses(pretrain(own, noise(16), run=tmp_path / str(len(settings)), **settings, **SETTINGS))

    kind = fault("a run that is watched")
    kind.right(trained() == trained(**WATCHES[name]()))
    kind.right(len(Run.open(tmp_path / "1").load_resume()["history"]) == 2, "lost")


MONITORS = {
    "None": lambda f: None,
    "a number": lambda f: 0.5,
    "text": lambda f: {"knn": "abc"},
    "a vector": lambda f: {"knn": torch.zeros(3)},
    "an error": lambda f: 1 / 0,
    "the loss": lambda f: {"loss": 0.0},
    "the epoch": lambda f: {"epoch": 99},
}


@pytest.mark.parametrize("name", MONITORS)
def test_a_monitor_that_fails_loses_no_epoch(tmp_path, fault, name):
    kind, own = fault("odd monitors"), {"epochs": 2}
    with kind.refused(TrainingError, says=("monitor failed in epoch 1", "checkpoint 1 is kept")):
        pretrain(method(**own), noise(16), run=tmp_path, monitor=MONITORS[name], **SETTINGS)
    whole = pretrain(method(**own), noise(16), **SETTINGS)
    kind.right(losses(pretrain(method(**own), noise(16), run=tmp_path, **SETTINGS)) == losses(whole), "lost")


class Reporting(SimCLR):
    """Reports what its attribute `report` gives for the number of the step."""

    def forward(self, views):
        self._step = getattr(self, "_step", -1) + 1
        loss = super().forward(views).loss
        return Objective(loss, self.report(self._step))


REPORTS = {
    "every second step": (lambda step: {"x": 1.0} if step % 2 else {}, 1.0),
    "bfloat16": (lambda step: {"x": torch.tensor(5.0, dtype=torch.bfloat16)}, 5.0),
    "a count in bytes": (lambda step: {"x": torch.tensor(7, dtype=torch.uint8)}, 7.0),
    "a truth": (lambda step: {"x": torch.tensor(step % 2 == 0)}, 0.5),
    "a number": (lambda step: {"x": step}, 79.5),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_historys_mean_is_the_mean(fault, name):
    report, expected = REPORTS[name]
    own = method(Reporting, batch_size=2)
    own.report = report
    record = pretrain(own, noise(320, 16), **SETTINGS)
    fault("means of a history").right(math.isclose(record["history"][0]["x"], expected, rel_tol=1e-5))


CONTRACT = {
    "a tensor": lambda loss: loss,
    "None": lambda loss: None,
    "a vector": lambda loss: Objective(loss.expand(3), {}),
    "no gradient": lambda loss: Objective(loss.detach(), {}),
    "a float": lambda loss: Objective(0.5, {}),
    "a list to watch": lambda loss: Objective(loss, [1]),
    "a vector to watch": lambda loss: Objective(loss, {"x": loss.expand(3)}),
    "a taken name": lambda loss: Objective(loss, {"loss": loss}),
    "another taken name": lambda loss: Objective(loss, {"epoch": 3}),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_what_a_method_returns_is_an_objective(fault, name):
    class Own(SimCLR):
        def forward(self, views):
            return CONTRACT[name](super().forward(views).loss)

    with fault("what a method returns").refused(ValueError, says="Own.forward"):
        pretrain(method(Own), noise(16), **SETTINGS)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(torch.uint8, (8, 3, 16, 16)), (torch.float32, (8, 1, 16, 16)), (torch.float32, (0, 3, 16, 16))],
)
def test_views_that_are_none_are_refused(fault, dtype, shape):
    views = [torch.zeros(shape, dtype=dtype)] * 2
    with fault("what a method is given").refused(ValueError, says=("views are", "floats")):
        method()(views)


def test_a_loss_that_reaches_no_encoder(fault):
    class Cut(Method):
        def __init__(self, cut):
            super().__init__()
            torch.manual_seed(0)
            self.recipe = Recipe("cut", "a test", batch_size=8, epochs=1)
            self.image_size, self.policies = 16, (CROP_ONLY,)
            self.encoder, self.head = networks.tap(body(), image_size=16), nn.Linear(8, 1)
            self._cut = cut

        def forward(self, views):
            features = self.encoder(views[0])
            return Objective(self.head(features.detach() if self._cut else features).square().mean(), {})

    with fault("a run that cannot learn").refused(TrainingError, says=("encoder", "detach")):
        pretrain(Cut(True), noise(16), **SETTINGS)
    fault("a run that cannot learn").right(pretrain(Cut(False), noise(16), **SETTINGS)["history"])


def test_one_method_over_seeds_is_said(fault):
    own, said = method(), []
    for seed in range(2):
        with warnings.catch_warnings(record=True) as words:
            warnings.simplefilter("always")
            pretrain(own, noise(16), seed=seed, **SETTINGS)
        said.append(any("trained before" in str(word.message) for word in words))
    fault("one method over seeds").right(said == [False, True])


def test_a_second_thread_is_refused_and_the_first_stays_as_it_is(fault):
    """Generators and Accelerate's state are of the whole process."""
    alone, outcome = losses(pretrain(method(epochs=3), noise(16), **SETTINGS)), {}

    def other():
        try:
            pretrain(method(), noise(16), **SETTINGS)
        except TrainingError as error:
            outcome["error"] = error

    def start(encoder):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return {}

    first = losses(pretrain(method(epochs=3), noise(16), monitor=start, **SETTINGS))
    fault("two threads").right(first == alone)
    with fault("two threads").refused(TrainingError, says="another thread"):
        raise outcome["error"]


def test_an_autocast_around_a_run_is_refused(fault):
    with (
        torch.autocast("cpu", torch.bfloat16),
        fault("an autocast around").refused(TrainingError, says="autocast"),
    ):
        pretrain(method(), noise(16), **SETTINGS)


def test_an_autocast_around_a_judgement_changes_nothing(fault):
    encoder, store = networks.tap(body(), image_size=16), noise(16)
    expected = evaluate.features(encoder, store, 16, "cpu", "fp32")
    with torch.autocast("cpu", torch.bfloat16):
        got = evaluate.features(encoder, store, 16, "cpu", "fp32")
    fault("an autocast around").right(torch.equal(got, expected))


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.bfloat16, lambda m: m.encoder.double()])
def test_weights_of_another_kind_are_refused(fault, change):
    own = method()
    change(own)
    with fault("networks that do not fit").refused(TrainingError, says=("weights are", "float()")):
        pretrain(own, noise(16), **SETTINGS)


def test_a_default_of_another_kind_is_refused(fault):
    own = method()
    torch.set_default_dtype(torch.float64)
    try:
        with fault("networks that do not fit").refused(TrainingError, says="default dtype"):
            pretrain(own, noise(16), **SETTINGS)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_monitor_may_say_better_what_a_method_reports(fault):
    record = pretrain(method(), noise(16), monitor=lambda f: {"embedding_std": 0.5}, **SETTINGS)
    fault("odd monitors").right(record["history"][-1]["embedding_std"] == 0.5)


@pytest.mark.parametrize("value", [2.5, "two", 0, -1, True, None])
@pytest.mark.parametrize("name", ["epochs", "batch_size", "monitor_every"])
def test_pretrains_own_numbers(fault, name, value):
    if value is None and name != "monitor_every":
        return  # the recipe's
    with fault("values on the way in").refused(Unknown, says=name):
        pretrain(method(), noise(16), **{name: value}, **SETTINGS)


@pytest.mark.parametrize("value", [np.int64(2), 2.0, "2"])
def test_pretrains_own_numbers_as_they_come(fault, value):
    record = pretrain(method(), noise(16), epochs=value, batch_size=value, seed=value, **SETTINGS)
    fault("values on the way in").right((record["epochs"], record["batch_size"], record["seed"]) == (2, 2, 2))


# ---- Files of a run ----


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return two_runs(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("foreign", [("resume.pt",), ("record.json",), ("resume.pt", "record.json")])
def test_a_file_of_another_run_mends_nothing(two, tmp_path, fault, foreign):
    folder = shutil.copytree(two / "0", tmp_path / "run")
    for name in foreign:
        shutil.copy(two / "1" / name, folder)
    (folder / "encoder.safetensors").unlink() if foreign == ("resume.pt",) else None
    kind = fault("a file of another run")
    if len(foreign) == 2:  # then it is the other run, but for an encoder that is made again
        weights, expected = Run.open(folder).encoder(), Run.open(two / "1").encoder()
        kind.right(all(torch.equal(weights[key], tensor) for key, tensor in expected.items()))
        return
    before = (folder / "record.json").read_bytes()
    with kind.refused(RecordError, says=("another run", "resume.pt")):
        evaluate.load_encoder(folder)
    kind.right((folder / "record.json").read_bytes() == before, "lost")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(107, "A Drive has gone")]
)
@pytest.mark.parametrize("name", ["record.json", "resume.pt", "encoder.safetensors"])
def test_what_cannot_be_read_now_is_not_called_damaged(two, tmp_path, fault, name, error, monkeypatch):
    folder = shutil.copytree(two / "0", tmp_path / "run")
    (folder / "encoder.safetensors").unlink() if name == "resume.pt" else None

    def denied(*_, **__):
        raise error

    if name == "resume.pt":
        monkeypatch.setattr(torch, "load", denied)
    else:
        monkeypatch.setattr(type(folder), "read_text" if name == "record.json" else "read_bytes", denied)
    with fault("a file that cannot be read now").refused(Unreadable, says=(name, error.strerror, "nothing")):
        evaluate.load_encoder(folder)


def test_a_newer_versions_record_stays(two, tmp_path, fault):
    folder = shutil.copytree(two / "0", tmp_path / "run")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "schema": records.SCHEMA + 1}))
    before = (folder / "record.json").read_bytes()
    with fault("a newer version's record").refused(RecordError, says=("schema", "update")):
        evaluate.load_encoder(folder)
    fault("a newer version's record").right((folder / "record.json").read_bytes() == before, "lost")


def test_a_folder_may_be_called_like_a_record(tmp_path, fault):
    record = train(tmp_path / "first.json")
    again = train(tmp_path / "first.json")
    fault("names of folders").right(again["history"] == record["history"], "lost")


@pytest.mark.parametrize("metric", [0.5, "0.5", {"value": "0.5"}, {"value": [1, 2]}, {"value": True}, {}])
def test_a_metric_is_a_number(two, tmp_path, fault, metric):
    run = Run.open(shutil.copytree(two / "0", tmp_path / "run"))
    with fault("odd metrics").refused(RecordError, says=("acc", "add_metric")):
        run.update(metrics={"acc": metric})
    fault("odd metrics").right("knn" in Run.open(tmp_path / "run").record["metrics"], "lost")


def test_published_weights_are_those_that_were_trained(tmp_path, fault):
    network = networks.conv4()
    network.blocks[0][1].running_var.fill_(1e5)  # above what half precision holds
    network.blocks[1][1].running_mean.fill_(-7e4)
    Run.in_memory(network=NETWORK).publish(tmp_path, "x", network)
    got = evaluate.pretrained("x", tmp_path).network.state_dict()
    same = [
        torch.allclose(got[name], value, rtol=1e-3, atol=1e-3) for name, value in network.state_dict().items()
    ]
    fault("weights in half precision").right(all(same))


def test_a_name_that_is_too_long(tmp_path, fault):
    with fault("places").refused(RecordError, says="name another folder"):
        train(tmp_path / ("x" * 300))


def test_a_run_knows_where_its_images_lie_now(tmp_path, fault):
    store = noise(16)
    pretrain(method(), store, run=tmp_path / "run", **SETTINGS)
    store.origin = "folder elsewhere"
    pretrain(method(), store, run=tmp_path / "run", **SETTINGS)
    fault("places").right(Run.open(tmp_path / "run").record["dataset"]["origin"] == "folder elsewhere")


def test_a_home_is_one(tmp_path, fault, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fault("places").right(Run.at("~/run").folder == tmp_path / "run")
    monkeypatch.setenv("SSL_LESSONS_RUNS", "runs")
    with fault("places").refused(Unknown, says=("SSL_LESSONS_RUNS", "whole path")):
        lab.runs_folder()


# ---- Networks ----


class Viewed(nn.Module):
    """As tutorials write it: `view` wants contiguous memory."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.last = nn.Linear(4 * 8 * 8, 12)

    def forward(self, x):
        x = self.features(x)
        return self.last(x.view(x.size(0), -1))


class OwnAutocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.conv(x).mean((2, 3))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", [Viewed, OwnAutocast])
@pytest.mark.parametrize("kind", lab.METHODS.values(), ids=lab.METHODS)
def test_a_network_as_tutorials_write_it_trains_and_is_judged(fault, kind, network, precision):
    own = method(kind, network())
    record = pretrain(own, noise(16), **{**SETTINGS, "precision": precision})
    x = evaluate.features(own.encoder, noise(16), 16, "cpu")
    with torch.no_grad():
        plain = own.encoder.network.eval()(evaluate.centre(noise(16).images, 16).contiguous()).float()
    right = torch.allclose(x, plain, atol=1e-5) and math.isfinite(losses(record)[0])
    fault("networks as people write them").right(right and own.encoder.width == x.shape[1])


class TwicePooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 64, 3, padding=1)
        self.avgpool, self.fc = nn.AvgPool2d(2), nn.Linear(1024, 10)

    def forward(self, x):
        x = self.avgpool(self.one(x).relu())
        return self.fc(self.avgpool(self.two(x).relu()).flatten(1))


class EarlyPooled(TwicePooled):
    def forward(self, x):
        return self.fc(nn.functional.avg_pool2d(self.two(self.avgpool(self.one(x))), 2).flatten(1))


@pytest.mark.parametrize("network", [TwicePooled, EarlyPooled])
def test_a_pooling_that_is_not_the_last_is_no_default(fault, network):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        encoder = networks.tap(network(), image_size=16)
    told = any("'fc'" in str(word.message) for word in said)
    fault("default layers").right(encoder.layer is None and encoder.width == 10 and told)


def in_place():
    class Normalised(OwnAutocast):
        def forward(self, x):
            return self.conv(x.sub_(0.5).div_(0.5)).mean((2, 3))

    return Normalised()


def kept_text():
    class Text(OwnAutocast):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    return Text()


def nan_weight():
    network = body()
    network[0].weight.data[0] = math.nan
    return network


@pytest.mark.parametrize(
    ("build", "says"), [(in_place, "in place"), (kept_text, "takes plain tensors"), (nan_weight, "NaN")]
)
def test_a_network_that_cannot_be_trained_is_refused_at_once(fault, build, says):
    with fault("networks that do not fit").refused(ValueError, says=says):
        method(network=build())


def compiled(own):
    return torch.compile(own, backend="eager")


def compiled_encoder(own):
    own.encoder = torch.compile(own.encoder, backend="eager")
    return own


def compiled_network(own):
    own.encoder.network = torch.compile(own.encoder.network, backend="eager")
    return own


@pytest.mark.parametrize("around", [compiled, compiled_encoder, compiled_network, nn.DataParallel])
def test_what_is_around_a_method_is_taken_off(tmp_path, fault, around):
    for _ in range(2):  # the second time it is finished
        record = pretrain(around(method(BYOL)), noise(16), run=tmp_path, **SETTINGS)
    network, plain = body(), pretrain(method(BYOL), noise(16), **SETTINGS)
    Run.open(tmp_path).load_encoder(network)
    fault("wrapped networks").right(losses(record) == losses(plain))


def test_an_encoder_is_trained_on_and_judged(tmp_path, fault):
    for name, network in (("one", networks.conv4()), ("two", None)):
        network = network or evaluate.load_encoder(tmp_path / "one")
        pretrain(method(network=network), noise(16), run=Run.at(tmp_path / name, network=NETWORK), **SETTINGS)
    fault("wrapped networks").right(evaluate.load_encoder(tmp_path / "two").width == 256)


@pytest.mark.parametrize(
    "name", ["timm/resnet18.nonsense", "timm/nothing", "resnet18.foo", "conv4.x", "resnet10_half."]
)
def test_a_network_that_there_is_not(fault, name):
    with fault("names of networks").refused(Unknown, says=(name, "choose one of")):
        networks.build(name, 32)


@pytest.mark.parametrize("size", [(16, 16), "wide", 2.5, None, -1, 0])
def test_a_side_that_is_none(fault, size):
    with fault("names of networks").refused(ValueError, says="image_size"):
        SimCLR(networks.conv4(), image_size=size)
