"""A leaderboard from run records: mean ± std over seeds, ranked, and nothing averaged that may not be.

Runs that differ in images, view size, package versions or a metric's protocol stand in tables apart, which
say why. Reading and adding up need no torch: a thousand records take about a second.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_lessons.records import TITLES, RecordError, Run

# What fields of a recipe that older records lack stood for: seeds of before and after are of one row
NEUTRAL = {"predictor_lr": 1.0, "predictor_weight_decay": None}
WHY = "numbers from other images, other versions or by another protocol are not averaged or ranked together"


@dataclass
class Entry:
    """What a leaderboard needs of one record. `facts` decide its table, `settings` its row."""

    name: str
    facts: dict[str, str]
    settings: dict[str, object]
    seed: int | None
    started: str
    values: dict[str, float]
    protocols: dict[str, str]
    minutes: float
    images_a_second: float | None
    peak_memory: int | None
    joules: float | None


@dataclass
class Row:
    """Runs that differ in nothing but their seed: means over the `n` seeds; of memory, the most."""

    title: str
    settings: dict[str, object]
    seeds: list
    n: int
    metrics: dict[str, dict]  # {name: {"mean", "std" (sample's; None for one seed), "n"}}
    minutes: float
    minutes_std: float | None
    images_a_second: float | None
    peak_memory: int | None  # bytes
    joules: float | None
    records: list[str]
    rank: int = 0


@dataclass
class Table:
    """Rows that may be compared, the best first; `facts` is what they have in common."""

    title: str
    facts: dict[str, str]
    rows: list[Row]
    protocols: dict[str, str]
    notes: list[str]


# ---- Reading -----------------------------------------------------------------------------------------------


def read(places: Iterable[str | Path]) -> tuple[list[Entry], list[str]]:
    """The records at some places, and what is wrong with those that cannot be used.

    Args:
        places: record files, or folders, which are searched for record.json and other *.json records (but not
            for the small experiments that a lesson keeps in trials/). A file found twice counts once.
    """
    entries, problems, seen = [], [], set()
    for place in map(Path, places):
        for path in _records_in(place) if place.is_dir() else [place]:
            if (real := path.resolve()) in seen:
                continue
            seen.add(real)
            try:
                record = Run.open(path).record if path.suffix == ".json" else _refuse(path)
            except RecordError as error:
                if path == place or path.name == "record.json" or not _another_kind(path):
                    problems.append(str(error))
                continue
            try:
                entries.append(_entry(path.as_posix(), record))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                problems.append(f"{path} is damaged ({type(error).__name__}: {error}); run it again")
    return entries, problems


def _refuse(path: Path):
    raise RecordError(f"{path} is no record; name a .json file, or a folder that holds some")


def _records_in(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.json"))
    inside = [path.relative_to(folder).parts[:-1] for path in found]
    return [p for p, i in zip(found, inside, strict=True) if not any(x[0] == "." or x == "trials" for x in i)]


def _another_kind(path: Path) -> bool:
    """Whether a file is whole JSON that never was a record: a benchmark's, a grid's own notes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not (isinstance(content, dict) and "schema" in content)


def stable(protocol: str) -> str:
    """A protocol's text without what one protocol may choose anew for each run: the L2 weight, the seed."""
    return re.sub(r", seed -?\d+", "", re.sub(r"\bL2 [\d.e+-]+ chosen", "L2 chosen", protocol))


def _entry(name: str, record: dict) -> Entry:
    """Raises AttributeError, KeyError, TypeError or ValueError where the record is not as records are."""
    data, versions, network = record["dataset"] or {}, record["versions"], record.get("network") or {}
    recipe = {"name": None, **NEUTRAL, **_flat(record["recipe"] or {})}
    history = record["history"]
    facts = {
        "images": f"{data.get('name')} {data.get('split')}",
        "stored": f"{data.get('size')} px",
        "number": f"{data.get('images')} images",
        "fingerprint": str(data.get("fingerprint")),
        "views": f"{record.get('view_size')} px",
        **{package: str(versions.get(package)) for package in ("ssl-lessons", "torch", "torchvision")},
    }
    settings = {
        "method": str(record.get("method")),
        "recipe": recipe.pop("name"),
        "epochs": history[-1]["epoch"] if history else 0,  # those it has finished
        "batch size": record.get("batch_size"),
        "network": network.get("name"),
        **{part: network.get(part) for part in ("stem", "layer")},
        "device": record["device"],
        "precision": record.get("precision"),
        **{k: v for k, v in recipe.items() if k not in ("epochs", "batch_size") and "source" not in k},
    }
    values, protocols = {}, {}
    for metric, found in record["metrics"].items():
        value = found["value"]
        if value is not None:  # a NaN was written as null
            values[metric] = float(value)
            protocols[metric] = stable(str(found.get("protocol", "")))
    seconds = [row["seconds"] for row in history if "seconds" in row]
    energy = [row.get("joules") for row in history]
    return Entry(
        name,
        facts,
        settings,
        record["seed"],
        str(record.get("started")),
        values,
        protocols,
        record["seconds"] / 60,
        data["images"] / statistics.median(seconds) if seconds else None,  # a disturbed epoch counts little
        max((row["peak_memory"] for row in history if row.get("peak_memory")), default=None),
        math.fsum(energy) if energy and None not in energy else None,  # a part of a run's energy is no energy
    )


def _flat(recipe: dict) -> dict:
    """A recipe with its policies opened up: {"policy jitter": …}."""
    flat = {}
    for key, value in recipe.items():
        inner = value.items() if isinstance(value, dict) else ()
        flat |= {f"{key} {name}": each for name, each in inner} or {key: value}
    return flat


