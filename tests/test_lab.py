"""What notebooks call: set-up, checks that explain themselves, exercises, and where numbers came from."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import torch
from tiny import moco, noise

from ssl_lessons import evaluate, lab
from ssl_lessons.lab import check, lesson, pick_profile
from ssl_lessons.methods.moco import RECIPES
from ssl_lessons.parameters import Unknown
from ssl_lessons.records import Run

SETTINGS = {
    "smoke": {"dataset": "shapes", "network": "conv4", "epochs": 1, "lr": 0.1, "symmetric": True},
    "class": {"dataset": "imagenette", "network": "resnet18", "epochs": 20},
    "class on a CPU": {"dataset": "imagenette", "network": "resnet18", "epochs": 8},
    "class on shapes": {"dataset": "shapes", "network": "conv4", "epochs": 9},
    "full": {"dataset": "imagenette", "network": "resnet18", "epochs": 200},
}


SPEED = lesson._speed


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(lesson, "results_folder", lambda: tmp_path / "results")
    monkeypatch.setattr(lesson, "_speed", lambda *_: None)  # seconds of a step, in tests of words
    monkeypatch.setenv("SSL_LESSONS_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("SSL_LESSONS_PROFILE", raising=False)
    (tmp_path / "results").mkdir()


# ---------------------------------------------------------------------------------------------- set-up


def test_the_speed_of_this_machine_turns_recorded_minutes_into_minutes_here(tmp_path):
    values = {"network": "conv4", "view": 16}
    speed = SPEED(values, torch.device("cpu"), "fp32", seconds=0.05)
    assert speed > 0 and SPEED({}, torch.device("cpu"), "fp32") is None
    facts = {"dataset": {"name": "imagenette"}, "lesson_seconds": 600, "profile": "class"}
    record = Run.in_memory(**facts).record
    path = tmp_path / "results" / "03-imagenette-class.json"
    path.write_text(json.dumps({**record, "speed": 500.0}), encoding="utf-8")
    (line,) = lesson.measured_minutes("03", speed=250.0)
    assert line.startswith("measured: 10.0 min") and line.endswith("about 20 min here")
    assert "here" not in lesson.measured_minutes("03")[0]


def test_on_colab_without_a_gpu_one_line_says_what_to_change(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "google.colab", object())
    lab.setup("03", {"smoke": {"dataset": "shapes"}}, profile="smoke")
    assert "Change runtime type → T4 GPU" in capsys.readouterr().out


def test_the_profile_is_the_parameters_then_the_environments_then_class(monkeypatch):
    assert pick_profile() == "class" and pick_profile("full") == "full"
    monkeypatch.setenv("SSL_LESSONS_PROFILE", "smoke")
    assert pick_profile("auto") == "smoke" and pick_profile("full") == "full"
    monkeypatch.setenv("SSL_LESSONS_PROFILE", "auto")
    assert pick_profile() == "class"
    monkeypatch.setenv("SSL_LESSONS_PROFILE", "fast")
    with pytest.raises(Unknown, match="profile 'fast' is not known; choose one of: auto, smoke, class, full"):
        pick_profile()


def test_the_narrowest_settings_that_fit_are_taken(monkeypatch):
    assert lab.setup("03", SETTINGS).epochs == 8
    assert lab.setup("03", SETTINGS, dataset="shapes").epochs == 9  # a dataset's before a CPU's
    assert lab.setup("03", SETTINGS, profile="full").epochs == 200
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(lesson, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(lesson, "pick_precision", lambda name, device: "bf16")
    monkeypatch.setattr(lesson, "device_name", lambda device: "a GPU")
    assert lab.setup("03", SETTINGS).epochs == 20
    assert lab.setup("03", {**SETTINGS, "class on imagenette with a GPU": {"epochs": 30}}).epochs == 30


def test_every_lesson_has_settings_for_every_profile_which_its_set_up_takes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the checkout's file is found from anywhere
    for key in [f"{number:02d}" for number in range(12)] + ["row"]:
        settings = lesson.profiles(key)
        assert {"smoke", "class", "full"} <= set(settings), key
        assert not [name for name in settings if name.split(" ")[0] not in lab.PROFILES], key
        assert settings["smoke"]["dataset"] == "shapes"
        s = lab.setup(key, profile="smoke", seed=3)
        assert {**settings["smoke"], "seed": 3}.items() <= vars(s).items()
    beside = tmp_path / "profiles.yaml"  # a notebook's own, in its folder or the one above, comes first
    beside.write_text('"03": {class: {dataset: shapes, epochs: 77}}', encoding="utf-8")
    assert lab.setup("03").epochs == 77
    with pytest.raises(Unknown, match="no profiles.yaml with lesson '99'"):
        lesson.profiles("99")


def test_parameters_replace_settings_and_empty_ones_do_not(capsys):
    s = lab.setup(
        "03", SETTINGS, profile="smoke", epochs=3, dataset="", lr=2, symmetric=False, limit=None, seed=0
    )
    assert (s.epochs, s.dataset, s.lr, s.symmetric, s.limit, s.seed) == (3, "shapes", 2, False, None, 0)
    assert (s.lesson, s.profile, s.device.type) == ("03", "smoke", "cpu") and s.precision in ("fp32", "bf16")
    out = capsys.readouterr().out
    assert out.startswith("lesson 03, profile smoke, on CPU, ") and "epochs 3" in out


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"profile": "quick"}, "profile 'quick' is not known; choose one of: auto, smoke, class, full"),
        ({"dataset": "imagenete"}, "dataset 'imagenete' is not known; choose one of: .*shapes, or a folder"),
        (
            {"network": "resnet20"},
            "network 'resnet20' is not known; choose one of: conv4, resnet10_half, resnet18, resnet50",
        ),
        ({"epochs": "ten"}, "parameter epochs is 'ten'; it must be a whole number above 0"),
        ({"epochs": 0}, "parameter epochs is 0; it must be a whole number above 0"),
        ({"lr": "warm"}, "parameter lr is 'warm'; it must be a number"),
        ({"symmetric": 1}, "parameter symmetric is 1; it must be True or False"),
        ({"seed": "one"}, "parameter seed is 'one'; it must be a whole number from 0 to 2..32 - 1$"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_right(wrong, message):
    with pytest.raises(Unknown, match=message):
        lab.setup("03", SETTINGS, **{"profile": "smoke", **wrong})


def test_text_is_read_as_what_stands_there():
    """papermill's `-p symmetric false` hands over text, which would count as true."""
    s = lab.setup("03", SETTINGS, profile="smoke", symmetric="false", epochs="1e1", lr="1e-3", seed="2")
    assert (s.symmetric, s.epochs, s.lr, s.seed) == (False, 10, 0.001, 2)


