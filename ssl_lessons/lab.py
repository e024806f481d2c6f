"""What a notebook's own cells call: one set-up, checks that explain themselves, where numbers came from."""

import ast
import hashlib
import json
import os
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from ssl_lessons import images
from ssl_lessons.networks import NETWORKS
from ssl_lessons.records import RecordError, Run, device_name
from ssl_lessons.training import pick_device, pick_precision

PROFILES = ("smoke", "class", "full")


class LessonError(ValueError):
    """A lesson was asked for something that it does not have; the message lists what it has."""


def pick_profile(profile: str = "auto") -> str:
    """The profile meant by a name; "auto" is $SSL_LESSONS_PROFILE where that is set, else "class"."""
    if profile == "auto":
        profile = os.environ.get("SSL_LESSONS_PROFILE") or "class"
    if profile not in PROFILES:
        raise LessonError(f"profile {profile!r} is not known; choose one of: auto, {', '.join(PROFILES)}")
    return profile


def setup(
    lesson: str, settings: dict[str, dict], *, profile: str = "auto", run_dir: str | None = None, **parameters
) -> SimpleNamespace:
    """Choose a lesson's settings, validate its parameters, and report the device.

    Args:
        lesson: its number, "03".
        settings: values for each profile. A key may narrow the profile, "class on shapes" or "class on a
            CPU"; the narrowest that fits is taken, a dataset's before a CPU's.
        profile, run_dir, parameters: the notebook's parameters. A parameter that is not None replaces the
            setting of its name.
    Returns:
        A namespace of the settings, with `lesson`, `profile`, `device`, `precision`, `run_dir` and `started`.
    Raises:
        LessonError: an unknown profile, dataset, network or parameter, or a value of the wrong kind.
    """
    _refuse_unknown({"profile", "run_dir", *parameters})
    profile, device = pick_profile(profile), pick_device()
    dataset = parameters.get("dataset") or settings[profile].get("dataset", "shapes")
    narrow = [f"{profile} on {dataset}", *([f"{profile} on a CPU"] if device.type == "cpu" else []), profile]
    values = dict(settings[next(key for key in narrow if key in settings)])
    for name, value in parameters.items():
        if value is None or value == "":
            values.setdefault(name, dataset if name == "dataset" else None)
            continue
        values[name] = _right_kind(name, value, 0 if name == "seed" else values.get(name))
    values.setdefault("dataset", dataset)
    if dataset not in images.CATALOGUE and not Path(dataset).expanduser().is_dir():
        known = ", ".join(images.CATALOGUE)
        raise LessonError(f"dataset {dataset!r} is not known; choose one of: {known}, or a folder of images")
    if "network" in values and values["network"] not in NETWORKS:
        raise LessonError(f"network {values['network']!r} is not known; choose one of: {', '.join(NETWORKS)}")

    # One folder for each lesson and choice of settings: run again, and the run goes on; change one, and it is
    # another. A smoke test never goes on.
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
    name = f"{lesson}-{Path(str(values['dataset'])).name}-{profile}"
    if run_dir:
        folder = Path(run_dir)
    elif profile == "smoke":
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    else:
        folder = _runs_folder() / f"{name}-{digest}"
    precision = pick_precision("auto", device)
    print(f"lesson {lesson}, profile {profile}, on {device_name(device)} with {precision} arithmetic")
    chosen = [f"{key} {value}" for key, value in values.items() if value is not None]
    print(textwrap.fill(" · ".join(chosen), 96, break_long_words=False))
    for line in measured_minutes(lesson):
        print(line)
    values |= {"lesson": lesson, "profile": profile, "device": device, "precision": precision}
    return SimpleNamespace(**values, run_dir=folder, started=time.time())


