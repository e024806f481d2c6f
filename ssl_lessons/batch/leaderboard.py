"""Run records as tables: mean ± std over seeds, ranked, and nothing averaged that may not be.

`read` gives a DataFrame with a row for each run; `tables` groups it. Runs that differ in images, view size,
package versions or a metric's protocol stand in tables apart, which say why.
"""

import html
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ssl_lessons.parameters import printable
from ssl_lessons.records import TITLES, RecordError, Run, atomically, results_folder

FACTS = ["images", "stored", "number", "fingerprint", "views", "ssl-lessons", "torch", "torchvision"]
SETTINGS = ["method", "recipe", "epochs", "batch size", "network", "stem", "layer", "precision"]
LABELS = {"knn": "kNN", "linear_100": "linear", "linear_10": "linear 10 %", "linear_1": "linear 1 %"}
LABELS |= {"finetune_100": "fine-tuned", "finetune_10": "fine-tuned 10 %", "finetune_1": "fine-tuned 1 %"}
# What fields of a recipe that older records lack stood for: seeds of before and after are of one row
NEUTRAL = {"recipe predictor_lr": "1.0"}
WHY = "numbers from other images, other versions or by another protocol are not averaged or ranked together"


@dataclass
class Table:
    """Rows that may be compared, the best first; `facts` is what they have in common."""

    title: str
    facts: dict[str, str]
    rows: pd.DataFrame  # settings, title, rank, n, seeds, devices, costs; "knn mean", "knn std", "knn n", …
    protocols: dict[str, str]
    notes: list[str]


# ---- Reading -----------------------------------------------------------------------------------------------


def read(places: Iterable[str | Path]) -> tuple[pd.DataFrame, list[str]]:
    """A row for each run record at some places, and what is wrong with those that cannot be used.

    A place is a record file, or a folder that is searched for *.json (but not for the experiments that a
    lesson keeps in trials/). Columns: what a run was on (`FACTS`), its settings (the recipe's own as "recipe
    lr", text), "seed", "device", "minutes", "images/s", "memory" (bytes, the most of any epoch), and each
    metric with its "protocol of …". Text is `printable`.
    """
    paths = {}
    for place in map(Path, places):
        for path in _records_in(place) if place.is_dir() else [place]:
            paths.setdefault(path.resolve(), path)
    rows, problems = [], []
    for path in paths.values():
        try:
            if path.suffix != ".json":
                raise RecordError(f"{path} is no record; name a .json file, or a folder that holds some")
            rows.append(_row_of(path.as_posix(), Run.open(path).record))
        except Exception as error:  # whatever an odd record may hold, the others are shown
            reason = f"{path} is damaged ({type(error).__name__}: {error!s:.100}); run it again"
            problems.append(printable(str(error) if isinstance(error, RecordError) else reason))
    runs = pd.DataFrame(rows)
    same = runs[settings(runs)].astype(object)
    runs[same.columns] = same.where(same.notna(), "")
    return runs, problems


def _records_in(folder: Path) -> Iterator[Path]:
    """Its JSON files, but for whole ones that never were records: a benchmark's, a grid's own notes."""
    for path in sorted(folder.rglob("*.json")):
        inside = path.relative_to(folder).parts[:-1]
        if "trials" in inside or any(part.startswith(".") for part in inside) or not path.is_file():
            continue
        with suppress(OSError, ValueError, RecursionError):  # damaged: who reads it says so
            content = json.loads(path.read_text(encoding="utf-8"))
            if path.name != "record.json" and not (isinstance(content, dict) and "schema" in content):
                continue
        yield path