def test_a_smoke_run_leaves_nothing_in_the_temporary_folder(tmp_path):
    code = """
        from ssl_lessons import lab
        s = lab.setup("03", {"smoke": {"dataset": "shapes"}}, profile="smoke")
        (s.run_dir / "resume.pt").write_bytes(bytes(9))
        print(s.run_dir.parent)
    """
    env = {k: v for k, v in os.environ.items() if k != "SSL_LESSONS_RUNS"} | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(tmp_path)
    assert not list(tmp_path.glob("03-*")), "lesson 10 leaves 645 MB otherwise"


def test_a_run_folder_for_each_choice_of_settings(tmp_path, monkeypatch):
    one, again, other = (lab.setup("03", SETTINGS, dataset="shapes", seed=s).run_dir for s in (0, 0, 1))
    assert (
        one == again != other and one.parent == tmp_path / "runs" and one.name.startswith("03-shapes-class-")
    )
    assert lab.setup("03", SETTINGS, run_dir="runs/mine").run_dir == Path("runs/mine")
    smoke = [lab.setup("03", SETTINGS, profile="smoke").run_dir for _ in range(2)]
    assert smoke[0] != smoke[1]  # a smoke test never goes on
    assert smoke[0].parent == tmp_path / "runs"  # $SSL_LESSONS_RUNS is for all runs
    monkeypatch.delenv("SSL_LESSONS_RUNS")
    assert lab.runs_folder() == Path(lab.__file__).resolve().parents[2] / "runs"
    pictures = tmp_path / "my pictures"
    pictures.mkdir()
    mine = lab.setup("03", SETTINGS, dataset=str(pictures))
    assert mine.dataset == str(pictures) and mine.run_dir.name.startswith("03-my pictures-class-")


