"""Values on the way in, odd records and places: what grids, tables and the command line make of them."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import psutil
import pytest
from PIL import Image

from ssl_lessons import cli, lab
from ssl_lessons.batch import grid, leaderboard
from ssl_lessons.methods.recipes import BYOL, MOCO
from ssl_lessons.parameters import Parameter, Unknown, assigned, fit, of_notebook

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "data" / "results" / "leaderboard"
VALUES, YAML, DATA, RECORDS, PLACES, STOPS = (
    "values on the way in",
    "YAML of a grid",
    "names are data",
    "odd records",
    "places",
    "ctrl-C and time",
)


def process(*arguments, **env) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ssl_lessons", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=600)


def command_of(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    own = nbformat.v4.new_notebook(cells=cells)
    own.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(own, path)
    return path


# ---- Values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "default", "given", "value"),
    [
        ("int", 3, 2.0, 2),
        ("int", 3, "2.0", 2),
        ("int", 3, "1e2", 100),
        ("int", 3, " 7 ", 7),
        ("int", 0, "-1", -1),  # an own notebook's: its default is no number above 0 either
        ("int | None", None, "8", 8),
        ("int | None", 3, None, None),
        ("Optional[int]", 3, "None", None),
        ("typing.Union[int, None]", 3, "4", 4),
        ("'Optional[float]'", 0.9, "1e-3", 0.001),
        ("bool", True, "false", False),
        ("bool | None", None, "FALSE", False),
        ("NoneType", None, "false", False),
        ("NoneType", None, "1e2", 100),
        ("str", "a=b", "c=d", "c=d"),
        ("float | str", 0.1, "auto", "auto"),
        ("float | str", 0.1, "0.5", 0.5),
        ("tuple[int | None, ...]", (None, 64), "(None, 32)", (None, 32)),
        ("Optional[tuple[int, int]]", None, [1, "2"], (1, 2)),
        ("list[int]", [1], ["3", 4.0], [3, 4]),
        ("Literal['a', 'b']", "a", "b", "b"),
        ("Path", None, "x", "x"),
        ("Path", None, "3", "3"),
        ("Share", 0.5, "0.25", 0.25),
        ("np.float32", 0.5, "1e-1", 0.1),
        ("Share | None", 0.5, "0.25", 0.25),
        ("Final", True, "false", False),
        ("Final[int]", 3, "4", 4),
        ("Annotated[bool, 'x']", True, "false", False),
        ("Annotated[int, Range(1, 3)]", 3, "4", 4),
        ("Annotated[float, 'x'] | None", 0.5, "0.25", 0.25),
        ("Sequence[int]", [1], "[2, 3]", [2, 3]),
        ("[int]", 3, "4", 4),
        ("Literal['a-b', 'c']", "c", "a-b", "a-b"),
        ("dict", {}, "{'a': 1}", {"a": 1}),
        ("dict[str, int]", None, {"a": 1}, {"a": 1}),
        ("Any", None, "false", False),
        ("float", 0.5, 1, 1.0),
        ("list[float]", [0.5], [1, "2"], [1.0, 2.0]),
        ("int", 0, 2**32 - 1, 2**32 - 1),
    ],
)
def test_a_value_is_read_as_its_annotation_says(fault, kind, default, given, value):
    got = (
        fit("thing", given, Parameter(kind, default))
        if kind != "None"
        else fit("thing", given, Parameter("str", ""))
    )
    fault(VALUES).right(got == value and type(got) is type(value), message=repr(got))


def test_a_long_number_keeps_all_its_digits(fault):
    fault(VALUES).right(fit("index", "12345678901234567", Parameter("int", 0)) == 12345678901234567)


@pytest.mark.parametrize(
    ("name", "kind", "default", "given"),
    [
        ("epochs", "int", 3, 0),
        ("epochs", "int", 3, -3),
        ("epochs", "int", 3, "two"),
        ("epochs", "int", 3, True),
        ("epochs", "int", 3, 2.5),
        ("epochs", "int", 3, ""),
        ("epochs", "int", 3, "1e999999999"),
        ("seed", "int", 0, 1e30),
        ("seed", "int", 0, -1),
        ("seed", "int", 0, 2**32),
        ("minutes", "float", 1.0, 0),
        ("minutes", "float", 1.0, -1),
        ("share", "Share", 0.5, "half"),
        ("focal", "Final", True, "no"),
        ("mode", "Literal['a-b', 'c']", "c", "d"),
        ("table", "dict", {}, "{1: 2}"),
        ("table", "dict", {}, {"a": {1: 2}}),
        ("table", "dict[str, int]", {}, "[1]"),
        ("table", "set[int]", {1}, "{1, 2}"),
        ("warmup", "float", 0.0, -1),
        ("lr", "float", 0.1, "nan"),
        ("lr", "float", 0.1, "1e400"),
        ("lr", "float", 0.1, 10**400),
        ("lr", "float", 0.1, -0.1),
        ("temperature", "float", 0.2, 0),
        ("momentum", "float", 0.9, 1.5),
        ("focal", "bool", False, "no"),
        ("focal", "bool", False, 1),
        ("head", "tuple[int | None, ...]", (None, 64), ("a", 64)),
        ("head", "tuple[int | None, ...]", (None, 64), [0, 64]),
        ("head", "tuple[int | None, ...]", (None, 64), "64"),
        ("head", "tuple[int, int]", (1, 2), [1, 2, 3]),
        ("head", "tuple[int, ...]", (1, 2), "(" * 5000),
        ("sizes", "list[int]", [1], 3),
        ("which", "Literal['a', 'b']", "a", "c"),
        ("name", "str", "a", 3),
        ("name", "str", "a", None),
    ],
)
def test_a_value_that_does_not_fit_is_named(fault, name, kind, default, given):
    with fault(VALUES).refused(Unknown, says=(name, repr(given)[:20], "must be")):
        fit(name, given, Parameter(kind, default))


@pytest.mark.parametrize(
    "fields",
    [
        {"warmup": -1},
        {"lr_batch": "abc"},
        {"momentum": 2},
        {"final_lr": -0.1},
        {"head": [64, "x"]},
        {"plain_norms": 1},
    ],
    ids=str,
)
def test_override_refuses_by_the_same_check(fault, fields):
    (name,) = fields
    with fault(VALUES).refused(Unknown, says=(name, "must be")):
        BYOL["paper"].override(**fields)


def test_a_field_may_be_none_where_that_is_documented(fault):
    recipe = MOCO["moco_v2"].override(lr_batch=None, head=(None, 32), warmup="0", weight_decay="1e-4")
    fault(VALUES).right((recipe.lr_batch, recipe.head, recipe.warmup) == (None, (None, 32), 0.0))


@pytest.mark.parametrize("code", ["1 +", "%pip install x", "x = '\0'", "x = " + "(" * 500], ids=repr)
def test_a_cell_that_is_no_python(fault, code, tmp_path):
    with fault(VALUES).refused(SyntaxError):
        assigned(code)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"cells": 3}', '{"cells": [{}]}', "[" * 9999, "\xff"], ids=lambda t: t[:9]
)
def test_a_file_that_is_no_notebook(fault, text, tmp_path):
    path = tmp_path / "own.ipynb"
    path.write_text(text, encoding="latin-1")
    with fault(VALUES).refused(Unknown, says="own.ipynb"):
        of_notebook(path)


@pytest.mark.parametrize(
    "arguments",
    [
        "--epochs 0",
        "--epochs -3",
        "--epochs 1.5",
        "--batch-size none",
        "--limit 0",
        "--crop x",
        "--seed 1e30",
        "-p warmup -1",
        "-p lr_batch abc",
        "-p head 64",
        "--device meta",
        "--device mps",
        "--device xpu",
        "--device cuda:99",
        "--device toaster",
        "--dataset ~nouser/photos",
        "--out ~nouser/runs",
        "--seed -1",
        "--epochs 2 -p epochs 3",
        "--batch-size 8 -p batch_size 9",
        "-p name paper",
        "-p source me",
    ],
)
def test_the_command_line_refuses_before_anything_is_made(fault, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = cli.main(["pretrain", "--out", "x", *arguments.split()])
    said = capsys.readouterr().err
    option, value = arguments.split()[-2:]
    fault(VALUES).right(code in (1, 2) and value in said and said.count("\n") == 1, message=said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrain", "--out", ""], "is empty"),
        (["evaluate", ""], "is empty"),
        (["pretrain", "--out", "x", "-p", "lr", "0.1", "-p", "lr", "0.2"], "lr is set in two places"),
        (["run", "own.ipynb", "--out", ""], "is empty"),
        (["run", "own.ipynb", "--out", "y", "-p", "run_dir", "x"], "run_dir is set in two places"),
        (
            ["run", "own.ipynb", "--profile", "smoke", "-p", "profile", "class"],
            "profile is set in two places",
        ),
        (["run", "own.ipynb", "-p", "seed", "1", "-p", "seed", "2"], "seed is set in two places"),
        (["run", "own.ipynb", "--minutes", "-1"], "minutes is '-1'"),
        (["run", "own.ipynb", "--minutes", "0"], "minutes is '0'"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_a_value_has_one_place(fault, arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook(tmp_path / "own.ipynb", 'profile: str = ""\nseed: int = 0\nrun_dir: str = ""')
    code = cli.main(arguments)
    said = capsys.readouterr().err
    fault(VALUES).right(code == 2 and says in said and len(list(tmp_path.iterdir())) == 1, message=said)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"profile": "class"}, "choose one of: smoke"),
        ({"run_dir": "~nouser/x"}, "~nouser/x"),
        ({"dataset": "~nouser/x"}, "~nouser/x"),
    ],
    ids=str,
)
def test_a_lesson_is_set_up_or_says_why_not(fault, given, says):
    with fault(VALUES).refused(Unknown, says=says):
        lab.setup("03", {"smoke": {"dataset": "shapes"}}, **{"profile": "smoke", "run_dir": "x", **given})


def test_a_lesson_in_the_home_folder(fault, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    place = lab.setup("03", {"smoke": {"dataset": "shapes"}}, profile="smoke", run_dir="~/runs/x").run_dir
    fault(PLACES).right(place == tmp_path / "runs" / "x", message=str(place))


def test_a_hint_is_itself_accepted(fault, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["pretrain", "--out", "x", "-p", "momentum", "abc", "--recipe", "none such"])
    recipes = capsys.readouterr().err.split("choose one of: ")[1].strip().split(", ")
    fault(VALUES).right(set(recipes) == set(MOCO))


def test_a_corrected_cell_in_a_live_kernel(fault, monkeypatch):
    """The first attempt stays in the kernel's history; what counts is the cell as it is now."""
    wrong = 'profile: str = "smoke"\nepocs: int = 1'
    right = 'profile: str = "smoke"\nepochs: int = 1\nrun_dir: str = ""'
    shell = type("Shell", (), {"user_ns": {"In": ["", wrong, right]}})()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    settings = {"smoke": {"dataset": "shapes", "epochs": 3, "seed": 0}}
    fault(VALUES).right(lab.setup("03", settings, profile="smoke", run_dir="x", epochs="2").epochs == 2)
    shell.user_ns["In"] = ["", right, wrong]
    with fault(VALUES).refused(Unknown, says="epocs"):
        lab.setup("03", settings, profile="smoke", run_dir="x", epochs=2)