def _row_of(path: str, record: dict) -> dict:
    def need(name: str, value, *kinds: type):
        if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
            raise RecordError(f"{path} is damaged: {name} is {value!r:.80}; run it again")
        return value

    number, none, versions = (int, float), type(None), record["versions"]
    parts = ("dataset", "network", "recipe")
    data, network, recipe = (need(part, record.get(part), dict, none) or {} for part in parts)
    history = [need("a row of the history", row, dict) for row in record["history"]]
    epochs = [need("epoch", row.get("epoch"), *number) for row in history]
    seconds = [need("seconds", row["seconds"], *number) for row in history if "seconds" in row]
    memory = [need("peak_memory", row["peak_memory"], *number) for row in history if row.get("peak_memory")]
    told = {
        "record": path,
        "images": f"{data.get('name')} {data.get('split')}",
        "stored": f"{data.get('size')} px",
        "number": f"{data.get('images')} images",
        "fingerprint": str(data.get("fingerprint")),
        "views": f"{record.get('view_size')} px",
        **{package: str(versions.get(package)) for package in FACTS[-3:]},
        "method": str(record.get("method")),
        "recipe": recipe.get("name"),
        "batch size": record.get("batch_size"),
        "network": network.get("name"),
        **{part: network.get(part) for part in ("stem", "layer")},
        "precision": record.get("precision"),
        **NEUTRAL,
        **_flat(recipe),
        "device": need("device", record["device"], str),
        "started": str(record.get("started")),
    }
    row = {name: _text(value) for name, value in told.items()}
    row["epochs"] = epochs[-1] if epochs else 0  # those it has finished
    row["seed"] = need("seed", record["seed"], int, none)
    row["minutes"] = need("seconds", record["seconds"], *number) / 60
    row["memory"] = max(memory, default=math.nan)
    median = statistics.median(seconds) if seconds else 0  # a disturbed epoch counts little
    row["images/s"] = need("images", data.get("images"), *number) / median if median > 0 else math.nan
    for name, metric in record["metrics"].items():
        if name in row:
            raise RecordError(f"{path} is damaged: a metric is called {name!r}; run it again")
        value = need(f"metric {name}", metric, dict)["value"]
        if value is not None:  # a NaN was written as null
            row[printable(name)] = float(need(f"the value of {name}", value, *number))
            row[f"protocol of {printable(name)}"] = stable(_text(str(metric.get("protocol", ""))))
    return row


def _flat(recipe: dict) -> dict[str, object]:
    """A recipe's values, its policies opened up: {"recipe policy jitter": …}."""
    flat = {}
    for key, value in recipe.items():
        if key in ("name", "epochs", "batch_size"):  # columns of their own; the run may have had others
            continue
        parts = value if isinstance(value, dict) else {"": value}
        for name, part in parts.items():
            if "source" not in (key, name):
                flat[printable(f"recipe {key} {name}".strip())] = part
    return flat


def _text(value) -> str | None:
    if value is None:
        return None
    return printable(value if isinstance(value, str) else json.dumps(value))


def stable(protocol: str) -> str:
    """A protocol's text without what one protocol may choose anew for each run: the L2 weight, the seed."""
    return re.sub(r", seed -?\d+", "", re.sub(r"\bL2 [\d.e+-]+ chosen", "L2 chosen", protocol))


def settings(runs: pd.DataFrame) -> list[str]:
    """The columns that make two runs of one row, but for their seed and device."""
    return [name for name in runs if name in SETTINGS or name.startswith("recipe ")]


def metrics(runs: pd.DataFrame) -> list[str]:
    """The names of all metrics, in alphabetical order."""
    return sorted(name for name in runs if f"protocol of {name}" in runs)


# ---- Adding up ---------------------------------------------------------------------------------------------


def tables(runs: pd.DataFrame, metric: str = "knn") -> list[Table]:
    """Runs added up over seeds, in tables of what may be compared, each ranked by one metric; ValueError if
    no record has the metric (the message lists what they have)."""
    if metric not in metrics(runs):
        there = ", ".join(metrics(runs)) or "none"
        raise ValueError(f"no record has a metric {metric!r}; they have: {there}")
    found = []
    for _, alike in runs[runs[metric].notna()].groupby(FACTS):
        # A protocol decides only where there are two of it: a run judged in fewer ways is of the same kind
        protocols = [f"protocol of {name}" for name in metrics(alike)]
        apart = [name for name in protocols if alike[name].nunique() > 1]
        for _, group in alike.fillna(dict.fromkeys(apart, "not measured")).groupby([*FACTS, *apart]):
            found.append(_table(group, [*FACTS, *apart], metric))
    shared = ("images", "number", "stored", "views")
    more = [key for key in differences(found) if key not in shared]
    for table in found:
        images, number, stored, views = (table.facts[key] for key in shared)
        title = f"{images}: {number} stored at {stored}, views of {views}"
        table.title = "; ".join(
            [title, *(f"{key}: {table.facts[key]}" for key in more if key in table.facts)]
        )
    return found


