"""The command line: real processes where a process can differ, `main()` in this one for the many refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from ssl_lessons import cli, evaluate
from ssl_lessons.batch import grid

COMMANDS = [
    "doctor",
    "data list",
    "data fetch",
    "run",
    "pretrain",
    "evaluate",
    "leaderboard",
    "bench",
]
QUICK = "--method moco --recipe short --dataset shapes --size 16 --crop 16 --network conv4 --epochs 2"
QUICK = [*QUICK.split(), "--batch-size", "64", "--limit", "128", "-p", "queue", "128", "--device", "cpu"]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    """Each test in an empty folder, with a data root of its own and no profile set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_LESSONS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SSL_LESSONS_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("SSL_LESSONS_PROFILE", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other
    yield
    torch.set_num_threads(threads)


def process(*arguments, before: str = "", **env):
    """Run the command line in a process of its own; `before` is Python to run first."""
    # Without the working directory on the path, as for the installed script: a test's checkout lies there.
    code = f"import sys\nsys.path.pop(0)\n{before}\n"
    code += "from ssl_lessons.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def refused(capsys, *arguments) -> str:
    """What `main` says on standard error when it answers with exit code 2."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def write_notebook(path: Path, *sources: str) -> Path:
    """A notebook of code cells, the first tagged `parameters`."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


PARAMETERS = 'profile: str = "auto"\ndataset: str = "shapes"\nepochs: int = 10  # passes\nrun_dir: str = None'


@pytest.fixture
def lesson(tmp_path):
    """A lesson of three cells, in the notebooks/ of a checkout around the working directory."""
    (tmp_path / "ssl_lessons").mkdir()
    record = (
        '{"metrics": {"knn": {"value": 0.52, "protocol": "k 20, t 0.07"}, "knn_random": {"value": 0.26}}}'
    )
    return write_notebook(
        tmp_path / "notebooks" / "03_toy.ipynb",
        PARAMETERS,
        'import pathlib\nprint("epochs:", epochs + 1, profile, dataset, pathlib.Path.cwd().name)',
        f"_ = pathlib.Path(run_dir, 'record.json').write_text('''{record}''')",
    )


# ---- help, doctor, data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert f"example: ssl-lessons {command}" in " ".join(capsys.readouterr().out.split())


def test_doctor_reports_on_this_machine():
    done = process("doctor", "--json")
    report = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert done.returncode == 0 and report["ok"], done.stdout
    assert {"python", "cpu", "torch", "device", "profile", "data root", "disk", "fastprogress"} <= set(
        findings
    )
    assert findings["profile"]["detail"].startswith("class")


def test_doctor_fails_for_what_would_stop_a_lesson(monkeypatch, capsys):
    monkeypatch.setenv("SSL_LESSONS_PROFILE", "huge")

    def absent(name: str):
        raise cli.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cli.metadata, "version", absent)
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    broken = [line for line in lines if line.startswith("broken")]
    assert len(broken) == 2
    assert "'huge'" in broken[0] and "smoke" in broken[0]
    assert "No package metadata was found for fastprogress" in broken[1]


