"""What a notebook's own cells call: one set-up, checks that explain themselves, where numbers came from."""

import atexit
import json
import math
import os
import shutil
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml

from ssl_lessons import images
from ssl_lessons.devices import autocast, pick_device, pick_precision, prepare
from ssl_lessons.lab.checks import lesson_files
from ssl_lessons.lab.evidence import YARDSTICKS, beside, standard_error
from ssl_lessons.lab.experiments import add_judgement, digest, runs_folder
from ssl_lessons.methods.base import Recipe
from ssl_lessons.networks import build, check_name
from ssl_lessons.parameters import Parameter, Unknown, assigned, fit, folder, known
from ssl_lessons.records import RecordError, Run, device_name, results_folder

PROFILES = ("smoke", "class", "full")


def pick_profile(profile: str = "auto") -> str:
    """The profile meant by a name; "auto" is $SSL_LESSONS_PROFILE where that is set, else "class"."""
    if profile == "auto":
        profile = os.environ.get("SSL_LESSONS_PROFILE") or "auto"
    profile = "class" if profile == "auto" else profile  # the variable may say "auto" too
    return known("profile", profile, ("auto", *PROFILES))


def profiles(lesson: str) -> dict[str, dict]:
    """A lesson's settings for each profile, {"class on a CPU": {"dataset": …}}, from notebooks/profiles.yaml:
    the first of `lesson_files` that has the lesson."""
    files = lesson_files("profiles.yaml")
    for file in files:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
        if lesson in table:
            return table[lesson]
    places = ", ".join(map(str, files)) or "no file"
    raise Unknown(f"no profiles.yaml with lesson {lesson!r}; looked in {places}")


def setup(
    lesson: str, settings: dict[str, dict] | None = None, *, profile="auto", run_dir=None, **parameters
) -> SimpleNamespace:
    """Choose the settings of a lesson ("03"), validate its parameters, and report the device. Returns a
    namespace of the settings, with `lesson`, `profile`, `device`, `precision`, `run_dir`, `started`,
    `earlier` (seconds of training that are read from disk instead of spent now) and `trials`.

    Args:
        settings: values for each profile; None: those of `profiles(lesson)`. A key may narrow its profile,
            "class on shapes", "class on a CPU" or "class on stl10 with a GPU"; the narrowest that fits is
            taken, a dataset's before a CPU's.
        profile, run_dir, parameters: the notebook's. A parameter that is not None or "" replaces the setting
            of its name; `Unknown` for one that there is not, or that does not fit.
    """
    declared = _declared({"profile", "run_dir", *parameters})
    settings = settings or profiles(lesson)
    started, profile, device = time.time(), known("profile", pick_profile(profile), settings), pick_device()
    dataset = parameters.get("dataset") or settings[profile].get("dataset", "shapes")
    narrow = f"{profile} on a CPU" if device.type == "cpu" else f"{profile} on {dataset} with a GPU"
    fitting = next(key for key in (f"{profile} on {dataset}", narrow, profile) if key in settings)
    values = {"dataset": dataset, **settings[fitting]}
    for name, value in parameters.items():
        if value is None or value == "":
            values.setdefault(name, None)
            continue
        like = 0 if name == "seed" else values.get(name)  # outside a notebook: the setting that it replaces
        values[name] = fit(name, value, declared.get(name) or Parameter(type(like).__name__, like))
    dataset = values["dataset"]
    if not folder(dataset).is_dir():
        known("dataset", dataset, [*images.CATALOGUE, "or a folder of images"])
    if "network" in values:
        check_name(values["network"])
        if values["network"] != settings[fitting].get("network"):
            values["stem"] = None  # the profile's stem belongs to the profile's network

    # One folder for each lesson and choice of settings: run again, and the run goes on; change one, and it is
    # another. A smoke test never goes on.
    precision = pick_precision("auto", device)  # one GPU's run does not go on in another's arithmetic
    name = f"{lesson}-{Path(dataset).name}-{profile}"
    if run_dir:
        place = folder(run_dir)
    elif profile == "smoke" and os.environ.get("SSL_LESSONS_RUNS"):
        place = runs_folder() / f"{name}-{time.time_ns()}"
    elif profile == "smoke":
        place = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)  # up to 645 MB, in lesson 10
    else:
        place = runs_folder() / f"{name}-{digest({**values, 'precision': precision})}"
    print(f"lesson {lesson}, profile {profile}, on {device_name(device)} with {precision} arithmetic")
    chosen = [f"{key} {value}" for key, value in values.items() if value is not None]
    print(textwrap.fill(" · ".join(chosen), 96, break_long_words=False))
    speed = None if profile == "smoke" else _speed(values, device, precision)
    for line in measured_minutes(lesson, speed):
        print(line)
    if "google.colab" in sys.modules and device.type == "cpu":
        print("this is a CPU: choose Runtime → Change runtime type → T4 GPU, then Runtime → Run all")
    earlier = Run.open(place).record["seconds"] if (place / "record.json").exists() else 0.0
    values |= {"lesson": lesson, "profile": profile, "device": device, "precision": precision}
    return SimpleNamespace(**values, run_dir=place, started=started, speed=speed, earlier=earlier, trials={})