def notebook(folder: Path) -> Path:
    cells = [
        nbformat.v4.new_code_cell(source)
        for source in (
            "import sys",
            'profile: str = "smoke"  # smoke, class, full\nepochs: int = None\nrun_dir: str = ""',
            "import torch\nfrom ssl_lessons import lab\nlimit = 3",
            'settings = {"smoke": {"dataset": "shapes", "epochs": 1}}\n'
            's = lab.setup("99", settings, profile=profile, epochs=epochs, run_dir=run_dir)',
            "print('epochs are', s.epochs)",
        )
    ]
    cells[1].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / "99_tiny.ipynb")
    return folder / "99_tiny.ipynb"


def test_papermills_unknown_parameter_stops_a_real_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    source, out = notebook(tmp_path), tmp_path / "out.ipynb"
    options = {"progress_bar": False, "cwd": str(tmp_path), "kernel_name": "python3"}
    with pytest.raises(
        papermill.PapermillExecutionError, match="parameter 'epocs' is not known; choose one of"
    ):
        papermill.execute_notebook(source, out, {"epocs": 5, "epochs": 2}, **options)
    papermill.execute_notebook(source, out, {"epochs": 2}, **options)
    assert "epochs are 2" in out.read_text(encoding="utf-8")


def test_unknown_parameters_are_looked_for_in_the_parameter_cells_only(monkeypatch):
    import IPython

    def asked(*cells):
        monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(user_ns={"In": ["", *cells]}))
        lesson._declared({"profile", "epochs"})

    asked(
        "x = 1",
        'profile: str = "auto"\nepochs = 3',
        "settings = {}\nfor i in range(3):\n    y = i",
        "%broken (",
    )
    for cell in ('profile = "auto"\nepoch: int = 3', "# Parameters\nepoch = 3\n"):
        with pytest.raises(Unknown, match="parameter 'epoch' is not known; choose one of: epochs, profile"):
            asked("x = 1", cell)


# ---------------------------------------------------------------------------------------------- checks

T = torch.arange(1.0, 7).view(2, 3)
S = torch.tensor([[1.0, 2.0], [3.5, 4.0]])
EXPLAINED = {
    "sign": (-T, T, "the sign is the other way round"),
    "factor": (2 * T, T, "yours is 2 times the expected: a sum for a mean, a missing factor"),
    "zeros": (0 * T, T, "all zeros"),
    "transpose": (S.T, S, "yours is the transpose"),
    "transposed shape": (T.T, T, r"shape \(3, 2\), expected \(2, 3\); transposed\?"),
    "shape": (T[0], T, r"shape \(3,\), expected \(2, 3\)$"),
    "permuted": (T.flip(0), T, "the right values in another order"),
    "missing term": (T + 0.5, T, "yours is 0.5 more everywhere: a missing term"),
    "no pattern": (T + torch.eye(2, 3), T, "largest difference 1$"),
    "NaN": (T.log().sub(2).sqrt(), T, "holds NaN or infinity"),
    "infinity": (T / 0, T, "holds NaN or infinity"),
    "None": (None, T, "nothing was returned yet"),
    "dots": (..., T, "nothing was returned yet"),
    "words": ("x", T, r"a str that is no tensor, expected shape \(2, 3\)"),
    "too few": ([T], [T, T], "1 values, expected 2"),
    "no sequence": (3.0, [T, T], "a float, expected 2 values"),
    "one of several": ([T, -T], [T, T], "in value 1, .*sign"),
    "integers": (torch.tensor([1, 2]), torch.tensor([1, 3]), "largest difference 1"),
}


@pytest.mark.parametrize("case", EXPLAINED)
def test_a_check_says_what_is_wrong(case):
    mine, reference, message = EXPLAINED[case]
    with pytest.raises(AssertionError, match=f"✗ loss: .*{message}"):
        check("loss", mine, reference)