# ---- YAML --------------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HEAD = "notebook: own.ipynb\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "alias"),
        (HEAD + "grid: &g {method: *g}", "alias"),
        (HEAD + "grid: {seed: [0]}\nexclude: &x [*x]", "alias"),
        ("[" * 20_000, "levels deep"),
        ("{a: " * 20_000, "levels deep"),
        ("- " * 20_000, "levels deep"),
        ("? " * 20_000, "levels deep"),
        (HEAD + "grid: {seed: [" + "0, " * 99_999 + "]}", "100,000 characters"),
        (HEAD + f"grid: {{a: {list(range(1, 501))}, seed: 1-500}}", "250,000 runs"),
        (HEAD + "grid: {seed: 0-999999999}", "1,000,000,000 values"),
        (HEAD + "grid: {seed: 0-99999999999999999999}", "must be a list"),
        (HEAD + "grid: {seed: [0]}\ngrid: {seed: [1]}", "'grid' stands there twice"),
        (HEAD + "grid: {seed: [0], seed: [1]}", "'seed' stands there twice"),
        (HEAD + "grid: {seed: 2026-02-31}", "cannot be read"),
        (HEAD + "grid: {seed: [[0]]}", "seed is [0]"),
        (HEAD + "grid: {seed: [0]}\nexclude: 5", "exclude: 5"),
        (HEAD + "grid: {seed: [0]}\noverride: true", "override: True"),
        (HEAD + "grid: {seed: [0]}\noverride: [{when: 3, set: {a: 1}}]", "override: 3"),
        (HEAD + "grid: {seed: [0]}\nparameters: [a]", "parameters: ['a']"),
        (HEAD + "grid: {seed: [.nan]}", "seed is nan"),
        (HEAD + "grid: {seed: [1:30]}", "seed is '1:30'"),  # to YAML 1.1: 90
        (HEAD + "grid: {rate: [1, 1.0]}", "are the same"),
        (HEAD + "grid: {name: [a, b]}", "parameter 'name'"),
        (HEAD + "grid: {seed: [0]}\nparameters: {folder: a}", "parameter 'folder'"),
        (HEAD + "grid: {seed: [0]}\noverride: [{when: {seed: 0}, set: {status: a}}]", "parameter 'status'"),
        (HEAD + "grid: {seed: [0]}\nparameters: {a: 1:00:01}", "a is '1:00:01'"),
        ("!!python/object/apply:os.system [exit]", "cannot be read"),
        ("\x00", "cannot be read"),
    ],
    ids=lambda text: re.sub(r"\W+", "-", text)[:24],
)
def test_yaml_ends_in_a_sentence_within_two_seconds(fault, text, says, tmp_path):
    declared = 'a: int = 1\nseed: int = 0\nrate: float = 0.5\nname: str = ""\nfolder = ""\nstatus = ""'
    notebook(tmp_path / "own.ipynb", f'{declared}\nrun_dir: str = ""')
    (tmp_path / "plan.yaml").write_text(text)
    begun = time.monotonic()
    with fault(YAML).refused(Unknown, says=says):
        grid.read(tmp_path / "plan.yaml")
    assert time.monotonic() - begun < 2