def test_a_torchvision_of_another_torch_is_noticed(monkeypatch):
    import torchvision

    def missing(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", missing)
    (finding,) = (finding for finding in cli.examine() if finding[1] == "torch")
    assert finding[0] == "broken" and "nms" in finding[2] and "pip install" in finding[2]


def test_data_list_for_programs(capsys):
    assert cli.main(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"imagenette", "imagewoof", "stl10", "shapes"} == set(rows)
    assert len(rows["imagenette"]["classes"]) == 10 and "folds" not in rows["shapes"]


# ---- unknown names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("data fetch imagenete", "imagenette, imagewoof, stl10, shapes"),
        (
            "pretrain --out x --dataset imagenete",
            "imagenette, imagewoof, stl10, shapes, the path of a folder",
        ),
        ("pretrain --out x --method mocco", "moco"),
        ("pretrain --out x --recipe moco_v3", "moco_v1, moco_v2"),
        ("pretrain --out x --network resnet19", "conv4, resnet10_half, resnet18, resnet50"),
        ("pretrain --out x -p tau 0.1", "temperature"),
        ("pretrain --out x -p temperature abc", "temperature is 'abc'; it must be a number"),
        ("pretrain --out x -p symmetric 1", "must be True or False"),
        ("pretrain --out x -p queue 1.5", "must be a whole number above 0"),
        ("pretrain --out x -p policy moco_v9", "moco_v2"),
        ("evaluate runs/nosuch", "choose one of"),
    ],
)
def test_unknown_names_are_answered_with_the_known(arguments, answer, capsys):
    said = refused(capsys, *arguments.split())
    assert answer in said
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("run 07", "choose one of: 03_toy"),
        ("run 03 --profile gigantic", "smoke, class, full"),
        ("run 03 --dataset imagenete", "imagenette"),
        ("run 03 -p epoch 3", "profile, dataset, epochs, run_dir"),
        ("run 03 -p epochs three", "epochs is 'three'; it must be a whole number above 0"),
    ],
)
def test_a_lesson_is_asked_only_for_what_it_has(arguments, answer, lesson, capsys):
    assert answer in refused(capsys, *arguments.split())
    assert not Path("runs").exists(), "refused before anything is made"


def test_a_lesson_is_found_by_number_name_and_path(lesson):
    for name in ("3", "03", "03_toy", "03_toy.ipynb", str(lesson), "notebooks/03_toy.ipynb"):
        assert grid.find_lesson(name) == lesson.resolve()


# ---- run ---------------------------------------------------------------------------------------------------


def test_run_executes_a_lesson_and_names_what_it_made(lesson):
    done = process("run", "03", "--profile", "smoke", "-p", "epochs", "4")
    assert done.returncode == 0, done.stderr
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("03_toy-shapes-smoke-")
    assert "epochs: 5 smoke shapes notebooks" in done.stdout  # as it ran: a number, in the notebook's folder
    notebook, html = folder / "03_toy.ipynb", folder / "03_toy.html"
    assert str(notebook.resolve()) in done.stdout and str(html.resolve()) in done.stdout
    assert "epochs: 5 smoke" in html.read_text(encoding="utf-8")
    nbformat.validate(nbformat.read(notebook, as_version=4))
    last = done.stdout.rstrip().splitlines()[-1]
    assert (
        last == "kNN 52.0 % beside random encoder 26.0" and "knn         52.0%  k 20, t 0.07" in done.stdout
    )


def test_run_keeps_what_a_failing_lesson_reached(tmp_path):
    notebook = write_notebook(
        tmp_path / "x.ipynb", PARAMETERS, "print('half way')", "1 / 0", "print('never')"
    )
    done = process("run", notebook, "--out", "kept", "--json")
    answer = json.loads(done.stdout)  # what cells print goes to standard error
    assert done.returncode == 1 and answer["ok"] is False
    assert "ZeroDivisionError" in answer["error"] and "half way" in done.stderr
    for path in (answer["notebook"], answer["html"]):
        text = Path(path).read_text(encoding="utf-8")
        assert Path(path).parent == tmp_path.resolve() / "kept"
        assert "half way" in text and "ZeroDivisionError" in text


def test_run_survives_a_kernel_that_dies(tmp_path):
    notebook = write_notebook(tmp_path / "x.ipynb", PARAMETERS, "print('half way')", "import os; os._exit(9)")
    state = grid.carry_out(grid.planned(notebook, {}, {}, "x"), tmp_path / "kept")
    assert "died" in state["error"] and state["attempts"] == 2, (
        "it may have lost its port to another: once more"
    )
    assert "half way" in (tmp_path / "kept" / "x.ipynb").read_text(encoding="utf-8")
    assert (tmp_path / "kept" / "x.html").exists()