# ---- Adding up ---------------------------------------------------------------------------------------------


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (over n − 1); one value has no deviation."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def metrics(entries: Sequence[Entry]) -> list[str]:
    """The names of all metrics in the entries, in alphabetical order."""
    return sorted({name for entry in entries for name in entry.values})


def tables(entries: Sequence[Entry], metric: str = "knn") -> list[Table]:
    """Entries added up over seeds, in tables of what may be compared, each ranked by one metric.

    Raises:
        ValueError: no record has the metric (the message lists what they have).
    """
    ranked = [entry for entry in entries if metric in entry.values]
    if not ranked:
        known = ", ".join(metrics(entries)) or "none"
        raise ValueError(f"no record has a metric {metric!r}; they have: {known}")
    same: dict[tuple, list[Entry]] = {}
    for entry in ranked:
        same.setdefault(tuple(entry.facts.values()), []).append(entry)
    apart: dict[str, tuple[dict, list[Entry]]] = {}
    for group in same.values():
        # A protocol decides only where there are two of it: a run judged in fewer ways is of the same kind
        names = sorted({name for entry in group for name in entry.protocols})
        ways = {name: {e.protocols[name] for e in group if name in e.protocols} for name in names}
        for entry in group:
            own = {
                f"protocol of {n}": entry.protocols.get(n, "not measured") for n in names if len(ways[n]) > 1
            }
            facts = {**entry.facts, **own}
            apart.setdefault(json.dumps(facts), (facts, []))[1].append(entry)
    found = [_table(facts, group, metric) for _, (facts, group) in sorted(apart.items())]
    for table in found:
        base = f"{table.facts['images']}: {table.facts['number']} stored at {table.facts['stored']}, "
        base += f"views of {table.facts['views']}"
        more = [key for key in differences(found) if key not in ("images", "number", "stored", "views")]
        table.title = "; ".join([base, *(f"{key}: {table.facts[key]}" for key in more if key in table.facts)])
    return found


def _table(facts: dict, entries: list[Entry], metric: str) -> Table:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(json.dumps(entry.settings, sort_keys=True, default=str), []).append(entry)
    rows, spare = [], {}
    for group in groups.values():
        latest = {entry.seed: entry for entry in sorted(group, key=lambda entry: entry.started)}
        rows.append(_row(list(latest.values())))
        spare[id(rows[-1])] = len(group) - len(latest)
    rows.sort(key=lambda row: (-row.metrics[metric]["mean"], row.title))
    for i, row in enumerate(rows):
        row.rank = i + 1
    _tell_apart(rows)
    notes = [
        f"{row.title}: {again} more of seeds that are there already; of each seed the latest counts, once"
        for row in rows
        if (again := spare[id(row)])
    ]
    if len({row.settings["device"] for row in rows}) > 1:
        notes.append("devices differ: their minutes, images a second and memory do not compare the methods")
    if any(row.n == 1 for row in rows):
        notes.append("n is the number of seeds; a single seed has no spread, and may be a lucky one")
    protocols = {name: text for entry in entries for name, text in entry.protocols.items()}
    return Table("", facts, rows, protocols, notes)


def title(method: str) -> str:
    """What a reader calls a method, from the name of its class; MyMoCo is the one that lesson 03 builds."""
    plain = method.lower()
    if plain.startswith("my") and plain[2:] in TITLES:
        return f"{TITLES[plain[2:]]}, built by hand"
    return TITLES.get(plain, method)


def _row(entries: list[Entry]) -> Row:
    metrics = {}
    for name in dict.fromkeys(name for entry in entries for name in entry.values):
        values = [entry.values[name] for entry in entries if name in entry.values]
        metrics[name] = dict(zip(("mean", "std"), mean_std(values), strict=True)) | {"n": len(values)}

    def over(name: str, add=lambda values: mean_std(values)[0]):
        known = [value for entry in entries if (value := getattr(entry, name)) is not None]
        return add(known) if known else None

    return Row(
        title(entries[0].settings["method"]),
        entries[0].settings,
        sorted((entry.seed for entry in entries), key=str),
        len(entries),
        metrics,
        *mean_std([entry.minutes for entry in entries]),
        over("images_a_second"),
        over("peak_memory", max),
        over("joules"),
        [entry.name for entry in entries],
    )


def _tell_apart(rows: list[Row]) -> None:
    """Add to the titles of rows with the same title what differs between them and has no column."""
    for name in {row.title for row in rows}:
        group = [row for row in rows if row.title == name]
        keys = dict.fromkeys(key for row in group for key in row.settings)
        differ = [k for k in keys if len({json.dumps(row.settings.get(k), default=str) for row in group}) > 1]
        differ = [key for key in differ if key not in ("epochs", "device", "precision")]
        for row in group:
            told = ["recipe"] if "recipe" in differ else differ[:3]  # other numbers follow from the recipe
            row.title += "".join(f", {key} {row.settings.get(key)}" for key in told)


def differences(found: Sequence[Table]) -> list[str]:
    """The facts that tell tables apart: each of them splits what those before it left together."""
    told: list[str] = []
    keys = dict.fromkeys(key for table in found for key in table.facts)
    parts = 1
    for key in keys:
        now = len({tuple(table.facts.get(name) for name in (*told, key)) for table in found})
        if now > parts:
            told.append(key)
            parts = now
    return told


def why_apart(found: Sequence[Table]) -> str:
    """A line that says what differs between tables and why they stand apart; empty for one table."""
    if len(found) < 2:
        return ""
    told = []
    for key in differences(found):
        values = dict.fromkeys(table.facts[key] for table in found if key in table.facts)
        told.append(f"{key} ({'; '.join(values)})")
    return f"{len(found)} tables, because the records differ in {', '.join(told)}: {WHY}."
