"""What was measured before the lesson, with its error: long runs, experiments over seeds, and verdicts."""

import json
import math
import statistics
from collections.abc import Sequence

from ssl_lessons.evaluate import weights_folder
from ssl_lessons.parameters import known
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
    others = []
    for kind, title in YARDSTICKS.items():
        if f"knn_{kind}" in metrics:
            others.append(f"{title} {100 * metrics[f'knn_{kind}']['value']:.1f}")
    own = f"kNN {100 * metrics['knn']['value']:.1f} %"
    return f"{own} beside {', '.join(others)}" if others else own


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
            settings.setdefault((arm, line["alternative"]), {})[line["seed"]] = line
    best, means = {}, {}
    for (arm, _), by_seed in settings.items():
        mean = statistics.fmean(line["knn"] for line in by_seed.values())
        if arm not in best or mean > means[arm]:
            best[arm], means[arm] = list(by_seed.values()), mean
    return best


def verdict(best: dict[str, list[dict]]) -> str:
    """The best arm against the worst, in words, from what `arms` gives. An effect is more than two standard
    errors of the gap, and needs three seeds in both arms. Where the arms' names begin alike ("SimCLR, 32",
    "SimCLR, 128"), each group has a verdict of its own."""
    scores = {arm: [line["knn"] for line in lines] for arm, lines in best.items()}
    groups = {}
    for arm, values in scores.items():
        group, _, rest = arm.rpartition(", ")
        groups.setdefault(group, {})[rest] = values
    if min(map(len, groups.values())) < 2:
        groups = {"": scores}
    sentences = []
    for group, members in groups.items():
        judged = {arm: mean_error(values) for arm, values in members.items()}
        high, low = max(judged, key=judged.get), min(judged, key=judged.get)
        gap = judged[high][0] - judged[low][0]
        error = math.hypot(judged[high][1], judged[low][1])
        seeds = min(len(members[high]), len(members[low]))
        if seeds < SEEDS:
            text = f"No verdict with {seeds} of {SEEDS} seeds: {high} stands {gap:.1f} points above {low}."
        elif gap > 2 * error:
            text = f"An effect: {high} stands {gap:.1f} ± {error:.1f} points above {low}."
        else:
            text = f"No effect at this scale: {high} is {gap:.1f} ± {error:.1f} points from {low}."
        sentences.append(f"{group}: {text[0].lower()}{text[1:]}" if group else text)
    return " ".join(sentences)


def experiment(name: str) -> dict[str, list[float]]:
    """Print an experiment of EXPERIMENTS.md with its verdict; return {arm: kNN of each seed, in [0, 1]}.
    Unknown: no such name; the message lists the known ones."""
    lines = trials()
    known("experiment", name, sorted({line["note"].partition(": ")[0] for line in lines if "knn" in line}))
    best = arms(name, lines)
    first = next(iter(best.values()))[0]
    place = f"{first['dataset']}, views of {first['view']} px, recipe {first['recipe']}"
    print(f"{place}; judged on a held-out fifth of the training images")
    width = max(len(arm) for arm in best) + 2
    print(f"{'':<{width}}{'kNN, %':>14}{'seeds':>7}{'images seen':>17}")
    for arm, rows in best.items():
        mean, error = mean_error([row["knn"] for row in rows])
        near = f"{mean:.1f} ± {error:.1f}" if len(rows) > 1 else f"{mean:.1f}"
        print(f"{arm:<{width}}{near:>14}{len(rows):>7}{rows[0]['images_seen']:>17,}")
    random = statistics.fmean(row["knn_random"] for rows in best.values() for row in rows)
    print(f"{'random encoder':<{width}}{100 * random:>8.1f}")
    print(verdict(best))
    return {arm: [row["knn"] for row in rows] for arm, rows in best.items()}


def long_run(method: str, dataset: str = "imagenette") -> Run | None:
    """The longest committed run of a method on a dataset: of data/weights, or the leaderboard's seed 0."""
    paths = [*weights_folder().glob(f"{method}-{dataset}.json")]
    paths += (results_folder() / "leaderboard").glob(f"{method}-{dataset}*-0.json")
    runs = [run for run in map(Run.open, paths) if any("knn" in row for row in run.record["history"])]
    return max(runs, key=lambda run: run.record["epochs"] * run.record["view_size"] ** 2, default=None)