def test_values_are_compared_by_what_they_mean(fault, tmp_path):
    notebook(tmp_path / "own.ipynb", 'a: int | None = None\nb: str = "x=y"\nseed: int = 0\nrun_dir: str = ""')
    text = HEAD + 'grid: {seed: ["0", 1.0], a: [null, "2"]}\nexclude: [{seed: "1", a: 2.0}]'
    (tmp_path / "plan.yaml").write_text(text)
    got = [(run.parameters["seed"], run.parameters["a"]) for run in grid.read(tmp_path / "plan.yaml")]
    fault(YAML).right(got == [(0, None), (0, 2), (1, None)], message=str(got))


def test_a_number_with_a_0_before_it_is_no_octal_one(fault, tmp_path):
    notebook(tmp_path / "own.ipynb", 'a: int | None = None\nseed: int = 0\nrun_dir: str = ""')
    (tmp_path / "plan.yaml").write_text(HEAD + "grid: {seed: [010, 007], a: [0100]}")
    got = [(run.parameters["seed"], run.parameters["a"]) for run in grid.read(tmp_path / "plan.yaml")]
    fault(YAML).right(got == [(10, 100), (7, 100)], message=str(got))


def test_thousands_of_runs_are_planned_in_seconds(fault, tmp_path):
    notebook(tmp_path / "own.ipynb", 'a: int = 1\nseed: int = 0\nrun_dir: str = ""')
    (tmp_path / "plan.yaml").write_text(HEAD + "grid: {a: 1-50, seed: 1-50}\nexclude: [{a: 7}]")
    fault(YAML).right(len(grid.read(tmp_path / "plan.yaml")) == 2450)


