"""What a notebook's own cells call: one set-up, checks that explain themselves, where numbers came from."""

import hashlib
import json
import math
import os
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml

from ssl_lessons import images
from ssl_lessons.devices import autocast, pick_device, pick_precision, prepare
from ssl_lessons.lab.checks import lesson_files
from ssl_lessons.lab.evidence import YARDSTICKS, beside, standard_error
from ssl_lessons.lab.experiments import add_judgement, runs_folder
from ssl_lessons.methods.base import Recipe
from ssl_lessons.networks import build, check_name
from ssl_lessons.parameters import Parameter, Unknown, assigned, fit
from ssl_lessons.records import RecordError, Run, device_name, results_folder

PROFILES = ("smoke", "class", "full")


def pick_profile(profile: str = "auto") -> str:
    """The profile meant by a name; "auto" is $SSL_LESSONS_PROFILE where that is set, else "class"."""
    if profile == "auto":
        profile = os.environ.get("SSL_LESSONS_PROFILE") or "class"
    if profile not in PROFILES:
        raise Unknown(f"profile {profile!r} is not known; choose one of: auto, {', '.join(PROFILES)}")
    return profile


def profiles(lesson: str) -> dict[str, dict]:
    """A lesson's settings for each profile, {"class on a CPU": {"dataset": …}}, from notebooks/profiles.yaml:
    the first of `lesson_files` that has the lesson."""
    files = lesson_files("profiles.yaml")
    for file in files:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
        if lesson in table:
            return table[lesson]
    raise Unknown(
        f"no profiles.yaml with lesson {lesson!r}; looked in {', '.join(map(str, files)) or 'no file'}"
    )


def setup(
    lesson: str,
    settings: dict[str, dict] | None = None,
    *,
    profile: str = "auto",
    run_dir: str | None = None,
    **parameters,
) -> SimpleNamespace:
    """Choose a lesson's settings, validate its parameters, and report the device.

    Args:
        lesson: its number, "03".
        settings: values for each profile; None: those of `profiles(lesson)`. A key may narrow its profile,
            "class on shapes", "class on a CPU" or "class on stl10 with a GPU"; the narrowest that fits is
            taken, a dataset's before a CPU's.
        profile, run_dir, parameters: the notebook's parameters. A parameter that is not None or "" replaces
            the setting of its name.
    Returns:
        A namespace of the settings, with `lesson`, `profile`, `device`, `precision`, `run_dir`, `started`,
        `earlier` (seconds of training that are read from disk instead of spent now) and `trials`.
    Raises:
        Unknown: an unknown profile, dataset, network or parameter, or a value of the wrong kind.
    """
    declared = _declared({"profile", "run_dir", *parameters})
    settings = settings or profiles(lesson)
    started, profile, device = time.time(), pick_profile(profile), pick_device()
    dataset = parameters.get("dataset") or settings[profile].get("dataset", "shapes")
    narrow = f"{profile} on a CPU" if device.type == "cpu" else f"{profile} on {dataset} with a GPU"
    fitting = [key for key in (f"{profile} on {dataset}", narrow, profile) if key in settings]
    values = dict(settings[fitting[0]])
    for name, value in parameters.items():
        if value is None or value == "":
            values.setdefault(name, dataset if name == "dataset" else None)
            continue
        like = 0 if name == "seed" else values.get(name)  # outside a notebook: the setting that it replaces
        values[name] = fit(name, value, declared.get(name) or Parameter(type(like).__name__, like))
    values.setdefault("dataset", dataset)
    if dataset not in images.CATALOGUE and not Path(dataset).expanduser().is_dir():
        known = ", ".join(images.CATALOGUE)
        raise Unknown(f"dataset {dataset!r} is not known; choose one of: {known}, or a folder of images")
    if "network" in values:
        check_name(values["network"])
        if parameters.get("network") and values["network"] != settings[fitting[0]].get("network"):
            values["stem"] = None  # the profile's stem belongs to the profile's network

    # One folder for each lesson and choice of settings: run again, and the run goes on; change one, and it is
    # another. A smoke test never goes on.
    precision = pick_precision("auto", device)  # one GPU's run does not go on in another's arithmetic
    what = {**values, "precision": precision}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:8]
    name = f"{lesson}-{Path(str(values['dataset'])).name}-{profile}"
    if run_dir:
        folder = Path(run_dir)
    elif profile == "smoke":
        place = runs_folder() if os.environ.get("SSL_LESSONS_RUNS") else Path(tempfile.gettempdir())
        place.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))
    else:
        folder = runs_folder() / f"{name}-{digest}"
    print(f"lesson {lesson}, profile {profile}, on {device_name(device)} with {precision} arithmetic")
    chosen = [f"{key} {value}" for key, value in values.items() if value is not None]
    print(textwrap.fill(" · ".join(chosen), 96, break_long_words=False))
    speed = None if profile == "smoke" else _speed(values, device, precision)
    for line in measured_minutes(lesson, speed):
        print(line)
    if "google.colab" in sys.modules and device.type == "cpu":
        print("this is a CPU: choose Runtime → Change runtime type → T4 GPU, then Runtime → Run all")
    values |= {"lesson": lesson, "profile": profile, "device": device, "precision": precision}
    record = folder / "record.json"
    earlier = Run.open(folder).record["seconds"] if record.exists() else 0.0
    return SimpleNamespace(**values, run_dir=folder, started=started, speed=speed, earlier=earlier, trials={})