def _table(runs: pd.DataFrame, facts: list[str], metric: str) -> Table:
    same = settings(runs)
    runs = runs.sort_values("started", kind="stable")
    latest = runs.drop_duplicates([*same, "seed"], keep="last")
    measured = [name for name in metrics(latest) if latest[name].notna().any()]
    rows = pd.DataFrame([_row(group, same, measured) for _, group in latest.groupby(same)])
    rows["more"] = runs.groupby(same).size().to_numpy() - rows["n"]  # the same groups in the same order
    rows = rows.sort_values([f"{metric} mean", "title"], ascending=[False, True], ignore_index=True)
    rows.insert(0, "rank", rows.index + 1)
    _tell_apart(rows, same)
    notes = []
    for row in rows[rows["more"] > 0].itertuples():
        again = f"{row.more} more of seeds that are there already"
        notes.append(f"{row.title}: {again}; of each seed the latest counts, once")
    if latest["device"].nunique() > 1:
        notes.append("devices differ: their minutes, images a second and memory do not compare the methods")
    if (rows["devices"].str.len() > 1).any():
        notes.append("a row of several devices: its costs are those of the first, which has the most runs")
    if (rows["n"] == 1).any():
        notes.append("n is the number of seeds; a single seed has no spread, and may be a lucky one")
    protocols = {name: runs[f"protocol of {name}"].dropna().iloc[-1] for name in measured}
    return Table("", runs[facts].iloc[0].to_dict(), rows.drop(columns="more"), protocols, notes)


def _row(runs: pd.DataFrame, same: list[str], measured: list[str]) -> dict:
    """Runs that differ in nothing but seed and device: means, sample deviations (over n − 1), numbers.

    Minutes and images a second are means over the runs of one device, memory is their most.
    """
    count = runs["device"].value_counts()
    devices = sorted(runs["device"].unique(), key=count.get, reverse=True)  # of equals, that of the first run
    timed = runs[runs["device"] == devices[0]]
    row = runs[same].iloc[0].to_dict()
    row |= {"title": title(row["method"]), "n": len(runs), "seeds": sorted(runs["seed"], key=str)}
    for name in measured:
        values = runs[name]
        row |= {f"{name} mean": values.mean(), f"{name} std": values.std(), f"{name} n": values.count()}
    row |= {"minutes": timed["minutes"].mean(), "minutes std": timed["minutes"].std()}
    row |= {"images/s": timed["images/s"].mean(), "memory": timed["memory"].max()}
    return row | {"devices": devices, "records": list(runs["record"])}


def title(method: str) -> str:
    """What a reader calls a method, from the name of its class; MyMoCo is the one that lesson 03 builds."""
    plain = method.lower()
    if plain.startswith("my") and plain[2:] in TITLES:
        return f"{TITLES[plain[2:]]}, built by hand"
    return TITLES.get(plain, method)


def _tell_apart(rows: pd.DataFrame, same: list[str]) -> None:
    """Add to the titles of rows with the same title what differs between them and has no column."""
    for _, alike in rows.groupby("title"):
        differ = [name for name in same if alike[name].nunique() > 1 and name not in ("epochs", "precision")]
        told = ["recipe"] if "recipe" in differ else differ[:3]  # other numbers follow from the recipe
        for name in told:
            said = name.removeprefix("recipe ") + " " + alike[name].where(alike[name] != "", "None")
            rows.loc[alike.index, "title"] += ", " + said


