"""Faults in a run's files and processes and in what is judged: each is right or refused, never silent.

Real files of a real run are damaged, copied from another run, removed; real processes are ended by signals.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CPU, ENV, HERE, losses, moco, noise
from torch import nn

from ssl_lessons import cli, diagnose, evaluate, networks, records
from ssl_lessons.methods.base import Method, Objective, Recipe
from ssl_lessons.methods.moco import MoCo
from ssl_lessons.records import RecordError, Run
from ssl_lessons.training import TrainingError, pretrain
from ssl_lessons.views import CROP_ONLY

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORK = {"name": "conv4", "image_size": 16, "stem": None, "layer": None}


def conv4(seed=0, **fields) -> MoCo:
    torch.manual_seed(seed)
    fields = {"queue": 8, "head": (16, 8), "batch_size": 8, "epochs": 2, **fields}
    return MoCo(networks.conv4(), image_size=16, recipe="short", **fields)


def train(folder, seed=0, **settings) -> dict:
    run = Run.at(folder, network=NETWORK)
    return pretrain(conv4(seed), noise(16), seed=seed, run=run, **{**CPU, **settings})


def values(record) -> list:
    """A record's rows but for the clock and the memory."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "peak_memory")} for row in record["history"]
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return two_runs(tmp_path_factory.mktemp("finished"))


def two_runs(place: Path) -> Path:
    """A finished and judged run in `place`/0, and another one of seed 1 in `place`/1; returns `place`."""
    for seed in (0, 1):
        train(place / str(seed), seed)
        Run.open(place / str(seed)).add_metric("knn", 0.5 + seed / 8, protocol="planted")
    return place


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished / "0", tmp_path / "run"))


def flip(path: Path, seed: int) -> None:
    data = bytearray(path.read_bytes())
    draw = random.Random(seed)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def same_weights(folder, expected) -> bool:
    ours, theirs = (load_file(place / "encoder.safetensors") for place in (folder, expected))
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


# ---------------------------------------------------------------------------------------------- flipped bits


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_in_resume(folder, finished, fault, seed):
    """The state is the one that was written, or it is refused: no run goes on with other weights."""
    flip(folder / "resume.pt", seed)
    try:
        state = Run.open(folder).load_resume()
    except RecordError as error:
        with fault("a flipped bit in resume.pt").refused(RecordError, says=("resume.pt", "delete it")):
            raise error
    else:
        whole = Run.open(finished / "0").load_resume()
        fault("a flipped bit in resume.pt").right(records.digest(state) == records.digest(whole))


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_in_an_encoder_is_mended(folder, finished, fault, seed, capsys):
    flip(folder / "encoder.safetensors", seed)
    network = networks.conv4()
    Run.open(folder).load_encoder(network)
    expected = load_file(finished / "0" / "encoder.safetensors")
    right = all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    fault("a flipped bit in encoder.safetensors").right(right and same_weights(folder, finished / "0"))


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_in_a_record(folder, finished, fault, seed):
    flip(folder / "record.json", seed)
    kind, whole = fault("a flipped bit in record.json"), Run.open(finished / "0").record
    try:
        record = records._read(folder / "record.json")
    except RecordError as error:
        with kind.refused(RecordError, says="record.json"):
            raise error
        return
    names = [name for name in whole if name in record and name != "checksum"]
    kind.right(len(names) >= len(whole) - 2 and all(record[name] == whole[name] for name in names))


@pytest.mark.parametrize("value", [0.9, 1, None, "0.5"])
def test_a_changed_number_is_refused_in_a_lone_record(folder, fault, value):
    path = folder / "record.json"
    record = json.loads(path.read_text())
    record["metrics"]["knn"]["value"] = value
    path.write_text(json.dumps(record))
    with fault("a number changed in record.json").refused(RecordError, says=("record.json", "checksum")):
        Run.open(path)


# ---------------------------------------------------------------------------------------------- lost files