def _speed(values: dict, device: torch.device, precision: str, seconds: float = 1.5) -> float | None:
    """Views a second that the lesson's network learns from here: a few steps on noise, timed."""
    if not values.get("network"):
        return None
    view = values.get("view") or 32
    with torch.random.fork_rng():
        network = build(values["network"], view, values.get("stem")).to(device)
        batch = torch.rand(32, 3, view, view, device=device).to(memory_format=torch.channels_last)
    prepare(device)
    network = network.to(memory_format=torch.channels_last)
    done, begun = -1, time.perf_counter()
    while done < 1 or time.perf_counter() - begun < seconds:
        if done == 0:  # the first step is not counted: it sets things up
            begun = time.perf_counter()
        with autocast(device, precision):
            loss = network(batch).float().square().mean()
        loss.backward()
        loss.item()  # waits for a GPU
        done += 1
    return 32 * done / (time.perf_counter() - begun)


def _declared(known: set[str]) -> dict[str, Parameter]:
    """What this notebook's own cell of parameters declares; none outside a notebook.

    Stops at a parameter that the lesson does not have: papermill only warns, and goes on without it.
    Parameters are what two cells assign, as they were last run: the notebook's own, known by `profile`, and
    papermill's after it.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return {}
    declared, assigned_names, shell = {}, [], get_ipython()
    for source in shell.user_ns.get("In", []) if shell else []:
        try:
            names = assigned(source)
        except SyntaxError:
            continue
        if "profile" in names and not source.startswith("# Parameters"):
            declared, assigned_names = names, []
        if "profile" in names or source.startswith("# Parameters"):
            assigned_names += names
    for name in assigned_names:
        if name not in known:
            raise Unknown(f"parameter {name!r} is not known; this lesson has: {', '.join(sorted(known))}")
    return declared


def show_recipe(recipe: Recipe, *own: str) -> None:
    """Print a recipe: name and source, a lesson's `own` lines about its method, and how it is optimised."""
    r = recipe
    print(f"recipe {r.name!r}: {r.source}")
    for line in own:
        print(line)
    print(f"{r.optimizer}, lr {r.lr}, weight decay {r.weight_decay}, batch {r.batch_size}, {r.epochs} epochs")


def judgement(
    lab: SimpleNamespace, run: Run, metrics: dict[str, dict], beside: dict[str, dict], title: str
) -> None:
    """`add_judgement`, and its table: a method between the four `baselines`, and how far above them it is.

    ± is the standard error of an accuracy on so many test images; a gap of less than two of its own standard
    errors is called no difference.
    """
    add_judgement(run, metrics, beside)
    labels = {**YARDSTICKS, "own": title}
    labels["supervised"] = labels.pop("supervised")  # last
    everything = {**beside, "own": metrics}
    columns = {"knn": "kNN", "linear_100": "linear", "linear_10": "linear, 10 %"}
    print(f"{'accuracy on the test images, %':<32}" + "".join(f"{text:>15}" for text in columns.values()))
    for kind, label in labels.items():
        cells = []
        for column in columns:
            metric = everything[kind][column]
            cells.append(f"{100 * metric['value']:.1f} ± {100 * standard_error(metric):.1f}")
        print(f"{label:<32}" + "".join(f"{cell:>15}" for cell in cells))
    for kind in ("random", "colours"):
        print(gap(metrics["knn"], beside[kind]["knn"], title, labels[kind]))
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
    found = {}
    for path in sorted(results_folder().glob(f"{pattern}.json")):
        try:
            found[path.stem] = Run.open(path)
        except RecordError as error:
            print(f"left out: {error}")
    return found