def _right_kind(name: str, value, like):
    """`value` if it is of the kind of the setting that it replaces, else LessonError."""
    if isinstance(like, bool) and not isinstance(value, bool):
        raise LessonError(f"parameter {name} is {value!r}; it must be True or False")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (
        isinstance(like, int)
        and not isinstance(like, bool)
        and not (whole and (value >= 1 or name == "seed"))
    ):
        above = "" if name == "seed" else " above 0"
        raise LessonError(f"parameter {name} is {value!r}; it must be a whole number{above}")
    if isinstance(like, float) and not (whole or isinstance(value, float)):
        raise LessonError(f"parameter {name} is {value!r}; it must be a number")
    return value


def _refuse_unknown(known: set[str]) -> None:
    """Stop at a parameter that the lesson does not have: papermill only warns, and goes on without it.

    Parameters are what two cells assign: the notebook's own, known by `profile`, and papermill's after it.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    for source in shell.user_ns.get("In", []) if shell else []:
        try:
            body = ast.parse(source).body
        except SyntaxError:
            continue
        targets = [t for line in body for t in getattr(line, "targets", [getattr(line, "target", None)])]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if "profile" in names or source.startswith("# Parameters"):
            for name in names:
                if name not in known:
                    listed = ", ".join(sorted(known))
                    raise LessonError(f"parameter {name!r} is not known; this lesson has: {listed}")


def _runs_folder() -> Path:
    """runs/ of the checkout that the package is used from, else of the working directory."""
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "runs"


def results_folder() -> Path:
    """The committed run records: data/results of the checkout."""
    return Path(__file__).resolve().parent.parent / "data" / "results"


def results(pattern: str = "*") -> dict[str, Run]:
    """Committed records, by file name, that match a glob pattern; damaged ones are named and left out."""
    found = {}
    for path in sorted(results_folder().glob(f"{pattern}.json")):
        try:
            found[path.stem] = Run.open(path)
        except RecordError as error:
            print(f"left out: {error}")
    return found


def results_table(pattern: str = "03-*") -> str:
    """The committed records as a Markdown table, for README.md: a test keeps the two in step."""
    lines = [
        "| record | images | network | epochs | minutes | kNN | random | 10 % | random | device |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, run in results(pattern).items():
        row, network = run.record, run.record["network"]
        names = ("knn", "knn_random", "linear_10", "linear_10_random")
        judged = " | ".join(f"{row['metrics'][metric]['value']:.1%}" for metric in names)
        lines.append(
            f"| {name} | {row['dataset']['name']}, {row['view_size']} px "
            f"| {network['name']} | {row['epochs']} "
            f"| {row['seconds'] / 60:.1f} | {judged} | {row['device']}, {row['precision']} |"
        )
    return "\n".join(lines)


def measured_minutes(lesson: str) -> list[str]:
    """How long the whole lesson took where it was measured, a line for each committed record of it."""
    lines = []
    for name, run in results(f"{lesson}-*").items():
        if "lesson_seconds" in run.record:
            where = f"in profile {run.record.get('profile')} on {run.record['device']} ({name})"
            lines.append(f"measured: {run.record['lesson_seconds'] / 60:.1f} min {where}")
    return lines


def finish(lab: SimpleNamespace, run: Run) -> None:
    """Close a lesson: write how long it took into its record, and say where its numbers came from."""
    # Run again over a finished run, a lesson is shorter than it is: the longest is kept.
    seconds = max(time.time() - lab.started, run.record.get("lesson_seconds", 0))
    run.update(lesson=lab.lesson, profile=lab.profile, lesson_seconds=seconds)
    dataset, packages = run.record["dataset"] or {}, run.record["versions"]
    print(f"record    {run.folder.name}/record.json")
    origin = f"{dataset.get('images')} images; {dataset.get('origin')}"
    print(f"dataset   {dataset.get('name')} {dataset.get('split')}, {origin}")
    print(f"device    {run.record['device']}, {run.record.get('precision')}, seed {run.record['seed']}")
    print(f"versions  {', '.join(f'{name} {version}' for name, version in packages.items())}")
    whole, training = (run.record[name] / 60 for name in ("lesson_seconds", "seconds"))
    print(f"minutes   {whole:.1f} for the lesson, {training:.1f} of them training")
    for name, metric in run.record["metrics"].items():
        value = metric["value"]
        text = f"{value:.1%}" if value is not None and abs(value) <= 1 else str(value)
        print(f"{name:<24} {text}   {metric.get('protocol', '')}")


def check(name: str, mine, reference, atol: float = 1e-5) -> None:
    """Compare what a learner built with what the package says; print how close they are.

    Args:
        mine, reference: tensors, numbers, or sequences of them. atol: largest absolute difference allowed.
    Raises:
        AssertionError: they differ; the message says how, and what usually causes it.
    """
    problem, difference = _difference(mine, reference, atol)
    if problem:
        raise AssertionError(f"✗ {name}: {problem}")
    print(f"✓ {name}: " + ("equal" if difference == 0 else f"equal within {difference:.1e}"))


def _difference(mine, reference, atol: float) -> tuple[str, float]:
    if mine is None or mine is Ellipsis:
        return "nothing was returned yet; return the value from your function", 0.0
    if isinstance(reference, (list, tuple)):
        if not hasattr(mine, "__len__"):
            return f"a {type(mine).__name__}, expected {len(reference)} values", 0.0
        if len(mine) != len(reference):
            return f"{len(mine)} values, expected {len(reference)}", 0.0
        parts = [_difference(a, b, atol) for a, b in zip(mine, reference, strict=True)]
        wrong = next((f"in value {i}, {text}" for i, (text, _) in enumerate(parts) if text), "")
        return wrong, max((difference for _, difference in parts), default=0.0)
    reference = torch.as_tensor(reference).detach().cpu()
    try:
        mine = torch.as_tensor(mine).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        return f"a {type(mine).__name__} that is no tensor, expected shape {tuple(reference.shape)}", 0.0
    if mine.shape != reference.shape:
        hint = "; transposed?" if mine.shape == reference.shape[::-1] else ""
        return f"shape {tuple(mine.shape)}, expected {tuple(reference.shape)}{hint}", 0.0
    a, b = mine.double(), reference.double()
    if (b.isfinite() & ~a.isfinite()).any():
        return "holds NaN or infinity; an exp of a large number, or a division by zero?", 0.0
    gaps = torch.where(a == b, 0.0, (a - b).abs())  # an infinity equals itself: a masked similarity
    difference = gaps.max().item() if a.numel() else 0.0
    if difference <= atol:
        return "", difference
    return f"largest difference {difference:.3g}{_cause(a, b, atol)}", difference


def _cause(a: Tensor, b: Tensor, atol: float) -> str:
    """The usual reason why `a` is not `b`, where one fits."""
    if torch.allclose(-a, b, atol=atol):
        return "; the sign is the other way round"
    if not a.any():
        return "; yours is all zeros"
    scale = (a * b).sum() / (b * b).sum()
    if torch.allclose(a, scale * b, atol=atol):
        return (
            f"; yours is {scale:.4g} times the expected: a sum for a mean, a missing factor or temperature?"
        )
    if a.numel() > 1 and torch.allclose((a - b), (a - b).mean().expand_as(a), atol=atol):
        return f"; yours is {(a - b).mean():.4g} more everywhere: a missing term?"
    if a.dim() == 2 and a.shape[0] == a.shape[1] and torch.allclose(a.T, b, atol=atol):
        return "; yours is the transpose"
    if a.numel() > 1 and torch.allclose(a.flatten().sort().values, b.flatten().sort().values, atol=atol):
        return "; the right values in another order"
    return ""


def attempt(name: str, checks: Callable[[], None]) -> bool:
    """Run an exercise's checks; say "not solved yet" and what is wrong, or "solved". The notebook goes on."""
    try:
        checks()
    except NotImplementedError:
        print(
            f"… {name}: not solved yet. Replace `raise NotImplementedError` above and run both cells again."
        )
    except AssertionError as error:
        print(f"{error}\n… {name}: not solved yet.")
    except Exception as error:  # whatever an attempt can raise: it is shown whole, and the lesson can go on
        print("".join(traceback.format_exception(error)) + f"… {name}: not solved yet.")
    else:
        print(f"★ {name}: solved.")
        return True
    return False
