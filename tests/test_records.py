"""A run on disk: written whole or not at all, verified on load, its weights plain torchvision's."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from ssl_lessons import networks, records
from ssl_lessons.methods.moco import RECIPES
from ssl_lessons.records import REQUIRED, SCHEMA, RecordError, Run, atomically


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", recipe=RECIPES["short"], dataset={"name": "noise"}, seed=3)


# ---------------------------------------------------------------------------------------------- record.json


def test_a_record_says_what_numbers_depend_on_and_is_read_back_equal(run):
    run.add_metric("knn", torch.tensor(0.5), protocol="k 20", images=(4, 2))
    again = Run.open(run.folder)
    assert again.folder == run.folder and again.record == run.record
    assert set(REQUIRED) <= set(again.record) and again.record["schema"] == SCHEMA
    assert torch.__version__.startswith(again.record["versions"]["torch"])  # that may add "+cu132"
    assert again.record["device"].startswith("CPU, ")
    assert again.record["recipe"]["policy"]["jitter"] == list(RECIPES["short"].policy.jitter)
    assert again.record["metrics"]["knn"] == {"value": 0.5, "protocol": "k 20", "images": [4, 2]}
    assert Run.open(run.folder / "record.json").record == run.record  # a lone record file will do


def test_a_record_is_strict_json_without_paths_of_the_machine(run):
    run.update(history=[{"loss": math.nan, "knn": math.inf}], origin=Path("/somewhere/private/photos"))
    text = (run.folder / "record.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text and "/somewhere" not in text
    assert json.loads(text)["history"] == [{"loss": None, "knn": None}]
    assert json.loads(text)["origin"] == "photos"


def test_a_run_in_memory_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run.in_memory(seed=1)
    run.update(seed=2)
    run.add_metric("knn", 0.5)
    assert run.folder is None and run.record["seed"] == 2
    assert not list(tmp_path.iterdir())


DAMAGED = {
    "cut short": ('{"schema": 1, "vers', "is damaged"),
    "empty": ("", "is damaged"),
    "not text": (b"\xff\xfe\x00\x80", "is damaged"),
    "a list": ("[1, 2]", "no schema number"),
    "another program's": ('{"name": "x"}', "no schema number"),
    "a schema of words": ('{"schema": "one"}', "no schema number"),
    "newer": (json.dumps({"schema": SCHEMA + 1}), f"schema {SCHEMA + 1}.*reads up to {SCHEMA}"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_named(run, kind):
    content, message = DAMAGED[kind]
    path = run.folder / "record.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecordError, match=message) as caught:
        Run.open(run.folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("part", [name for name in REQUIRED if name != "schema"])
def test_a_missing_part_is_named(run, part):
    path = run.folder / "record.json"
    record = {name: value for name, value in run.record.items() if name != part}
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(RecordError, match=f"record.json lacks {part};"):
        Run.open(run.folder)


def test_a_part_of_the_wrong_kind_is_named(run):
    (run.folder / "record.json").write_text(json.dumps({**run.record, "history": {}, "metrics": 3}))
    with pytest.raises(RecordError, match="lacks history, metrics"):
        Run.open(run.folder)


def test_a_folder_without_a_record_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(RecordError, match="no record at .*; name a run's folder"):
            Run.open(place)


# ---------------------------------------------------------------------------------------------- atomic writes


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "file"
    atomically(target, lambda path: path.write_text("old"))

    def half(path):
        path.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(RecordError, match="file cannot be written .disk full.*the last version is kept"):
        atomically(target, half)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_record_that_cannot_be_written_leaves_the_old_one(run):
    before = (run.folder / "record.json").read_bytes()
    with pytest.raises(TypeError):
        run.update(strange=object())
    assert (run.folder / "record.json").read_bytes() == before


KILLED = """
import os, signal, sys
from ssl_lessons import records
run = records.Run.open(sys.argv[1])
records.os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)  # written in part, not yet renamed
run.update(seed=99)
"""


def test_kill_in_the_middle_of_a_write_leaves_the_old_record(run):
    before = (run.folder / "record.json").read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(run.folder)], cwd=Path(__file__).parent.parent)
    assert done.returncode == -signal.SIGKILL
    assert list(run.folder.glob("*.tmp")), "the kill came before the write: this test proves nothing"
    assert (run.folder / "record.json").read_bytes() == before
    assert Run.open(run.folder).record["seed"] == 3


def test_two_processes_do_not_share_a_temporary_file(tmp_path):
    names = []
    atomically(tmp_path / "file", lambda path: (names.append(path.name), path.write_text("x")))
    assert str(os.getpid()) in names[0]


# ---------------------------------------------------------------------------------------------- one writer

HOLDS = """
import sys, time
from ssl_lessons import records
run = records.Run.open(sys.argv[1])
with run.writing():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer_and_a_killed_one_lets_go(run):
    command, root = [sys.executable, "-c", HOLDS, str(run.folder)], Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as other:
        assert other.stdout.readline() == "held\n"
        begun = time.time()
        with pytest.raises(RecordError, match="another process is writing into .*run; wait for it to end"):
            run.update(seed=4)
        assert time.time() - begun < 1
        assert Run.open(run.folder).record["seed"] == 3  # reading is free, and nothing was written
        other.kill()
    run.update(seed=5)
    assert Run.open(run.folder).record["seed"] == 5


def test_within_a_process_the_holder_writes_on(run):
    with run.writing(), Run.open(run.folder).writing():
        Run.open(run.folder).add_metric("knn", 0.5)
    assert Run.open(run.folder).record["metrics"]["knn"]["value"] == 0.5


