"""What was measured before the lesson, with its error: long runs, experiments over seeds, and verdicts."""

import json
import math
import statistics
from collections.abc import Sequence

from ssl_lessons.evaluate import weights_folder
from ssl_lessons.parameters import Unknown
from ssl_lessons.records import TITLES, Run, results_folder

SEEDS = 3  # fewer have no verdict
YARDSTICKS = {kind: TITLES[kind] for kind in ("random", "pixels", "colours")}
YARDSTICKS["supervised"] = "supervised, all labels"


def standard_error(metric: dict) -> float:
    """Of an accuracy on the test images, in [0, 1]: √(p (1 − p) / n), n being the test images."""
    count = sum(map(sum, metric["confusion"]))
    return math.sqrt(metric["value"] * (1 - metric["value"]) / count)


def beside(metrics: dict[str, dict]) -> str:
    """What was learnt, in a line: a record's kNN accuracy beside those of the yardsticks that it has."""
    if "knn" not in metrics:
        return "kNN: not judged"
    others = {text: metrics[f"knn_{kind}"] for kind, text in YARDSTICKS.items() if f"knn_{kind}" in metrics}
    shown = [f"{text} {100 * metric['value']:.1f}" for text, metric in others.items()]
    return f"kNN {100 * metrics['knn']['value']:.1f} %" + (" beside " + ", ".join(shown) if shown else "")


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error over seeds, in per cent; of one seed the error is unknown (NaN)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return 100 * statistics.fmean(values), 100 * error


def trials() -> list[dict]:
    """The lines of experiments.jsonl, a trial each."""
    text = (results_folder() / "experiments.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def arms(name: str, lines: Sequence[dict]) -> dict[str, list[dict]]:
    """{arm: the lines of its best setting, one a seed} of an experiment, from those of experiments.jsonl."""
    settings = {}
    for line in lines:
        experiment, _, arm = line["note"].partition(": ")
        if experiment == name and "knn" in line:
            settings.setdefault(arm, {}).setdefault(line["alternative"], {})[line["seed"]] = line
    found = {}
    for arm, alternatives in settings.items():
        runs = [list(by_seed.values()) for by_seed in alternatives.values()]
        found[arm] = max(runs, key=lambda some: statistics.fmean(line["knn"] for line in some))
    return found


def verdict(found: dict[str, list[dict]]) -> str:
    """The best arm against the worst, in words.

    An effect is more than two standard errors of the gap, and needs three seeds in both arms. Where the arms'
    names begin alike ("SimCLR, 32", "SimCLR, 128"), each group has a verdict of its own.
    """
    groups = {}
    for arm, lines in found.items():
        group, _, rest = arm.rpartition(", ")
        groups.setdefault(group, {})[rest] = lines
    if min(len(members) for members in groups.values()) < 2:
        groups = {"": found}
    parts = []
    for group, members in groups.items():
        judged = {arm: mean_error([line["knn"] for line in lines]) for arm, lines in members.items()}
        best = max(judged, key=lambda arm: judged[arm][0])
        worst = min(judged, key=lambda arm: judged[arm][0])
        gap = judged[best][0] - judged[worst][0]
        error = math.hypot(judged[best][1], judged[worst][1])
        seeds = min(len(members[best]), len(members[worst]))
        if seeds < SEEDS:
            text = f"No verdict with {seeds} of {SEEDS} seeds: {best} stands {gap:.1f} points above {worst}."
        elif gap > 2 * error:
            text = f"An effect: {best} stands {gap:.1f} ± {error:.1f} points above {worst}."
        else:
            text = f"No effect at this scale: {best} is {gap:.1f} ± {error:.1f} points from {worst}."
        parts.append(f"{group}: {text[0].lower()}{text[1:]}" if group else text)
    return " ".join(parts)


def experiment(name: str) -> dict[str, list[float]]:
    """Print an experiment of EXPERIMENTS.md with its verdict; return {arm: kNN of each seed, in [0, 1]}.

    Unknown: no such name; the message lists the known ones.
    """
    lines = trials()
    found = arms(name, lines)
    if not found:
        known = sorted({line["note"].partition(": ")[0] for line in lines})
        raise Unknown(f"experiment {name!r} is not known; choose one of: {', '.join(known)}")
    first = next(iter(found.values()))[0]
    where = f"{first['dataset']}, views of {first['view']} px, recipe {first['recipe']}"
    print(f"{where}; judged on a held-out fifth of the training images")
    width = max(len(arm) for arm in found) + 2
    print(f"{'':<{width}}{'kNN, %':>14}{'seeds':>7}{'images seen':>17}")
    for arm, rows in found.items():
        mean, error = mean_error([row["knn"] for row in rows])
        near = f"{mean:.1f} ± {error:.1f}" if len(rows) > 1 else f"{mean:.1f}"
        print(f"{arm:<{width}}{near:>14}{len(rows):>7}{rows[0]['images_seen']:>17,}")
    random = statistics.fmean(row["knn_random"] for rows in found.values() for row in rows)
    print(f"{'random encoder':<{width}}{100 * random:>8.1f}")
    print(verdict(found))
    return {arm: [row["knn"] for row in rows] for arm, rows in found.items()}


def long_run(method: str, dataset: str = "imagenette") -> Run | None:
    """The longest committed run of a method on a dataset: of data/weights, or the leaderboard's seed 0."""
    places = [(weights_folder(), f"{method}-{dataset}.json")]
    places.append((results_folder() / "leaderboard", f"{method}-{dataset}*-0.json"))
    runs = [Run.open(path) for place, pattern in places for path in place.glob(pattern)]
    runs = [run for run in runs if any("knn" in row for row in run.record["history"])]
    work = {id(run): run.record["epochs"] * run.record["view_size"] ** 2 for run in runs}
    return max(runs, key=lambda run: work[id(run)], default=None)
