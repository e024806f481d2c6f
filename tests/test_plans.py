"""A grid's file: every name in it is checked before anything is started or written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy import TWELVE, write

from ssl_lessons import cli
from ssl_lessons.batch import grid


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("SSL_LESSONS_PROFILE", raising=False)


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ({"grids": {}}, "key of toy.yaml 'grids' is not known; choose one of: notebook, profile"),
        ({"notebook": "tyo.ipynb"}, "'tyo.ipynb' is not known; choose one of: toy.ipynb"),
        ({"notebook": "77"}, "03_moco"),
        ({"notebook": None}, "notebook 'None' is not known; choose one of: toy.ipynb, 00_start_here"),
        ({"grid": None}, "grid: None must be names with values"),
        ({"grid": {"method": []}}, "method [] must be a list of values"),
        ({"grid": {"seed": 3}}, "seed 3 must be a list of values, or a range such as 0-2"),
        ({"grid": {"seed": "2-0"}}, "seed '2-0' must be a list of values"),
        (
            {"grid": {"sede": [0]}},
            "parameter of toy.ipynb in grid 'sede' is not known; choose one of: profile",
        ),
        ({"parameters": {"epoch": 3}}, "'epoch' is not known"),
        ({"parameters": {"run_dir": "x"}}, "'run_dir' is not known"),
        ({"parameters": {"seed": 3}}, "'seed' is set in two places"),
        ({"grid": {"profile": ["smoke"]}}, "'profile' is set in two places"),
        (
            {"grid": {"method": ["simclr", "mocco"]}},
            "method 'mocco' is not known; choose one of: simclr, moco",
        ),
        ({"parameters": {"dataset": "imagenete"}}, "choose one of: imagenette, imagewoof, stl10, shapes"),
        ({"profile": "huge"}, "smoke, class, full"),
        ({"profile": None}, "smoke, class, full"),  # from the environment, see below
        ({"parameters": {"epochs": 2.5}}, "epochs is 2.5; it must be a whole number"),
        ({"parameters": {"epochs": None}}, "epochs is None; it must be a whole number"),
        ({"parameters": {"epochs": True}}, "epochs is True; it must be a whole number"),
        ({"parameters": {"lr": "small"}}, "lr is 'small'; it must be a number"),
        ({"parameters": {"focal": 1}}, "focal is 1; it must be True or False"),
        ({"grid": {"method": ["simclr"], "seed": [0, 0]}}, "are the same"),
        ({"exclude": {"method": "moco"}}, "exclude: {'method': 'moco'} must be a list of names with values"),
        ({"exclude": [{"methd": "moco"}]}, "parameter of toy.ipynb in exclude 'methd' is not known"),
        (
            {"exclude": [{"method": ["moco", "simsiam"]}]},
            "method 'simsiam' is no run's; there are: 'sim",
        ),
        ({"exclude": [{"method": "moco", "epochs": 5}]}, "epochs 5 is no run's; there are: 4"),
        (
            {
                "grid": {"method": ["moco", "byol"], "seed": [0, 1]},
                "exclude": [{"method": "moco", "seed": 0}],
                "override": [{"when": {"method": "moco", "seed": 0}, "set": {"epochs": 2}}],
            },
            "matches no run: none has all of these",
        ),
        ({"exclude": [{"seed": [0, 1, 2, 3]}]}, "every run is excluded"),
        ({"override": [{"when": {"seed": 0}}]}, "must be {when: {name: value}, set: {name: value}}"),
        (
            {"override": [{"when": {"seed": 9}, "set": {"epochs": 2}}]},
            "seed 9 is no run's; there are: 0, 1, 2, 3",
        ),
        ({"override": [{"when": {"seed": 0}, "set": {"epoch": 2}}]}, "in override 'epoch' is not known"),
        ({"override": [{"when": {"seed": 0}, "set": {"epochs": "two"}}]}, "epochs is 'two'"),
        ({"override": [{"when": {"seed": 0}, "set": {"seed": 1}}]}, "are the same"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_every_name_is_checked_before_anything_is_started(parts, answer, tmp_path, capsys, monkeypatch):
    if parts == {"profile": None}:
        monkeypatch.setenv("SSL_LESSONS_PROFILE", "huge")
    monkeypatch.setattr(subprocess, "Popen", lambda *_: pytest.fail("a process was started"))
    file = write(tmp_path, **parts)
    assert cli.main(["grid", str(file), "--out", str(tmp_path / "out")]) == 2
    assert answer in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.ipynb", "toy.yaml"], "nothing is written"


def test_other_things_asked_for_in_vain(tmp_path, capsys, monkeypatch):
    def refused(*arguments) -> str:
        assert cli.main(["grid", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    assert "methods_on_shapes.yaml" in refused(tmp_path / "nosuch.yaml")
    file = write(tmp_path)
    assert "jobs is '0'; it must be a whole number above 0" in refused(file, "--jobs", "0")
    assert "number of its workers" in refused(file, "--jobs", "2", "--scheduler", "tcp://127.0.0.1:1")
    assert "an address like tcp://host:8786" in refused(file, "--scheduler", "somewhere")
    monkeypatch.setitem(sys.modules, "distributed", None)  # as if it were not installed
    assert 'pip install "ssl-lessons[cluster]"' in refused(file, "--scheduler", "tcp://127.0.0.1:1")
    file.write_text("a: [")
    assert "cannot be read" in refused(file)
    assert not (tmp_path / "out").exists()


def test_a_plan_is_the_product_less_the_excluded_with_overrides(tmp_path):
    (tmp_path / "photos").mkdir()
    exclude = [{"method": "byol", "seed": [1, 2, 3]}, {"seed": 3}]
    override = [
        {"when": {"method": ["moco", "byol"]}, "set": {"epochs": 6, "lr": None}},
        {"when": {"epochs": 6, "seed": 0}, "set": {"lr": 1, "dataset": "photos"}},
    ]
    plan = grid.read(write(tmp_path, exclude=exclude, override=override, parameters={"lr": 0.5}))
    assert [one.name for one in plan] == [f"{m}-{s}" for m in TWELVE["method"] for s in (0, 1, 2)][:7]
    common = {"profile": "smoke", "lr": 0.5}
    assert plan[1].parameters == {**common, "method": "simclr", "seed": 1}
    assert plan[4].parameters == {**common, "method": "moco", "seed": 1, "epochs": 6, "lr": None}
    last = {"method": "byol", "seed": 0, "epochs": 6, "lr": 1, "dataset": str(tmp_path.resolve() / "photos")}
    assert plan[6].parameters == {**common, **last}
    assert len({one.folder(tmp_path) for one in plan}) == 7
    assert plan[0].folder(tmp_path).name == f"simclr-0-{plan[0].fingerprint[:8]}"


def test_text_is_read_by_the_annotations(tmp_path):
    """YAML takes 1e-3 and a quoted seed for text, and nobody wants focal loss for `focal: "false"`."""
    axes = {"seed": ["1"], "lr": ["1e-3"], "focal": ["false"], "epochs": [2.0]}
    (one,) = grid.read(write(tmp_path, grid=axes))
    assert one.parameters == {"profile": "smoke", "seed": 1, "lr": 0.001, "focal": False, "epochs": 2}


def test_a_fingerprint_is_of_all_parameters(tmp_path, monkeypatch):
    def marks(**parts) -> list[str]:
        return [one.fingerprint for one in grid.read(write(tmp_path, **parts))]

    plain = marks()
    assert len(set(plain)) == 12
    assert marks(parameters={"epochs": 4}) == plain, "as by default"
    assert not set(marks(parameters={"epochs": 5})) & set(plain)
    assert not set(marks(profile=None)) & set(plain), "auto means class here"
    monkeypatch.setenv("SSL_LESSONS_PROFILE", "smoke")
    assert marks(profile=None) == marks(profile="auto") == plain


def test_a_lesson_is_named_by_its_number(tmp_path):
    file = tmp_path / "lesson.yaml"
    file.write_text(
        "notebook: 03\nparameters: {dataset: shapes}\ngrid: {recipe: [moco_v1, moco_v2], seed: [0]}"
    )
    plan = grid.read(file)
    assert [one.name for one in plan] == ["moco_v1-0", "moco_v2-0"]
    assert plan[0].notebook.name == "03_moco.ipynb" and plan[0].parameters["profile"] == "class"


def test_the_committed_grids_can_be_read():
    files = sorted((Path(__file__).parent.parent / "notebooks" / "grids").glob("*.yaml"))
    assert {file.stem for file in files} >= {"methods_on_shapes"}
    for file in files:
        plan = grid.read(file)
        assert len(plan) >= (5 if file.stem == "equal_minutes" else 10)
        assert len({one.fingerprint for one in plan}) == len(plan)


def test_a_grid_sweeps_any_parameter_of_a_row(tmp_path):
    file = tmp_path / "sweep.yaml"
    row = Path(__file__).parent.parent / "notebooks" / "grids" / "row.ipynb"
    axes = "{temperature: [0.1, 0.5], lr: [1e-3], network: [conv4, timm/resnet18], view: [32], seed: 0-1}"
    file.write_text(f"notebook: {row}\nprofile: smoke\ngrid: {axes}")
    plan = grid.read(file)
    assert len(plan) == 8 and len({one.fingerprint for one in plan}) == 8
    swept = {"temperature": 0.5, "lr": 0.001, "network": "timm/resnet18", "view": 32, "seed": 1}
    assert plan[-1].parameters == {"profile": "smoke", **swept}