def test_a_check_says_how_close(capsys):
    check("a", T, T.clone().requires_grad_())
    check("b", (T + 1e-6).numpy(), T)
    check("c", [T, 3], [T, 3.0])
    masked = T.clone().fill_diagonal_(-torch.inf)  # similarities whose own pair is masked out
    check("d", masked, masked.clone())
    check("e", 1.01, 1.0, atol=0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "✓ a: equal" and lines[1].startswith("✓ b: equal within ") and "e-0" in lines[1]
    assert lines[2:4] == ["✓ c: equal", "✓ d: equal"] and lines[4] == "✓ e: equal within 1.0e-02"


def test_an_exercise_never_stops_the_notebook(capsys):
    def stub():
        raise NotImplementedError

    def broken():
        return torch.zeros(2, 3) @ torch.zeros(2, 3)

    def interrupted():
        raise KeyboardInterrupt

    def right():
        return T

    def none(seed):
        return ()

    assert lab.assess("9.1", stub, right, none) is right
    assert "… 9.1: not solved yet. Replace `raise NotImplementedError`" in capsys.readouterr().out
    assert lab.assess("9.1", lambda: -T, right, none) is right
    assert "✗ 9.1: in value 0, " in (out := capsys.readouterr().out) and "the sign is the other way" in out
    assert lab.assess("9.1", broken, right, none) is right  # what a learner's code raises, with its line
    assert "✗ 9.1: RuntimeError in line 2 of your function" in capsys.readouterr().out
    assert lab.assess("9.1", right, right, none) is right
    assert capsys.readouterr().out.startswith("★ 9.1: solved")
    with pytest.raises(KeyboardInterrupt):
        lab.assess("9.1", interrupted, right, none)


def test_an_exercise_is_found_beside_the_lessons(tmp_path, monkeypatch, capsys):
    (tmp_path / "exercises").mkdir()
    text = 'EXERCISE = {"solution": lambda x: 2 * x, "case": lambda seed: (seed,), "mistakes": {}}'
    (tmp_path / "exercises" / "99.1.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert lab.exercise("99.1 · twice", lambda x: x)(3) == 6 and "✗ 99.1 · twice" in capsys.readouterr().out
    with pytest.raises(Unknown, match="exercise '99.2' is not known"):
        lab.exercise("99.2 thrice", abs)


# ---------------------------------------------------------------------------------------------- records


def test_results_skip_a_damaged_record_and_name_it(tmp_path, capsys):
    record = Run.in_memory(seed=0, profile="class").record
    for name in ("03-imagenette-class", "03-shapes-smoke", "04-stl10-class"):
        text = json.dumps({**record, "dataset": {"name": name.split("-")[1]}, "lesson_seconds": 90.0})
        (tmp_path / "results" / f"{name}.json").write_text(text, encoding="utf-8")
    (tmp_path / "results" / "03-broken.json").write_text("{", encoding="utf-8")
    assert list(lab.results("03-*")) == ["03-imagenette-class", "03-shapes-smoke"]
    assert "left out: " in (out := capsys.readouterr().out) and "03-broken.json is damaged" in out
    lines = lesson.measured_minutes("04")
    assert lines == [f"measured: 1.5 min in profile class (stl10) on {record['device']}"]


def test_the_end_of_a_lesson_says_where_its_numbers_came_from(tmp_path, capsys):
    dataset = {"name": "shapes", "split": "train", "images": 40, "origin": "drawn from seed 0"}
    run = Run.create(tmp_path / "03-run", dataset=dataset, seed=5, precision="fp32", seconds=60.0)
    run.add_metric("knn", 0.5234, protocol="weighted kNN, k 20, t 0.07")
    run.add_metric("views_per_second", 812.0)
    run.add_metric("broken", float("nan"))
    s = lab.setup("03", SETTINGS, profile="smoke", seed=5)
    s.started -= 120
    capsys.readouterr()
    lab.finish(s, run)
    out = capsys.readouterr().out
    for words in (
        "record    03-run/record.json",
        "dataset   shapes train, 40 images; drawn from seed 0",
        f"device    {run.record['device']}, fp32, seed 5",
        "2.0 for the lesson, 1.0 of them training",
        "52.3%   weighted kNN, k 20, t 0.07",
        "812.0",
        f"torch {run.record['versions']['torch']}",
    ):
        assert words in out
    assert str(tmp_path) not in out and os.sep + "tmp" not in out
    kept = Run.open(run.folder).record
    assert (kept["lesson"], kept["profile"]) == ("03", "smoke") and kept["lesson_seconds"] >= 120


# ---------------------------------------------------------------------------------------------- experiments


def a_lesson(**changes):
    """Settings as `setup` returns them, for the smallest network."""
    s = lab.setup(
        "03", {"class": dict(SETTINGS["class on shapes"], network="conv4", view=16, stem=None)}, seed=0
    )
    s.__dict__.update({"supervised_epochs": 1, "batch_size": 8, **changes})
    return s


def test_a_trial_is_kept_read_again_and_told_apart_by_its_settings(capsys):
    s, built = a_lesson(), []

    def build(temperature=0.2):
        built.append(temperature)
        return moco(temperature=temperature)

    def measure(method):
        measure.calls += 1
        return {"queue_std": method.queue.std(), "steps": method.step}

    measure.calls = 0
    kept = dict(epochs=2, batch_size=8, measure=measure, device="cpu", precision="fp32")
    first = lab.trial(s, "warm", build, noise(), **kept)
    assert first.folder.parent == s.run_dir / "trials" and len(first.record["history"]) == 2
    assert first.record["metrics"]["steps"]["value"] == 6 and s.earlier == 0
    assert "lesson 03, seed 0" in first.record["metrics"]["steps"]["protocol"]
    again = lab.trial(s, "warm", build, noise(), **kept)
    assert "warm: read from" in capsys.readouterr().out and measure.calls == 1  # not judged again
    assert again.record == first.record and s.earlier == first.record["seconds"] > 0
    other = lab.trial(s, "warm", lambda: build(0.5), noise(), **kept)
    longer = lab.trial(s, "warm", build, noise(), **{**kept, "epochs": 3})
    assert len({run.folder for run in (first, other, longer)}) == 3
    assert len(longer.record["history"]) == 3 and s.trials == {"warm": longer}


def test_baselines_are_trained_once_for_all_lessons(capsys):
    train, test = noise(), noise()
    first = lab.baselines(a_lesson(), train, test)
    assert list(first) == ["random", "pixels", "colours", "supervised"] and set(first["random"]) == set(
        first["supervised"]
    )
    assert first["random"]["knn"]["value"] != first["supervised"]["knn"]["value"]
    capsys.readouterr()
    s = a_lesson(lesson="05")
    assert lab.baselines(s, train, test) == first and "baselines: read from" in capsys.readouterr().out
    assert s.earlier > 0
    lab.baselines(a_lesson(supervised_epochs=2), train, test)
    assert "read from" not in capsys.readouterr().out
    expected = evaluate.judge(evaluate.random_encoder("conv4", 16), train, test, 16)
    assert first["random"] == expected


def test_a_method_is_trained_once_for_all_lessons_and_comes_back_with_its_weights(capsys):
    s = a_lesson(epochs=2, supervised_epochs=3, recipe="short", batch_size=8, precision="fp32")
    runs = {name: lab.trained(s, name, noise()) for name in ("simclr", "moco", "supervised", "random")}
    assert [len(run.record["history"]) for run in runs.values()] == [2, 2, 3, 0]
    assert len({run.folder for run in runs.values()}) == 4 and s.earlier == 0
    capsys.readouterr()
    for name, run in runs.items():
        again = lab.trained(s, name, noise())
        assert again.record["history"] == run.record["history"]
        one, two = (evaluate.load_encoder(each).state_dict() for each in (run, again))
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert capsys.readouterr().out.count("read from") == 3  # nothing was trained for "random"
    assert s.earlier == pytest.approx(sum(run.record["seconds"] for run in runs.values()))
    fresh = evaluate.random_encoder("conv4", 16, seed=0).state_dict()
    untrained, learnt = (evaluate.load_encoder(runs[name]).state_dict() for name in ("random", "simclr"))
    assert all(torch.equal(untrained[key], fresh[key]) for key in fresh)
    assert not all(torch.equal(learnt[key], fresh[key]) for key in fresh)
    other = lab.trained(a_lesson(epochs=3, recipe="short", precision="fp32"), "simclr", noise())
    assert other.folder != runs["simclr"].folder and len(other.record["history"]) == 3
    for ruler, width in (("colours", 512), ("pixels", 3 * 16 * 16)):  # no network, and judged like one
        run = lab.trained(s, ruler, noise())
        assert evaluate.load_encoder(run).width == width and run.record["epochs"] == 0
    with pytest.raises(ValueError, match="'simcrl' is not known.*simclr, moco"):
        lab.trained(s, "simcrl", noise())


def test_the_end_of_a_lesson_keeps_its_trials_and_counts_the_time_they_took(tmp_path):
    s = a_lesson()
    s.earlier = 1000.0
    lab.trial(s, "only", moco, noise(), epochs=1, batch_size=8, measure=lambda m: {"knn": 0.25})
    run = Run.create(tmp_path / "03-run", seed=0, precision="fp32", dataset={"name": "noise"})
    lab.add_judgement(run, {"knn": {"value": 0.5}}, {"random": {"knn": {"value": 0.25}}})
    lab.finish(s, run)
    kept = Run.open(run.folder).record
    assert kept["metrics"] == {"knn": {"value": 0.5}, "knn_random": {"value": 0.25}}
    only = kept["experiments"]["only"]
    assert only["metrics"]["knn"]["value"] == 0.25 and len(only["history"]) == 1
    assert only["dataset"]["images"] == len(noise()) and only["recipe"]["queue"] > 0
    assert 1000 < kept["lesson_seconds"] < 1100


def test_a_run_is_opened_again_and_a_judgement_is_written_and_printed(capsys):
    s = a_lesson(epochs=20)
    run = lab.open_run(s)
    assert run.record["network"] == {"name": "conv4", "image_size": 16, "stem": None}
    run.update(seed=9)
    assert lab.open_run(s).record["seed"] == 9
    names = ("knn", "linear_100", "linear_10")
    parts = []
    for value in (0.5, 0.25, 0.75):
        right = round(400 * value)  # of 400 test images
        metric = {"value": value, "confusion": [[right, 400 - right], [0, 0]]}
        parts.append({name: metric for name in names})
    beside = dict.fromkeys(("random", "pixels", "colours"), parts[1]) | {"supervised": parts[2]}
    capsys.readouterr()
    lab.judgement(s, run, parts[0], beside, "relational")
    text = capsys.readouterr().out
    assert "counted colours" in text and "25.0 ± 2.2" in text  # √(0.25 · 0.75 / 400)
    assert "relational stands 25.0 ± 3.3 points above random encoder" in text
    assert "no difference" in lab.gap(parts[0]["knn"], parts[0]["knn"], "a", "b")
    kept = Run.open(run.folder).record["metrics"]
    assert kept["knn"]["value"] == 0.5 and kept["linear_10_supervised"]["value"] == 0.75


def test_the_last_line_says_what_was_learnt_beside_the_yardsticks():
    metrics = {"knn": {"value": 0.529}, "knn_random": {"value": 0.346}, "knn_colours": {"value": 0.45}}
    assert lab.beside(metrics) == "kNN 52.9 % beside random encoder 34.6, counted colours 45.0"
    assert lab.beside({}) == "kNN: not judged"


def case(seed):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)), 2.0