def lose(folder, other):
    (folder / "encoder.safetensors").unlink()


def swap(folder, other):
    shutil.copy(other / "encoder.safetensors", folder)


def empty(folder, other):
    (folder / "encoder.safetensors").write_bytes(b"")


def zeros(folder, other):
    path = folder / "encoder.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)


def half(folder, other):
    path = folder / "encoder.safetensors"
    save_file({name: t.half() if t.is_floating_point() else t for name, t in load_file(path).items()}, path)


@pytest.mark.parametrize("by", ["pretrain", "evaluate"])
@pytest.mark.parametrize("harm", [lose, swap, empty, zeros, half])
def test_an_encoder_that_is_not_the_runs(folder, finished, fault, harm, by, capsys):
    harm(folder, finished / "1")
    if by == "pretrain":
        train(folder)
    else:
        evaluate.load_encoder(folder)
    kind = fault("an encoder of another run, or none")
    kind.right(same_weights(folder, finished / "0") and "taken from resume.pt" in capsys.readouterr().err)


@pytest.mark.parametrize("harm", [lose, swap, empty, zeros])
def test_an_encoder_that_cannot_be_mended(folder, finished, fault, harm):
    (folder / "resume.pt").unlink()
    harm(folder, finished / "1")
    with fault("an encoder that cannot be mended").refused(
        RecordError, says=("encoder.safetensors", "resume")
    ):
        evaluate.load_encoder(folder)


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"schema": 1}', b"\xff\xfe\x00"])
def test_a_lost_record_is_made_again(folder, finished, fault, content, capsys):
    path = folder / "record.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    record, whole = Run.open(folder).record, Run.open(finished / "0").record
    names = ("history", "seconds", "seed", "recipe", "dataset", "network", "started", "encoder_checksum")
    right = all(record[name] == whole[name] for name in names) and record["metrics"] == {}
    fault("a lost record.json").right(right and "judge it again" in capsys.readouterr().err)
    assert values(train(folder)) == values(whole) and Run.open(path).record["history"] == whole["history"]


def test_a_removed_checkpoint_takes_the_judgement_with_it(folder, fault, capsys):
    (folder / "resume.pt").unlink()
    record = train(folder)
    told = "starts over" in capsys.readouterr().out
    fault("a removed resume.pt").right(told and record["metrics"] == {} and len(record["history"]) == 2)