def _speed(values: dict, device: torch.device, precision: str, seconds: float = 1.5) -> float | None:
    """Views a second that the lesson's network learns from here: steps on noise, timed for so long."""
    if not values.get("network"):
        return None
    view = values.get("view") or 32
    with torch.random.fork_rng():
        network = build(values["network"], view, values.get("stem"))
        batch = torch.rand(32, 3, view, view).to(device, memory_format=torch.channels_last)
    prepare(device)
    network = network.to(device, memory_format=torch.channels_last)

    def step() -> None:
        with autocast(device, precision):
            loss = network(batch).float().square().mean()
        loss.backward()
        loss.item()  # waits for a GPU

    step()  # sets things up
    steps, begun = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - begun < seconds:
        step()
        steps += 1
    return 32 * steps / (time.perf_counter() - begun)


def _declared(names: set[str]) -> dict[str, Parameter]:
    """What this notebook's own cell of parameters declares; none outside a notebook. Stops at one that is not
    among the lesson's `names`: papermill only warns. Parameters are what two cells assign, as they were last
    run: the notebook's own, known by `profile`, and papermill's after it."""
    declared, present = {}, []
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    for source in shell.user_ns.get("In", []) if shell else []:
        with suppress(SyntaxError):  # of magics
            in_cell = assigned(source)
            if source.startswith("# Parameters"):
                present += in_cell
            elif "profile" in in_cell:
                declared, present = in_cell, [*in_cell]
    for name in present:
        known("parameter", name, sorted(names))
    return declared


def show_recipe(recipe: Recipe, *own: str) -> None:
    """Print a recipe: name and source, a lesson's `own` lines about its method, and how it is optimised."""
    print(f"recipe {recipe.name!r}: {recipe.source}", *own, sep="\n")
    print(f"{recipe.optimizer}, lr {recipe.lr}, weight decay {recipe.weight_decay}", end=", ")
    print(f"batch {recipe.batch_size}, {recipe.epochs} epochs")


def judgement(
    lab: SimpleNamespace, run: Run, metrics: dict[str, dict], beside: dict[str, dict], title: str
) -> None:
    """`add_judgement`, and its table: a method between the four `baselines`, and how far above them it is.
    ± is the standard error of an accuracy on so many test images; a gap of less than two of its own standard
    errors is called no difference."""
    add_judgement(run, metrics, beside)
    rows = [(label, beside[kind]) for kind, label in YARDSTICKS.items()]
    rows.insert(-1, (title, metrics))  # the supervised one is last
    columns = {"knn": "kNN", "linear_100": "linear", "linear_10": "linear, 10 %"}
    print(f"{'accuracy on the test images, %':<32}" + "".join(f"{head:>15}" for head in columns.values()))
    for label, judged in rows:
        line = f"{label:<32}"
        for name in columns:
            accuracy, error = 100 * judged[name]["value"], 100 * standard_error(judged[name])
            line += f"{f'{accuracy:.1f} ± {error:.1f}':>15}"
        print(line)
    for kind in ("random", "colours"):
        print(gap(metrics["knn"], beside[kind]["knn"], title, YARDSTICKS[kind]))
    print(f"{title}: {lab.epochs} epochs without labels, last epoch, seed {lab.seed}")