def test_only_the_first_of_several_processes_writes(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run.update(seed=4)
    assert run.record["seed"] == 4 and Run.open(run.folder).record["seed"] == 3
    monkeypatch.setenv("RANK", "0")
    run.save()
    assert Run.open(run.folder).record["seed"] == 4


# ---------------------------------------------------------------------------------------------- source

CODE = """
class Mine:
    scale = 2  # a comment

    def forward(self, x):
        return x * self.scale
"""


def defined(tmp_path, code: str) -> type:
    """The class `Mine` of a file of its own, as each edit of a cell is one."""
    path = tmp_path / f"cell_{len(list(tmp_path.iterdir()))}.py"
    path.write_text(code)
    names = {"__name__": "__main__"}
    exec(compile(code, str(path), "exec"), names)
    return names["Mine"]


def test_the_source_of_a_class_is_its_code_without_comments(tmp_path):
    first = records.source_of(defined(tmp_path, CODE))
    assert first == records.source_of(defined(tmp_path, CODE.replace("  # a comment", "\n")))
    for old, new in (("x *", "x +"), ("scale = 2", "scale = 3"), ("forward", "backward")):
        assert first != records.source_of(defined(tmp_path, CODE.replace(old, new))), new
    later = defined(tmp_path, CODE)
    later.forward = defined(tmp_path, CODE.replace("x *", "x -")).forward  # a lesson's next cell
    assert records.source_of(later) != first
    child = type("Child", (defined(tmp_path, CODE.replace("x *", "x /")),), {"__module__": "__main__"})
    assert records.source_of(child) != first  # what it inherits counts


def test_code_typed_at_a_prompt_is_told_by_what_it_does(tmp_path):
    prints = []
    for code in (
        CODE,
        CODE.replace("return", "# a comment\n        return"),
        CODE.replace("return", "return 2 *"),
    ):
        names = {"__name__": "__main__"}
        exec(code, names)
        prints.append(records.source_of(names["Mine"]))
    assert prints[0] == prints[1] != prints[2] and None not in prints
    assert records.source_of(nn.Linear) is None and records.source_of(type(networks.conv4())) is None


# ---------------------------------------------------------------------------------------------- weights


def test_the_encoder_loads_into_plain_torchvision(run):
    torch.manual_seed(0)
    trained = networks.resnet18(64).to(memory_format=torch.channels_last)
    trained(torch.randn(4, 3, 64, 64))  # moves the BatchNorm statistics, which are kept too
    run.save_encoder(trained)
    plain = torchvision.models.resnet18(weights=None)
    plain.load_state_dict(load_file(run.encoder_path), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(plain.eval()(images), trained.eval()(images), atol=1e-5)
    again = networks.resnet18(64)
    run.load_encoder(again)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trained.parameters(), strict=True))


def test_tied_weights_are_kept(run):
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    run.save_encoder(network)
    again = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    run.load_encoder(again)
    assert torch.equal(again[0].weight, network[0].weight) and torch.equal(again[1].weight, network[0].weight)


def test_a_missing_damaged_or_foreign_encoder_is_named(run):
    network = networks.Conv4((4, 4, 4, 4))
    with pytest.raises(RecordError, match=r"encoder.safetensors is missing"):
        run.load_encoder(network)
    run.save_encoder(network)
    with pytest.raises(RecordError, match=r"is not of this Conv4(.|\n)*size mismatch"):
        run.load_encoder(networks.Conv4((4, 4, 4, 8)))
    whole = run.encoder_path.read_bytes()
    for content in (b"", whole[:100], whole[:-7]):
        run.encoder_path.write_bytes(content)
        with pytest.raises(RecordError, match=r"encoder.safetensors is damaged"):
            run.load_encoder(network)


STATE = {"method": {}, "optimizer": {}, "generators": {}, "history": [{"loss": 0.5}], "seconds": 1.0}


def test_resume_takes_tensors_and_plain_values_only(run):
    state = {**STATE, "weights": torch.arange(3.0), "step": 7}
    run.save_resume(state)
    loaded = run.load_resume()
    assert loaded.pop("record")["seed"] == 3
    assert torch.equal(loaded.pop("weights"), state.pop("weights")) and loaded == state

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(run.folder / "sprung"),))

    torch.save({"weights": Trap()}, run.resume_path)
    with pytest.raises(RecordError, match=r"resume.pt is damaged"):
        run.load_resume()
    assert not (run.folder / "sprung").exists()


def test_a_missing_or_damaged_resume_is_named(run):
    with pytest.raises(RecordError, match=r"resume.pt is missing"):
        run.load_resume()
    run.save_resume({**STATE, "weights": torch.arange(300.0)})
    run.resume_path.write_bytes(run.resume_path.read_bytes()[:600])
    with pytest.raises(RecordError, match=r"resume.pt is damaged.*delete it to start over"):
        run.load_resume()


def test_versions_without_an_install_say_so(monkeypatch):
    def missing(name):
        raise records.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(records.importlib.metadata, "version", missing)
    assert records.versions()["ssl-lessons"] == "not installed"


def test_keys_of_any_kind_are_written_as_text(tmp_path):
    run = Run.create(tmp_path / "run")
    run.update(counts={np.int64(7): np.float32(0.5), True: {("a", 2): (1, 2)}})
    assert Run.open(tmp_path / "run").record["counts"] == {"7": 0.5, "True": {"('a', 2)": [1, 2]}}


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "below", tmp_path / ("n" * 250)):
        with pytest.raises(RecordError, match="cannot be written"):
            atomically(target, lambda path: path.write_bytes(b"x"))


def test_a_class_whose_module_is_no_text_is_set_up_like_others():
    """As NumPy's generators are, where Cython made their methods' class."""
    odd = type("Odd", (), {"__module__": 5})
    assert records.digest(records.configuration([odd(), odd]))