FOREIGN = {
    "another program's": {"model": {"w": torch.zeros(3)}, "epoch": 3},
    "a list": [1, 2],
    "a tensor": torch.zeros(3),
    "an object": nn.Linear(2, 2),
    "text": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_checkpoint(folder, fault, name, capsys):
    content = FOREIGN[name]
    path = folder / "resume.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with fault("a foreign resume.pt").refused(RecordError, says=("resume.pt", "delete it to start over")):
        try:
            train(folder)
        except RecordError as error:
            assert "weights_only" not in str(error) and error.__suppress_context__ | (not error.__context__)
            raise


def test_a_checkpoint_of_another_seed(folder, finished, fault):
    shutil.copy(finished / "1" / "resume.pt", folder)
    with fault("a resume.pt of another run").refused(
        TrainingError, says=("another seed", "name another folder")
    ):
        train(folder)
    with fault("a resume.pt of another run").refused(TrainingError, says="another seed"):
        train(folder, seed=1)


# ---------------------------------------------------------------------------------------------- two at once


def test_a_judgement_does_not_roll_back_what_was_trained_meanwhile(tmp_path, fault, capsys):
    class Stop(Exception):
        pass

    def stop(row):
        raise Stop

    with pytest.raises(Stop):
        train(tmp_path / "run", on_epoch=stop)
    judged = Run.open(tmp_path / "run")  # one epoch is done
    whole = train(tmp_path / "run")
    with fault("a judgement while a run trains").refused(RecordError, says=("trained on", "judge it again")):
        judged.add_metric("knn", 0.5)
    record = Run.open(tmp_path / "run").record
    fault("a judgement while a run trains").right(record["history"] == whole["history"], "lost")
    fault("a judgement while a run trains").right("knn" not in record["metrics"])


def test_two_judgements_at_once_are_both_kept(folder, fault):
    one, two = Run.open(folder), Run.open(folder)
    one.add_metric("linear_100", 0.25)
    two.add_metric("linear_10", 0.125)
    metrics = {name: metric["value"] for name, metric in Run.open(folder).record["metrics"].items()}
    expected = {"knn": 0.5, "linear_100": 0.25, "linear_10": 0.125}
    fault("two judgements at once").right(metrics == expected, "lost")


def test_a_run_that_was_opened_before_another_finished_it(tmp_path, fault):
    early = Run.at(tmp_path / "run", network=NETWORK)
    whole = train(tmp_path / "run")
    record = pretrain(conv4(), noise(16), run=early, **CPU)
    fault("two runs in one folder").right(values(record) == values(whole))
    late = Run.open(tmp_path / "run")
    with fault("two runs in one folder").refused(TrainingError, says="another seed"):
        pretrain(conv4(1), noise(16), seed=1, run=late, **CPU)


def test_a_judgement_that_cannot_be_written_is_printed(folder, fault, monkeypatch, capsys):
    def full(path, record):
        records.atomically(path, lambda temporary: (_ for _ in ()).throw(OSError(28, "No space left")), 10**6)

    monkeypatch.setattr(records, "_write", full)
    monkeypatch.setattr(evaluate, "report", lambda *a, **k: {"knn": {"value": 0.625, "protocol": "planted"}})
    code = cli.main(["evaluate", str(folder), "--dataset", "shapes", "--limit", "40", "--size", "16"])
    told = capsys.readouterr()
    right = code == 1 and "62.5%" in told.out and "disk full, 1 MB needed" in told.err
    fault("a judgement that cannot be written").right(right, "lost", told.err)


# ---------------------------------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("size", [0, 100, 4000, 60_000])
def test_a_full_disk(folder, tmp_path, fault, size):
    """A limit on the size of files stands for the disk: the system refuses the write in the same place."""
    resource = pytest.importorskip("resource")
    run, before = Run.open(folder), {path.name: path.read_bytes() for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with fault("a full disk").refused(
            RecordError, says=("disk full", "MB needed", "last version is kept")
        ):
            run.save_resume({name: part for name, part in run.load_resume().items() if name != "record"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    fault("a full disk").right(after == before, "lost")


# ---------------------------------------------------------------------------------------------- signals

CHILD = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[4])
import torch
torch.set_num_threads(1)
import test_runs as t

name, at, ignored = sys.argv[2], int(sys.argv[3]), len(sys.argv) > 5
calls = 0
# not what this suite's own shell left: under nohup it would be ignored
signal.signal(getattr(signal, name), signal.SIG_IGN if ignored else signal.SIG_DFL)
method = t.conv4()
step = method.after_step

def after_step(progress):
    global calls
    calls += 1
    if calls == at:
        os.kill(os.getpid(), getattr(signal, name))
    step(progress)

method.after_step = after_step
t.pretrain(method, t.noise(16), run=t.Run.at(sys.argv[1], network=t.NETWORK), **t.CPU)
"""


@pytest.mark.parametrize("name, at", [("SIGTERM", 3), ("SIGHUP", 1)])
def test_a_signal_ends_with_one_line_and_a_checkpoint(tmp_path, finished, fault, name, at):
    command = [sys.executable, "-c", CHILD, str(tmp_path / "run"), name, str(at), str(HERE / "faults")]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    kept = "checkpoint 1 is kept" if at > 2 else "none is kept"
    fault("a signal").answered(done, says=(f"ended by {name}", kept))
    assert done.returncode == -getattr(signal, name) and len(done.stderr.splitlines()) == 1
    record = train(tmp_path / "run")
    right = same_weights(tmp_path / "run", finished / "0")
    fault("a signal").right(right and values(record) == values(Run.open(finished / "0").record), "lost")


def test_a_signal_that_is_ignored_stays_so(tmp_path, fault):
    """nohup's: the run goes on when the terminal is closed."""
    command = [sys.executable, "-c", CHILD, str(tmp_path / "run"), "SIGHUP", "3", str(HERE / "faults"), "x"]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    fault("a signal").right(done.returncode == 0 and len(Run.open(tmp_path / "run").record["history"]) == 2)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # and afterwards all is as before


# ---------------------------------------------------------------------------------------------- too early


def test_a_run_killed_before_its_first_epoch_cannot_be_judged(tmp_path, fault, capsys):
    Run.create(tmp_path / "run", network=NETWORK)
    code = cli.main(["evaluate", str(tmp_path / "run")])
    error = capsys.readouterr().err
    done = subprocess.CompletedProcess([], code, "", error)
    fault("killed before the first epoch").answered(
        done, says=("encoder.safetensors is missing", "no resume.pt")
    )


def test_a_refused_try_does_not_stand_in_the_way(tmp_path, fault):
    Run.at(tmp_path / "run", network={**NETWORK, "name": "resnet18"}, device=torch.device("cpu"))
    with pytest.raises(TrainingError, match="lower it"):
        train(tmp_path / "run", batch_size=100)
    run = Run.at(tmp_path / "run", network=NETWORK)
    fault("a refused first try").right(run.record["network"] == NETWORK)
    fault("a refused first try").right(len(train(tmp_path / "run")["history"]) == 2)


@pytest.mark.parametrize("split", ["", "train", "pretrain"])
def test_a_run_on_a_folder_knows_where_it_was(tmp_path, fault, split):
    inner = tmp_path / "photos" / split
    inner.mkdir(parents=True)
    facts = {"name": f"{inner.name}-26464596", "origin": f"folder {inner}", "split": split or "all"}
    fault("a run on a folder").right(evaluate.place_of(facts) == str(tmp_path / "photos"))
    shutil.rmtree(tmp_path / "photos")
    with fault("a run on a folder").refused(RecordError, says=(str(inner), "gone", "--dataset")):
        evaluate.place_of(facts)


# ---------------------------------------------------------------------------------------------- training


class Told(Method):
    """A method whose embeddings spread as it is told."""

    def __init__(self, spread):
        super().__init__()
        self.recipe = Recipe("told", "a test", optimizer="sgd", lr=0.01, lr_batch=None)
        self.image_size, self.policies, self.spread = 16, (CROP_ONLY,), spread
        self.encoder = networks.tap(networks.conv4(), image_size=16)

    def forward(self, views):
        loss = self.encoder(views[0]).square().mean() - 0.9995
        return Objective(loss, {"embedding_std": torch.tensor(self.spread)})


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.099, 0.101, 0.5, float("nan")])
def test_collapse_from_the_first_epoch(fault, spread):
    expected = diagnose.verdict({"embedding_std": spread}) == "collapsed"
    settings = {**CPU, "epochs": 1, "batch_size": 8}
    if expected:
        with fault("collapse from the first epoch").refused(
            TrainingError, says=("collapse in epoch 1", "lesson 06")
        ):
            pretrain(Told(spread), noise(16), **settings)
    else:
        fault("collapse from the first epoch").right(
            len(losses(pretrain(Told(spread), noise(16), **settings))) == 1
        )


CODE = """
from torch import nn
import torch

class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, x):
        return self.layer(x.mean(dim=(2, 3))){change}

def augment(images):
    return images[:, :, 2:18, 2:18]{change}
"""


def learners(place, change=""):
    """A network and an augmentation of the learner's own, in a file as a cell is."""
    path = place / f"cell{len(list(place.glob('cell*')))}.py"
    path.write_text(CODE.format(change=change))
    names = {"__name__": "__main__"}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return names["Body"], names["augment"]


@pytest.mark.parametrize("part", ["network", "augmentation"])
def test_an_edited_part_under_an_old_run(tmp_path, fault, part):
    def build(change):
        body, augment = learners(tmp_path, change)
        torch.manual_seed(0)
        own = {"augment": augment} if part == "augmentation" else {}
        network = body() if part == "network" else networks.conv4()
        return MoCo(network, image_size=16, recipe="short", queue=8, batch_size=8, epochs=1, **own)

    settings = {**CPU, "run": tmp_path / "run", "stop_on_collapse": False}
    first = pretrain(build(""), noise(16), **settings)
    again = pretrain(build("  # a comment"), noise(16), **settings)
    fault("an edited class under an old run").right(values(again) == values(first))
    with fault("an edited class under an old run").refused(
        TrainingError, says=("setup (network", "another folder")
    ):
        pretrain(build(" * 0.5"), noise(16), **settings)


def test_a_process_that_believes_itself_one_of_several(fault, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with fault("processes that cannot share").refused(TrainingError, says=("WORLD_SIZE is 2", "torchrun")):
        pretrain(moco(), noise(), **CPU)


# ---------------------------------------------------------------------------------------------- judging


@pytest.mark.parametrize("judge", [evaluate.knn, evaluate.linear_probe])
@pytest.mark.parametrize("where", ["train", "test"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e25])
def test_features_that_are_no_numbers(fault, judge, where, value):
    x = {"train": torch.randn(40, 4), "test": torch.randn(8, 4)}
    x[where][3, 2] = value
    with fault("features that are not finite").refused(ValueError, says="features of 1 of"):
        judge(x["train"], torch.arange(40) % 2, x["test"])


LABELS = {
    "negative": (torch.tensor([0, 1, -1, 1]), "a label is -1"),
    "ignored by cross-entropy": (torch.tensor([0, 1, -100, 1]), "a label is -100"),
    "floats": (torch.tensor([0.0, 1.0, 0.0, 1.0]), "whole number"),
    "too few": (torch.tensor([0, 1, 0]), "for each of 4"),
    "one-hot": (torch.eye(4, dtype=torch.int64), "for each of 4"),
    "bools": (torch.tensor([True, False, True, True]), "whole number"),
}


@pytest.mark.parametrize("judge", [evaluate.knn, evaluate.linear_probe])
@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_none(fault, judge, name):
    labels, says = LABELS[name]
    with fault("labels that are none").refused(ValueError, says=says):
        judge(torch.randn(4, 3), labels, torch.randn(2, 3))


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 1, -1, 2], [0, 1, 2]])
def test_a_store_with_labels_out_of_range(fault, labels):
    store = noise(4)
    store.labels = torch.tensor(labels)
    with fault("labels that are none").refused(ValueError, says="noise (train)"):
        evaluate.labels_of(store)