def gap(metric: dict, other: dict, title: str, label: str) -> str:
    """Two accuracies on the same test images, compared in words."""
    points = 100 * (metric["value"] - other["value"])
    error = 100 * math.hypot(standard_error(metric), standard_error(other))
    if abs(points) < 2 * error:
        return f"kNN: {title} and {label}: {points:+.1f} ± {error:.1f} points, no difference"
    side = "above" if points > 0 else "below"
    return f"kNN: {title} stands {abs(points):.1f} ± {error:.1f} points {side} {label}"


def results(pattern: str = "*") -> dict[str, Run]:
    """Committed records, by file name, that match a glob pattern; damaged ones are named and left out."""
    runs = {}
    for path in sorted(results_folder().glob(f"{pattern}.json")):
        try:
            runs[path.stem] = Run.open(path)
        except RecordError as error:
            print(f"left out: {error}")
    return runs


def recorded_minutes() -> list[dict]:
    """How long whole lessons took by their records: lesson, profile, dataset, device, seconds, speed."""
    rows = []
    for name, run in results("[0-9][0-9]-*").items():
        record = run.record
        if record.get("lesson_seconds") and record["dataset"]:  # the lesson was finished
            row = {key: record.get(key) for key in ("profile", "device", "speed")}
            row |= {"lesson": name[:2], "dataset": record["dataset"]["name"]}
            rows.append({**row, "seconds": record["lesson_seconds"]})
    return rows


def measured_minutes(lesson: str, speed: float | None = None) -> list[str]:
    """How long the whole lesson took where it was measured, a line for each profile, dataset and device; and
    what that comes to here, where both machines' speeds (views a second, `_speed`) are known."""
    file = results_folder() / "bench-lesson.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    lines = []
    for row in [*rows, *recorded_minutes()]:
        minutes = row["seconds"] / 60
        place = f"profile {row['profile']} ({row['dataset']}) on {row['device']}"
        line = f"measured: {minutes:.1f} min in {place}"
        if speed and row.get("speed"):
            line += f"; about {max(1, minutes * row['speed'] / speed):.0f} min here"
        if row["lesson"] == lesson and line not in lines:
            lines.append(line)
    return lines


def finish(lab: SimpleNamespace, run: Run) -> None:
    """Close a lesson: write its duration and trials into its record, and say where its numbers came from.
    The time is that of this session, plus the training that was read from disk instead of done again."""
    seconds = time.time() - lab.started + lab.earlier
    # the speed of the session that trained: another's says nothing of those minutes
    speed = run.record.get("speed") if lab.earlier else lab.speed
    trials = {}
    for name, trial in lab.trials.items():
        kept = ("method", "recipe", "epochs", "batch_size", "seconds", "history", "metrics")
        trials[name] = {key: trial.record[key] for key in kept}
        dataset = trial.record["dataset"]
        trials[name]["dataset"] = {key: dataset[key] for key in ("name", "split", "size", "images")}
    facts = {"experiments": trials} if trials else {}
    run.update(**facts, lesson=lab.lesson, profile=lab.profile, lesson_seconds=seconds, speed=speed)
    record, dataset = run.record, run.record["dataset"] or {}
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    print(f"record    {run.folder.name}/record.json")
    print(f"dataset   {dataset.get('name')} {dataset.get('split')}, ", end="")
    print(f"{dataset.get('images')} images; {dataset.get('origin')}")
    print(f"device    {record['device']}, {record.get('precision')}, seed {record['seed']}")
    print(f"versions  {versions}")
    print(f"minutes   {seconds / 60:.1f} for the lesson, ", end="")
    print(f"{record['seconds'] / 60:.1f} of them training, read from disk or done now")
    for name, metric in record["metrics"].items():
        value, text = metric["value"], str(metric["value"])
        if value is not None and abs(value) <= 1:
            text = f"{value:.1%}" if abs(value) >= 0.01 else f"{value:.2%}"
        if name.rsplit("_", 1)[-1] not in YARDSTICKS:  # they stand in the last line
            print(f"{name:<24} {text}   {metric.get('protocol', '')}")
    if "knn" in record["metrics"]:
        print(beside(record["metrics"]))