# ---- pretrain, evaluate, bench -----------------------------------------------------------------------------


def test_pretrain_and_evaluate_without_notebook_packages(capsys, monkeypatch):
    packages = ["IPython", "fastprogress", "papermill", "jupyterlab", "nbconvert", "nbformat", "nbclient"]
    absent = f"sys.modules.update(dict.fromkeys({packages}))"  # None: an import of it fails
    done = process("pretrain", *QUICK, "--out", "runs/a", "--json", before=absent)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    record = json.loads(Path("runs/a/record.json").read_text(encoding="utf-8"))
    assert len(record["history"]) == 2 and record["metrics"] == metrics
    assert {"knn", "knn_random", "linear_10", "linear_10_random"} <= set(metrics)
    assert "k 20, t 0.07" in metrics["knn"]["protocol"]
    assert "epoch   2/2" in done.stderr and (record["recipe"]["queue"], record["seed"]) == (128, 0)

    # The encoder that was kept is the one that was judged.
    assert cli.main(["evaluate", "runs/a", "--limit", "128", "--device", "cpu", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["metrics"]
    assert {name: m["value"] for name, m in again.items()} == {
        name: m["value"] for name, m in metrics.items()
    }

    monkeypatch.setattr(evaluate, "FINE_TUNE_EPOCHS", {1.0: 1, 0.1: 1})  # quick
    asked = ["evaluate", "runs/a", "--limit", "64", "--device", "cpu", "--fine-tune"]
    assert cli.main(asked) == 0
    told = capsys.readouterr().out
    assert {"finetune_100", "finetune_10"} <= set(told.split()) and " ± " in told

    # The same command finds the run finished and changes nothing; another network is refused.
    assert cli.main(["pretrain", *QUICK, "--out", "runs/a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["knn"] == metrics["knn"]
    assert "conv4" in refused(capsys, "pretrain", *QUICK, "--network", "resnet18", "--out", "runs/a")
    assert "runs/a" in refused(capsys, "evaluate", "runs/b")


def test_pretrain_on_a_folder_without_labels(tmp_path, capsys):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for number in range(64):
        Image.new("RGB", (20, 20), (number * 4, 0, 255 - number)).save(tmp_path / "photos" / f"{number}.png")
    arguments = [*QUICK, "--dataset", "photos", "--epochs", "1", "--batch-size", "32", "--out", "runs/photos"]
    assert cli.main(["pretrain", *arguments]) == 0
    assert "not judged" in capsys.readouterr().out
    assert Path("runs/photos/encoder.safetensors").exists()


def test_a_number_may_be_written_as_a_shell_hands_it_over(capsys):
    quick = " ".join(QUICK).replace("queue 128", "queue 6.4e1").split()
    arguments = [*quick, "--epochs", "1", "-p", "symmetric", "false", "--out", "x"]
    assert cli.main(["pretrain", *arguments]) == 0
    recipe = json.loads(Path("x/record.json").read_text(encoding="utf-8"))["recipe"]
    assert (recipe["queue"], recipe["symmetric"]) == (64, False)


def test_a_failed_run_is_exit_code_1(capsys):
    arguments = [*QUICK, "--batch-size", "500", "--out", "runs/a"]
    assert cli.main(["pretrain", *arguments]) == 1
    assert "500" in capsys.readouterr().err


def test_bench_runs_a_script_of_the_checkout(lesson, capsys):
    script = lesson.parent.parent / "tests" / "benchmarks" / "bench_toy.py"
    script.parent.mkdir(parents=True)
    script.write_text("import sys\nprint(__name__, sys.argv[1:])\n", encoding="utf-8")
    assert cli.main(["bench", "toy", "--sizes", "64", "--json"]) == 0
    assert capsys.readouterr().out == "__main__ ['--sizes', '64', '--json']\n"
    assert "choose one of: toy" in refused(capsys, "bench", "views")