def test_an_encoder_that_makes_nan(fault):
    network = networks.tap(networks.conv4(), image_size=16)
    next(network.parameters()).data.fill_(float("nan"))
    with fault("features that are not finite").refused(ValueError, says="16 of 16 images"):
        evaluate.features(network, noise(16), 16, "cpu")


@pytest.mark.parametrize("k", [9, 20, 200])
def test_k_falls_to_the_number_of_images(fault, k):
    torch.manual_seed(0)
    x, y, test = torch.randn(8, 4), torch.arange(8) % 3, torch.randn(5, 4)
    with pytest.warns(UserWarning, match=f"k {k} is more than the 8 training images"):
        predicted = evaluate.knn(x, y, test, k=k)
    fault("k above the number of images").right(torch.equal(predicted, evaluate.knn(x, y, test, k=8)))


def test_a_judgement_of_few_images_names_its_k(fault):
    network = networks.tap(networks.conv4(), image_size=16)
    with pytest.warns(UserWarning, match="k 20"):
        metric = evaluate.judge(network, noise(12), noise(6), 16, device="cpu", fractions=())["knn"]
    fault("k above the number of images").right("k 12," in metric["protocol"])


@pytest.mark.parametrize("harm", ["flip", "foreign", "cut"])
def test_a_damaged_cache_of_features_is_made_again(tmp_path, fault, harm):
    network = networks.tap(networks.conv4(), image_size=16)
    first = evaluate.features(network, noise(16), 16, "cpu", cache=tmp_path)
    (path,) = tmp_path.glob("*.pt")
    data = path.read_bytes()
    start = data.index(first[0].numpy().tobytes())
    harmed = data[:start] + bytes([data[start] ^ 64]) + data[start + 1 :]
    path.write_bytes({"flip": harmed, "foreign": b"hello", "cut": data[:-100]}[harm])
    again = evaluate.features(network, noise(16), 16, "cpu", cache=tmp_path)
    fault("a damaged cache of features").right(torch.equal(again, first))