# ---- Records -----------------------------------------------------------------------------------------------


def record(**parts) -> dict:
    whole = json.loads(next(COMMITTED.glob("simclr-imagenette-0.json")).read_text(encoding="utf-8"))
    del whole[
        "checksum"
    ]  # as an older version wrote it, or somebody by hand: what is odd must be seen all the same
    return {**whole, **parts}


def read(folder: Path, *records) -> tuple:
    for number, each in enumerate(records):
        text = each if isinstance(each, str) else json.dumps(each)
        (folder / f"{number}.json").write_text(text, encoding="utf-8")
    return leaderboard.read([folder])


ODD = {
    "device": {"device": {}},
    "seed": {"seed": [1]},
    "seconds": {"seconds": "long"},
    "dataset": {"dataset": "shapes"},
    "images": {"dataset": {**record()["dataset"], "images": "many"}},
    "network": {"network": "conv4"},
    "recipe": {"recipe": ["short"]},
    "history": {"history": [1, 2]},
    "epoch": {"history": [{"epoch": "last"}]},
    "peak_memory": {"epochs": 1, "history": [{"epoch": 1, "peak_memory": "much"}]},
    "knn": {"metrics": {"knn": 0.5}},
    "value": {"metrics": {"knn": {"protocol": "p"}}},
    "0.5": {"metrics": {"knn": {"value": "0.5"}}},
    "inf": {"metrics": {"knn": {"value": float("inf")}}},
    "minutes": {"metrics": {"knn": {"value": 0.5}, "minutes": {"value": 0.5}}},
    "versions": {"versions": 3},
}


@pytest.mark.parametrize("named", ODD)
def test_an_odd_record_is_named_and_the_others_are_shown(fault, named, tmp_path):
    runs, problems = read(tmp_path, record(), {**record(), **ODD[named]}, record(seed=1))
    (table,) = leaderboard.tables(runs)
    right = list(table.rows["n"]) == [2] and len(problems) == 1
    fault(RECORDS).right(right and "1.json" in problems[0] and named in problems[0], message=str(problems))


@pytest.mark.parametrize(
    "text", ["[" * 99_999, "\x00", '{"schema": 1e999}', "[]", '{"schema": true}'], ids=lambda t: t[:9]
)
def test_a_file_that_is_no_record_breaks_nothing(fault, text, tmp_path):
    runs, _ = read(tmp_path, record(), text)
    fault(RECORDS).right(len(runs) == 1)