def benchmark(name: str) -> dict:
    """The committed figures of `ssl-lessons bench NAME`, with the machine they were measured on."""
    path = results_folder() / f"bench-{name}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    known = ", ".join(p.stem.removeprefix("bench-") for p in sorted(results_folder().glob("bench-*.json")))
    raise Unknown(f"no benchmark {name!r} is committed; choose one of: {known}")


def recorded_minutes() -> list[dict]:
    """How long whole lessons took by their records: lesson, profile, dataset, device, seconds, speed."""
    rows = []
    for path in sorted(results_folder().glob("[0-9][0-9]-*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            row = {"lesson": path.stem[:2], "dataset": record["dataset"]["name"]}
            row["seconds"] = record["lesson_seconds"]
            row |= {"profile": record["profile"], "device": record["device"], "speed": record.get("speed")}
        except (ValueError, KeyError, TypeError):  # a damaged record, or of a lesson that did not finish
            continue
        rows.append(row)
    return rows


def measured_minutes(lesson: str, speed: float | None = None) -> list[str]:
    """How long the whole lesson took where it was measured, a line for each profile, dataset and device; and
    what that comes to here, where both machines' speeds (views a second, `_speed`) are known."""
    benchmark_file = results_folder() / "bench-lesson.json"
    rows = benchmark("lesson")["rows"] if benchmark_file.exists() else []
    lines = []
    for row in [*rows, *recorded_minutes()]:
        minutes = row["seconds"] / 60
        line = (
            f"measured: {minutes:.1f} min in profile {row['profile']} ({row['dataset']}) on {row['device']}"
        )
        if speed and row.get("speed"):
            line += f"; about {max(1, minutes * row['speed'] / speed):.0f} min here"
        if row["lesson"] == lesson and line not in lines:
            lines.append(line)
    return lines


def finish(lab: SimpleNamespace, run: Run) -> None:
    """Close a lesson: write its duration and trials into its record, and say where its numbers came from.

    The time is that of this session, plus the training that was read from disk instead of done again.
    """
    seconds = time.time() - lab.started + lab.earlier
    kept = ("method", "recipe", "epochs", "batch_size", "seconds", "history", "metrics")
    trials = {}
    for name, trial in lab.trials.items():
        images_of = trial.record["dataset"]
        trials[name] = {key: trial.record[key] for key in kept}
        trials[name]["dataset"] = {key: images_of[key] for key in ("name", "split", "size", "images")}
    if trials:
        run.update(experiments=trials)
    # the speed of the session that trained: another's says nothing of those minutes
    speed = run.record.get("speed") if lab.earlier else lab.speed
    run.update(lesson=lab.lesson, profile=lab.profile, lesson_seconds=seconds, speed=speed)
    dataset, packages = run.record["dataset"] or {}, run.record["versions"]
    print(f"record    {run.folder.name}/record.json")
    origin = f"{dataset.get('images')} images; {dataset.get('origin')}"
    print(f"dataset   {dataset.get('name')} {dataset.get('split')}, {origin}")
    print(f"device    {run.record['device']}, {run.record.get('precision')}, seed {run.record['seed']}")
    print(f"versions  {', '.join(f'{name} {version}' for name, version in packages.items())}")
    whole, training = (run.record[name] / 60 for name in ("lesson_seconds", "seconds"))
    source = "read from disk or done now"
    print(f"minutes   {whole:.1f} for the lesson, {training:.1f} of them training, {source}")
    for name, metric in run.record["metrics"].items():
        if name.endswith(tuple(f"_{kind}" for kind in YARDSTICKS)):
            continue  # they stand in the last line
        value = metric["value"]
        text = str(value)
        if value is not None and abs(value) <= 1:
            text = f"{value:.1%}" if abs(value) >= 0.01 else f"{value:.2%}"
        print(f"{name:<24} {text}   {metric.get('protocol', '')}")
    if "knn" in run.record["metrics"]:
        print(beside(run.record["metrics"]))