def test_a_cache_of_features_is_of_its_code(tmp_path, fault):
    made = []
    for change in ("", " * 2"):
        torch.manual_seed(0)
        network = learners(tmp_path, change)[0]()
        made.append(evaluate.features(network, noise(16), 16, "cpu", cache=tmp_path / "cache"))
    fault("a cache of features of other code").right(torch.equal(made[1], 2 * made[0]))


# ----------------------------------------------------------------------------------- while it trains


def test_a_judgement_made_while_the_run_trains_is_kept(tmp_path, fault):
    def judge(row):
        Run.open(tmp_path / "run").add_metric(f"at {row['epoch']}", 0.5)

    record = pretrain(
        conv4(), noise(16), run=Run.at(tmp_path / "run", network=NETWORK), on_epoch=judge, **CPU
    )
    fault("two judgements at once").right(len(record["history"]) == 2 and "at 1" in record["metrics"], "lost")


def test_a_judgement_of_an_earlier_epoch_is_not_that_of_the_finished_run(tmp_path, fault):
    class Cut(Exception):
        pass

    def cut(row):
        raise Cut

    with pytest.raises(Cut):
        pretrain(conv4(), noise(16), run=Run.at(tmp_path / "run", network=NETWORK), on_epoch=cut, **CPU)
    Run.open(tmp_path / "run").add_metric("knn", 0.9)
    record = train(tmp_path / "run")
    fault("rolled back").right(len(record["history"]) == 2 and "knn" not in record["metrics"])