def solution(x, t):
    return (x / t).sum()


MISTAKES = {
    "you averaged: the formula sums": lambda x, t: (x / t).mean(),
    "τ is missing": lambda x, t: x.sum(),
}


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (lambda x, t: x.sum() / t, "★ 1: solved"),
        (lambda x, t: (x / t).mean(), "✗ 1: you averaged: the formula sums"),
        (lambda x, t: x.sum(), "✗ 1: τ is missing"),
        (lambda x, t: x.max(), "✗ 1: in value 0, largest difference"),
        (lambda x, t: None, "nothing was returned"),
        (lambda x, t: x[5], "IndexError in line 1 of your function"),
    ],
)
def test_an_exercise_names_the_mistake_and_gives_back_what_is_right(mine, says, capsys):
    used = lab.assess("1", mine, solution, case, MISTAKES)
    assert says in capsys.readouterr().out
    assert used is (mine if says.startswith("★") else solution)


def test_an_exercise_sees_what_a_function_changes(capsys):
    def right(x, t):
        x.div_(t)

    used = lab.assess("2", lambda x, t: x / t, right, case, observe=lambda _, x, t: x)
    assert used is right and "✗ 2" in capsys.readouterr().out


def test_a_recipe_is_shown_with_its_source_a_lessons_own_line_and_its_optimiser(capsys):
    lab.show_recipe(RECIPES["short"], "K 7")
    first, own, last = capsys.readouterr().out.splitlines()
    assert first.startswith("recipe 'short': ") and own == "K 7" and "weight decay" in last