def test_a_folder_a_pipe_and_a_dangling_link_are_passed_over(fault, tmp_path):
    (tmp_path / "record.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    runs, problems = read(tmp_path, record())
    fault(RECORDS).right(len(runs) == 1 and not problems)


@pytest.mark.parametrize("seconds", [0, 0.0])
def test_a_run_of_no_seconds_has_no_speed(fault, seconds, tmp_path):
    runs, problems = read(
        tmp_path, record(seconds=0, epochs=1, history=[{"epoch": 1, "loss": 1.0, "seconds": seconds}])
    )
    (table,) = leaderboard.tables(runs)
    shown = leaderboard.shown(table).iloc[0]
    fault(RECORDS).right(shown["images/s"] == "–" and shown["least minutes"] == "0.0" and not problems)


def test_a_job_that_is_odd_is_begun_anew(fault, tmp_path):
    notebook(tmp_path / "own.ipynb", 'seed: int = 0\nrun_dir: str = ""')
    (tmp_path / "plan.yaml").write_text(HEAD + "grid: {seed: 0-4}")
    plan = grid.read(tmp_path / "plan.yaml")
    odd = ("[]", "{}", '{"name": 3}', '{"parameters": []}', "[" * 99_999)
    for one, text in zip(plan, odd, strict=True):
        one.folder(tmp_path).mkdir()
        (one.folder(tmp_path) / "job.json").write_text(text)
    fault(RECORDS).right(list(grid.results(tmp_path, plan)["status"]) == ["waiting"] * 5)


def done(folder: Path, one: grid.Planned, **state) -> None:
    """A finished run of a grid, as if it had been carried out."""
    place = one.folder(folder)
    place.mkdir(exist_ok=True)
    grid.write_state(place, {**vars(one), "status": "done", "error": None, "seconds": 1.0, **state})
    (place / "record.json").write_text(json.dumps(record()), encoding="utf-8")


@pytest.mark.parametrize(
    ("then", "now", "status"),
    [
        ("acc = 0.1", "acc = 0.1", "done"),
        ("acc = 0.1", "acc   =  .1  # the accuracy", "done"),
        ("acc = 0.1", "acc = 0.9", "changed"),
        ("acc = 0.1", "%time acc = 0.1", "changed"),
        ("%time acc = 0.1", "%time acc = 0.1", "done"),
        ("acc = 0.1", "x = " + "(" * 500, "changed"),
    ],
)
def test_a_run_of_other_code_is_repeated(fault, then, now, status, tmp_path):
    own = notebook(tmp_path / "own.ipynb", 'seed: int = 0\nrun_dir: str = ""', then)
    (tmp_path / "plan.yaml").write_text(HEAD + "grid: {seed: 0-1}")
    first, second = grid.read(tmp_path / "plan.yaml")
    done(tmp_path, first, code=grid.code_of(own))
    done(tmp_path, second)  # by an older version
    notebook(own, 'seed: int = 0\nrun_dir: str = ""', now)
    assert [one.fingerprint for one in grid.read(tmp_path / "plan.yaml")] == [
        first.fingerprint,
        second.fingerprint,
    ]
    found = list(grid.results(tmp_path, [first, second])["status"])
    fault(RECORDS).right(found == [status, "done"], "lost" if status == "done" else "silent", str(found))


def test_a_metric_that_is_a_plain_number_stops_no_grid(fault, tmp_path):
    notebook(tmp_path / "own.ipynb", 'seed: int = 0\nrun_dir: str = ""')
    (tmp_path / "plan.yaml").write_text(HEAD + "grid: {seed: [0]}")
    (one,) = grid.read(tmp_path / "plan.yaml")
    done(tmp_path, one)
    text = json.dumps(record(metrics={"acc": 0.5, "knn": {"value": 0.25}}))
    (one.folder(tmp_path) / "record.json").write_text(text)
    (row,) = grid.results(tmp_path, [one]).to_dict("records")
    fault(RECORDS).right((row["acc"], row["knn"], row["status"]) == (0.5, 0.25, "done"), message=str(row))


@pytest.mark.parametrize("epochs", [1, 4, None])
def test_an_interrupted_run_that_was_judged_is_no_finished_one(fault, epochs, tmp_path):
    short = record(seed=1, history=[{"epoch": 1, "loss": 1.0, "seconds": 1.0}], epochs=epochs)
    runs, problems = read(tmp_path, record(), short)
    told = ["epoch 1 of 4" in problem for problem in problems]
    fault(RECORDS).right(
        (len(runs), told) == ((1, [True]) if epochs == 4 else (2, [])), message=str(problems)
    )


def test_all_committed_records_are_shown(fault):
    runs, problems = leaderboard.read([COMMITTED])
    fault(RECORDS).right(len(runs) == len(list(COMMITTED.glob("*.json"))) and not problems, "lost")


def test_a_folder_that_cannot_be_read_is_told(fault, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refusing(path="."):  # whoever is root may read all
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    runs, problems = read(tmp_path, record())
    fault(RECORDS).right(
        len(runs) == 1 and len(problems) == 1 and "locked" in problems[0], message=str(problems)
    )


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """A run on a folder of pictures, and the command that judges it: its exit code and the run's metrics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_LESSONS_DATA", str(tmp_path / "data"))
    for place in ("x", "y"):
        for number in range(40):
            file = tmp_path / place / "photos" / ("train" if number < 32 else "test") / "ab"[number % 2]
            file.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (number * 6, 0, len(place))).save(file / f"{number}.png")
    quick = "--network conv4 --size 16 --crop 16 --epochs 1 --batch-size 16 -p queue 16 --device cpu"
    # what is judged is not asked here, and takes long
    monkeypatch.setattr("ssl_lessons.evaluate.report", lambda *a, **k: {"knn": {"value": a[1].size / 100}})

    def command(*arguments, limit: str = "32") -> tuple[int, dict]:
        if not Path("run").exists():
            asked = ["--dataset", "x/photos", "--limit", limit, "--out", "run", *quick.split()]
            assert cli.main(["pretrain", *asked]) == 0
        code = cli.main(["evaluate", "run", "--device", "cpu", *arguments])
        return code, json.loads(Path("run/record.json").read_text())["metrics"]

    return command


def test_another_stored_size_and_another_folder_have_names_of_their_own(fault, judged):
    judged()
    further = ("--size 20", "--dataset x/photos", "--dataset y/photos", "--dataset y/photos --size 20")
    for arguments in further:
        code, metrics = judged(*arguments.split())
        assert code == 0
    values = {name: metric["value"] for name, metric in metrics.items() if not name.endswith("_random")}
    right = values.pop("knn") == 0.16 and values.pop("20px_knn") == 0.2 and len(values) == 3
    fault(RECORDS).right(right and sorted(values.values()) == [0.16, 0.16, 0.2], message=str(values))


@pytest.mark.parametrize("limit", ["32", "24"])
@pytest.mark.parametrize("change", ["none", "one more", "one less", "another"])
def test_pictures_that_have_changed_since_are_not_those_trained_on(fault, judged, change, limit, capsys):
    assert judged(limit=limit)[0] == 0
    folder = Path("x/photos/train/a")
    if change == "one less":
        (folder / "0.png").unlink()
    elif change != "none":
        name = "99.png" if change == "one more" else "0.png"
        Image.new("RGB", (20, 20), "white").save(folder / name)
    code, _ = judged()
    said = capsys.readouterr().err
    refused = code == 2 and "not those trained on" in said and "--dataset" in said
    fault(RECORDS).right(code == 0 if change == "none" else refused, message=said)
    assert judged("--dataset", "x/photos")[0] == 0, "the way out"


# ---- Records and file names are data -----------------------------------------------------------------------

EVIL = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "a | b",
    "a\n# b",
    "\x1b[31mred",
    "\u202etxt",
    "a\x00b",
]
PARTS = {
    "method": lambda text: {"method": text},
    "device": lambda text: {"device": text},
    "dataset": lambda text: {"dataset": {**record()["dataset"], "name": text}},
    "protocol": lambda text: {"metrics": {"knn": {"value": 0.5, "protocol": text}}},
}


class Tags(HTMLParser):
    def handle_starttag(self, tag, attrs):
        self.tags = [*getattr(self, "tags", []), tag]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("evil", EVIL, ids=ascii)
def test_text_of_a_record_does_nothing_in_any_form(fault, part, evil, tmp_path):
    runs, _ = read(tmp_path, record(**PARTS[part](evil)))
    found = leaderboard.tables(runs)
    plain = leaderboard.text(found)
    fault(DATA).right(all(c.isprintable() or c == "\n" for c in plain), message=repr(plain))
    page = Tags()
    page.feed(leaderboard.page(found))
    fault(DATA).right("script" not in page.tags and leaderboard.page(found).isascii())
    lines = leaderboard.markdown(found).split("\n")
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}
    safe = not any("<script" in line or "](" in line or line.startswith("# ") for line in lines)
    fault(DATA).right(len(cells) == 1 and safe, message="\n".join(lines))


@pytest.mark.parametrize(
    "evil", ["=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(A1)", "\t=1", "=HYPERLINK(0)"], ids=ascii
)
def test_no_cell_of_a_csv_is_a_formula(fault, evil, tmp_path):
    metrics = {"knn": {"value": 0.5, "protocol": ""}, evil: {"value": -0.5, "protocol": ""}}
    runs, _ = read(tmp_path, record(method=evil, device=evil, metrics=metrics))
    rows = list(csv.reader(io.StringIO(leaderboard.as_csv(leaderboard.tables(runs)))))
    cells = [cell for row in rows for cell in row]
    fault(DATA).right(not any(re.match(r"[=+@\t\r]|-(?![\d.e-]+$)", cell) for cell in cells))
    assert "-0.5" in cells, "a negative number stays one"


def test_a_file_name_cannot_speak_to_the_terminal(fault, tmp_path, capsys):
    odd = tmp_path / "\x1b[2Jgone\x07.json"
    odd.write_text("{")
    codes = [cli.main(["leaderboard", str(odd)]), cli.main(["leaderboard", str(tmp_path / "\x1b[2Jnot")])]
    out, err = capsys.readouterr()
    fault(DATA).right(codes == [1, 2] and "\x1b" not in out + err and "x1b[2Jgone" in err)


# ---- Places ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
@pytest.mark.parametrize("form", ["", "--markdown", "--html", "--json", "--csv"])
def test_output_in_any_encoding(fault, encoding, form, tmp_path, monkeypatch):
    runs = read(tmp_path, record(), record(seed=1), record(method="Größe → ±"))
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    code = cli.main(["leaderboard", str(tmp_path), *form.split()])
    text = stream.buffer.getvalue().decode(encoding)
    monkeypatch.undo()
    value = record()["metrics"]["knn"]["value"]
    whole = f"{100 * value:.1f}" in text or str(value)[:12] in text
    if form == "--json":
        whole = json.loads(text)["tables"][0]["rows"][0]["n"] >= 1
    fault(PLACES).right(code == 0 and whole and len(runs[0]) == 3, message=text[:300])


def test_a_pipe_in_ascii_of_a_real_process(fault):
    done = process("leaderboard", COMMITTED, PYTHONIOENCODING="ascii")
    fault(PLACES).right(done.returncode == 0 and "+-" in done.stdout and not done.stderr, message=done.stderr)


def test_a_closed_output_is_no_fault(fault):
    command = f"{sys.executable} -m ssl_lessons data list >&- 2>&-; echo $?"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=600)
    fault(PLACES).right((done.stdout, done.stderr) == ("0\n", ""), "traceback", str(done))


def test_braces_in_a_path_are_only_letters(fault, tmp_path, monkeypatch, capsys):
    """papermill fills in the names of parameters in its paths."""
    monkeypatch.chdir(tmp_path)
    for name, word in (("o{seed}", "asked for"), ("o3", "another")):
        notebook(Path(f"{name}.ipynb"), 'seed: int = 0\nrun_dir: str = ""', f"print({word!r}, seed)")
    code = cli.main(["run", "o{seed}.ipynb", "-p", "seed", "3", "--out", "{q}{seed}"])
    right = code == 0 and Path("{q}{seed}/o{seed}.ipynb").exists()
    fault(PLACES).right(right and "asked for 3" in capsys.readouterr().out)


def test_a_table_is_printed_though_its_figure_cannot_be(fault, tmp_path, capsys):
    read(tmp_path, record())
    code = cli.main(["leaderboard", str(tmp_path), "--figure", str(tmp_path / "nowhere" / "x.png")])
    out, err = capsys.readouterr()
    fault(PLACES).right(code == 1 and "SimCLR" in out and "nowhere" in err, "lost", out + err)


def test_head_reads_three_lines_and_nothing_is_said(fault):
    command = f"{sys.executable} -m ssl_lessons leaderboard {COMMITTED} | head -n 3"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=600)
    fault(PLACES).right(len(done.stdout.splitlines()) == 3 and not done.stderr, message=done.stderr)
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads at all
    code = subprocess.run(
        [sys.executable, "-m", "ssl_lessons", "data", "list"], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT
    )
    fault(PLACES).right(code.returncode == 141 and not code.stderr, message=str(code))


def test_a_bar_where_colab_is_imported_without_a_shell(fault):
    code = "import sys, types\nfrom importlib.machinery import ModuleSpec\n"
    code += "sys.modules['google.colab'] = colab = types.ModuleType('google.colab')\n"
    code += "colab.__spec__ = ModuleSpec('google.colab', None)\n"
    code += "import ssl_lessons as ssl\nstore = ssl.images.load('shapes', 'pretrain', 16, limit=64)\n"
    code += "method = ssl.SimCLR(ssl.networks.conv4(), image_size=16, recipe='short')\n"
    code += "run = ssl.pretrain(method, store, epochs=1, batch_size=32, device='cpu')\nprint('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    fault(PLACES).right("done" in done.stdout, "traceback", done.stderr[-500:])


# ---- Ctrl-C and time ---------------------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path):
    return notebook(
        tmp_path / "slow.ipynb", 'run_dir: str = ""', "import time\nprint('begun')\ntime.sleep(300)"
    )


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_in_one_line_and_so_does_its_kernel(fault, slow, tmp_path, how, code):
    """As a terminal does it: the signal goes to the whole group."""
    command = [sys.executable, "-m", "ssl_lessons", "run", str(slow), "--out", str(tmp_path / "out")]
    log = tmp_path / "out" / "run.log"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    # a suite that runs in the background of a shell ignores ctrl-C, and what it starts would inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(command, start_new_session=True, **streams)
    finally:
        signal.signal(signal.SIGINT, before)
    with started as run:
        end = time.monotonic() + 600  # for a hung machine, not for a slow one
        while not (log.exists() and log.read_text()) and time.monotonic() < end:
            time.sleep(0.1)
        os.killpg(run.pid, how)
        said = run.communicate(timeout=300)[1]
    fault(STOPS).right(run.returncode == code and said.count("\n") == 1 and "stopped" in said, message=said)
    left = [pid for pid in psutil.pids() if str(tmp_path / "out") in command_of(pid)]
    assert not left, "papermill has ended too"


def test_a_run_that_takes_too_long_is_ended(fault, slow, tmp_path):
    begun = time.monotonic()
    state = grid.carry_out(grid.planned(slow, {}, {}, "slow"), tmp_path / "out", minutes=0.05)
    right = state["status"] == "failed" and "0.05 minutes" in state["error"] and state["attempts"] == 1
    fault(STOPS).right(right and time.monotonic() - begun < 250, message=str(state))


# ---- After the second round of attacks ----


def test_a_notebook_is_never_overwritten_by_its_run(tmp_path, fault):
    own = notebook(tmp_path / "mine.ipynb", "run_dir: str = ''", "print(1)")
    before = own.read_bytes()
    done = process("run", own, "--out", tmp_path)
    fault(PLACES).answered(done, says=("mine.ipynb", "--out"))
    fault(PLACES).right(own.read_bytes() == before and done.returncode == 2, "lost")


CODE = (
    "seed: int = 0\nrun_dir: str = ''",
    "%matplotlib inline\nx = 1\nprint(f'{x} {seed}')",
    "(a, b) = 1, 2",
)
EDITS = {  # the cells of a notebook, and whether it is another code
    "nothing": (CODE, False),
    "an empty cell": ((*CODE, ""), False),
    "a comment alone": ((*CODE, "# nothing"), False),
    "a comment beside a magic": ((CODE[0], f"# shown\n{CODE[1]}", CODE[2]), False),
    "layout": ((CODE[0], CODE[1].replace("x = 1", "x=1\n"), "a, b = (1, 2)"), False),
    "a parameter's default": ((CODE[0].replace("= 0", "= 7"), *CODE[1:]), False),
    "another magic": ((CODE[0], CODE[1].replace("inline", "widget"), CODE[2]), True),
    "another number": ((CODE[0], CODE[1].replace("x = 1", "x = 2"), CODE[2]), True),
    "another f-string": ((CODE[0], CODE[1].replace("{x} {", "{x}, {"), CODE[2]), True),
    "a cell less": (CODE[:2], True),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_is_other_code(tmp_path, fault, name):
    cells, other = EDITS[name]
    first, second = (notebook(tmp_path / f"{i}.ipynb", *each) for i, each in enumerate((CODE, cells)))
    fault("a notebook edited").right((grid.code_of(first) != grid.code_of(second)) == other)


def test_other_setups_are_other_rows_and_older_records_have_none(tmp_path, fault):
    record = json.loads((COMMITTED / "simclr-imagenette-0.json").read_text())
    record.pop("checksum")
    for number, setup in enumerate(["a", "a", "b", None]):
        changed = {**record, "seed": number, **({"setup": setup} if setup else {})}
        (tmp_path / f"{number}.json").write_text(json.dumps(changed))
    runs, _ = leaderboard.read([tmp_path / f"{number}.json" for number in (0, 1, 2)])
    (table,) = leaderboard.tables(runs)
    fault(RECORDS).right(sorted(table.rows["n"]) == [1, 2])
    runs, _ = leaderboard.read([tmp_path / f"{number}.json" for number in (0, 1, 3)])
    (table,) = leaderboard.tables(runs)
    fault(RECORDS).right(list(table.rows["n"]) == [3])