def test_one_of_two_augmentations_of_one_name_is_edited(tmp_path, fault):
    def views(first):
        return conv4(augment=first, augment2=lambda x: x.flip(-1)[..., :16, :16])

    folder = tmp_path / "run"
    pretrain(views(lambda x: x[..., :16, :16] * 0.5), noise(16), run=Run.at(folder, network=NETWORK), **CPU)
    with fault("edited code").refused(TrainingError, says="run"):
        pretrain(views(lambda x: x[..., :16, :16] * 0.9), noise(16), run=folder, **CPU)


@pytest.mark.parametrize("t", [float("nan"), 0.0, -1.0])
def test_a_temperature_of_knn_that_is_none(t, fault):
    x, y = torch.eye(4), torch.arange(4)
    with fault("labels and features").refused(ValueError, says="above 0"):
        evaluate.knn(x, y, x, k=1, t=t)


@pytest.mark.parametrize("name", ["train", "Train", "TRAINING"])
def test_the_place_of_a_split_in_any_case(tmp_path, name, fault):
    (tmp_path / name).mkdir()
    dataset = {"name": "zoo", "split": "train", "origin": f"folder {tmp_path / name}"}
    fault("a run on a folder").right(evaluate.place_of(dataset) == str(tmp_path))


def test_test_images_that_were_trained_on_get_a_word(fault):
    store, other = noise(12), noise(12, size=24)
    with pytest.warns(UserWarning, match="12 of 12 test images are training images too"):
        evaluate.judge(evaluate.random_encoder("conv4", 16), store, store, 16, fractions=())
    fault("leaks").right(len(other.copies(store)) == 0)