def differences(found: Sequence[Table]) -> list[str]:
    """The facts that tell tables apart: each of them splits what those before it left together."""
    facts = pd.DataFrame([table.facts for table in found]).fillna("")
    told: list[str] = []
    for name in facts:
        parts = len(facts[told].drop_duplicates()) if told else 1
        if len(facts[[*told, name]].drop_duplicates()) > parts:
            told.append(name)
    return told


def why_apart(found: Sequence[Table]) -> str:
    """A line that says what differs between tables and why they stand apart; empty for one table."""
    if len(found) < 2:
        return ""
    told = []
    for name in differences(found):
        values = dict.fromkeys(table.facts[name] for table in found if name in table.facts)
        told.append(f"{name} ({'; '.join(values)})")
    return f"{len(found)} tables, because the records differ in {', '.join(told)}: {WHY}."


def for_csv(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without formulas for a spreadsheet: a cell or head that starts like one gets an apostrophe."""

    def safe(cell):
        if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
            return cell
        is_number = re.fullmatch(r"[+-][\d.]+(e[+-]?\d+)?", cell)
        return cell if is_number else f"'{cell}"

    return rows.map(safe).rename(columns=safe)


# ---- In print ----------------------------------------------------------------------------------------------


def shown(table: Table, metric: str = "knn") -> pd.DataFrame:
    """A table's rows as text, in a reader's columns. Accuracies are in per cent, mean ± std."""
    names = _columns(table, metric)
    # A metric is a share, and shown in per cent, where it is in [0, 1] in every row
    share = {name: table.rows[f"{name} mean"].dropna().between(0, 1).all() for name in names}
    lines = []
    for _, row in table.rows.iterrows():
        line = {"": row["rank"], "method": row["title"], "epochs": row["epochs"], "n": row["n"]}
        for name in names:
            scale, form = (100, ".1f") if share[name] else (1, ".4g")
            cell = _number(scale * row[f"{name} mean"], form)
            if row[f"{name} n"] > 1:
                cell += f" ± {_number(scale * row[f'{name} std'], form)}"
            if 0 < row[f"{name} n"] < row["n"]:
                cell += f" (n {row[f'{name} n']})"
            line[LABELS.get(name, name)] = cell
        line["minutes"] = _number(row["minutes"], ".1f")
        line["images/s"] = _number(row["images/s"], ".0f")
        line["memory, GB"] = _number(row["memory"] / 1e9, ".1f")
        line["device"] = "; ".join(f"{device}, {row['precision']}" for device in row["devices"])
        lines.append(line)
    return pd.DataFrame(lines).astype(str)


def _number(value: float, form: str) -> str:
    return "–" if pd.isna(value) else format(value, form)


def _columns(table: Table, metric: str) -> list[str]:
    """The metrics that get a column: those of `LABELS` at hand, and the one that ranks."""
    names = [name for name in LABELS if name in table.protocols]
    return names if metric in names else [metric, *names]


def below(table: Table, metric: str) -> list[str]:
    """What stands under a table: versions, how each shown metric was measured, and what to beware of."""
    packages = ", ".join(f"{name} {table.facts[name]}" for name in ("ssl-lessons", "torch", "torchvision"))
    said = "accuracies in per cent, mean ± sample standard deviation over n seeds; minutes of training; "
    said += "memory: the most that tensors took on a GPU, or the whole process on a CPU"
    measured = []
    for name in _columns(table, metric):
        measured.append(f"{LABELS.get(name, name)}: {table.protocols[name] or 'no protocol in the records'}")
    return [f"ranked by {LABELS.get(metric, metric)}; {packages}", said, *measured, *table.notes]


def text(found: Sequence[Table], metric: str = "knn") -> str:
    """For a terminal: aligned columns."""
    parts = [why_apart(found)] if why_apart(found) else []
    for table in found:
        rows = shown(table, metric)
        for head in ("method", "device"):  # words stand on the left, numbers on the right
            width = max(rows[head].str.len().max(), len(head))
            rows[head] = rows[head].str.ljust(width)
            rows = rows.rename(columns={head: head.ljust(width)})
        lines = [f"  {line}" for line in below(table, metric)]
        parts += [table.title, rows.to_string(index=False), *lines, ""]
    return "\n".join(parts).rstrip()


def _escaped(text) -> str:
    """Text of a record for Markdown: no HTML, no link, and no new cell of a table starts in it."""
    return html.escape(str(text), quote=False).replace("|", "\\|").replace("](", "]\\(")


def as_markdown(rows: pd.DataFrame) -> str:
    """A table of text for a page; words stand on the left, numbers on the right."""
    words = ("method", "device", "record", "images", "network")
    lines = [f"| {' | '.join(map(_escaped, line))} |" for line in [list(rows), *rows.to_numpy().tolist()]]
    lines.insert(1, f"|{'|'.join('---' if head in words else '--:' for head in rows)}|")
    return "\n".join(lines)


def markdown(found: Sequence[Table], metric: str = "knn") -> str:
    """For a page: a heading, a table and small print for each table."""
    parts = [_escaped(why_apart(found))] if why_apart(found) else []
    for table in found:
        notes = "\n".join(f"- {_escaped(line)}" for line in below(table, metric))
        parts += [f"### {_escaped(table.title)}", as_markdown(shown(table, metric)), notes]
    return "\n\n".join(parts)


def page(found: Sequence[Table], metric: str = "knn") -> str:
    """A whole HTML page, without anything from elsewhere, in ASCII: it is right in any encoding."""
    parts = ['<meta charset="utf-8"><title>Leaderboard</title><style>body{font-family:sans-serif}</style>']
    parts.append(f"</head>\n<body>\n<p>{html.escape(why_apart(found))}</p>")
    for table in found:
        parts.append(f"<h2>{html.escape(table.title)}</h2>")
        parts.append(shown(table, metric).to_html(index=False, escape=True, border=0, justify="left"))
        parts += ["<ul>", *(f"<li>{html.escape(line)}</li>" for line in below(table, metric)), "</ul>"]
    whole = "\n".join(['<!DOCTYPE html>\n<html lang="en">\n<head>', *parts, "</body>\n</html>"])
    return whole.encode("ascii", "xmlcharrefreplace").decode()


def as_json(found: Sequence[Table], metric: str = "knn", problems: Sequence[str] = ()) -> str:
    """Everything, with full precision: {"metric", "why_apart", "differences", "tables", "left_out"}."""
    whole = {"metric": metric, "why_apart": why_apart(found), "differences": differences(found), "tables": []}
    for table in found:
        rows = json.loads(table.rows.to_json(orient="records", double_precision=15))
        whole["tables"].append({**vars(table), "rows": rows})
    return json.dumps({**whole, "left_out": list(problems)}, indent=1)


def as_csv(found: Sequence[Table], metric: str = "knn") -> str:
    """One line a row, with full precision; the column `table` says which rows may be compared."""
    numbered = [table.rows.assign(table=i, **table.facts) for i, table in enumerate(found, 1)]
    rows = pd.concat(numbered, ignore_index=True)
    rows.insert(0, "table", rows.pop("table"))
    for name in ("seeds", "devices", "records"):
        rows[name] = rows[name].map(lambda values: "; ".join(map(str, values)))
    return for_csv(rows).to_csv(index=False, lineterminator="\n").rstrip("\n")


FORMS = {"text": text, "markdown": markdown, "html": page, "csv": as_csv}


def put_into(file: str | Path, content: str, name: str = "results") -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a file, atomically.

    Raises:
        ValueError: the file does not have each marker once, in this order.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    parts = re.split(f"({start}|{end})", Path(file).read_text(encoding="utf-8"))
    if parts[1::2] != [start, end]:
        raise ValueError(f"{file} must have the line {start} once and, after it, {end} once")
    whole = f"{parts[0]}{start}\n{content}\n{end}{parts[-1]}"
    atomically(Path(file), lambda path: path.write_text(whole, encoding="utf-8"))


def committed() -> Path:
    """The folder of the leaderboard's committed records."""
    return results_folder() / "leaderboard"
