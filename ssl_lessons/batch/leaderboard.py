"""Run records as tables: mean ± std over seeds, ranked, and nothing averaged that may not be.

`read` gives a DataFrame with a row for each run; `tables` groups it. Runs that differ in images, view size,
package versions or a metric's protocol stand in tables apart, which say why.
"""

import html
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pandas as pd

from ssl_lessons.parameters import known, printable
from ssl_lessons.records import TITLES, RecordError, Run, results_folder

# Columns, and where their text stands in a record
PACKAGES = ("ssl-lessons", "torch", "torchvision")
FACTS = {"images": "{dataset name} {dataset split}", "stored": "{dataset size} px"}
FACTS |= {"number": "{dataset images} images", "fingerprint": "{dataset fingerprint}"}
FACTS |= {"views": "{view_size} px"} | {package: f"{{versions {package}}}" for package in PACKAGES}
SETTINGS = {"method": "method", "recipe": "recipe name", "batch size": "batch_size"}
SETTINGS |= {"network": "network name", "stem": "network stem", "layer": "network layer"}
SETTINGS |= {"precision": "precision", "source": "source", "setup": "setup"}
CODE = ("source", "setup")  # of a method: what no other setting says of two runs apart
LABELS = {"knn": "kNN", "linear_100": "linear", "linear_10": "linear 10 %", "linear_1": "linear 1 %"}
LABELS |= {"finetune_100": "fine-tuned", "finetune_10": "fine-tuned 10 %", "finetune_1": "fine-tuned 1 %"}
# What fields of a recipe that older records lack stood for: seeds of before and after are of one row
NEUTRAL = {"recipe predictor_lr": "1.0"}
DISTURBED = "beside others"  # a record's note: its machine did other work too, and its minutes say nothing

LEGEND = (
    "accuracies in per cent, mean ± sample standard deviation over n seeds, of each seed the latest run; a "
    "single seed has no spread, and may be a lucky one",
    "least minutes: training of the quickest seed, on the first device (–: measured beside other work); "
    "memory: the most that tensors took on a GPU, or the whole process on a CPU; where devices differ, costs "
    "do not compare the methods",
)


@dataclass
class Table:
    """Rows that may be compared, the best first; `facts` is what they have in common."""

    title: str
    facts: dict[str, str]
    rows: pd.DataFrame  # settings, title, rank, n, seeds, devices, costs; "knn mean", "knn std", "knn n", …
    protocols: dict[str, str]


# ---- Reading -----------------------------------------------------------------------------------------------


def read(places: Iterable[str | Path]) -> tuple[pd.DataFrame, list[str]]:
    """A row for each run record at some places, and what is wrong with those that cannot be used.

    A place is a record file, or a folder that is searched for *.json, without a lesson's trials/. Columns:
    what a run was on (`FACTS`), its settings (the recipe's as "recipe lr", text), "seed", "device",
    "minutes", "images/s", "memory" (bytes, the most of any epoch), and each metric with its "protocol of …".
    Text is `printable`.
    """
    paths, rows, problems = {}, [], []
    for place in map(Path, places):
        for path in _records_in(place, problems) if place.is_dir() else [place]:
            paths.setdefault(path.resolve(), path)
    for path in paths.values():
        try:
            rows.append(_row_of(path.as_posix(), Run.open(path).record))
        except Exception as error:  # whatever an odd record may hold, the others are shown
            odd = f"{path} is damaged ({type(error).__name__}: {error!s:.100}); run it again"
            problems.append(printable(str(error) if isinstance(error, RecordError) else odd))
    runs = pd.DataFrame(rows)
    same = runs[settings(runs)].astype(object)
    runs[same.columns] = same.where(same.notna(), "")
    others = [name for name in (*FACTS, *settings(runs)) if name not in CODE]
    for name in CODE if len(runs) else ():  # an older record has none: it is taken for one of its like
        known_ones = runs.groupby(others)[name].transform(lambda each: min(filter(None, each), default=""))
        runs[name] = runs[name].where(runs[name] != "", known_ones)
    return runs, problems


def _records_in(folder: Path, problems: list[str]) -> Iterator[Path]:
    """Its JSON files, but for whole ones that never were records: a benchmark's, a grid's own notes."""
    paths = []  # not by rglob, which passes over a folder that it cannot read
    for place, inner, names in os.walk(folder, onerror=lambda error: problems.append(printable(str(error)))):
        inner[:] = [name for name in inner if name != "trials" and not name.startswith(".")]
        paths += [Path(place, name) for name in names if name.endswith(".json")]
    for path in filter(Path.is_file, sorted(paths)):
        with suppress(OSError, ValueError, RecursionError):  # damaged: who reads it says so
            content = json.loads(path.read_text(encoding="utf-8"))
            if path.name != "record.json" and not (isinstance(content, dict) and "schema" in content):
                continue
        yield path


def _row_of(path: str, record: dict) -> dict:
    """A record's row of text and numbers; RecordError names what is of the wrong kind."""

    def need(name: str, value, *kinds: type):
        if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
            raise RecordError(f"{path} is damaged: {name} is {value!r:.80}; run it again")
        return value

    def of_epochs(name: str) -> list[float]:
        return [need(name, epoch[name], *number) for epoch in history if epoch.get(name) is not None]

    number, none = (int, float), type(None)
    flat = defaultdict(lambda: None, record)  # "view_size", "dataset size", "recipe name"
    for part in ("dataset", "network", "recipe", "versions"):
        members = need(part, record.get(part), dict, none) or {}
        flat |= {f"{part} {name}": value for name, value in members.items()}
    history = [need("a row of the history", epoch, dict) for epoch in record["history"]]
    values = {"record": path, "started": flat["started"], "device": need("device", record["device"], str)}
    values |= {name: form.format_map(flat) for name, form in FACTS.items()}
    values |= {name: flat[place] for name, place in SETTINGS.items()} | NEUTRAL
    recipe = pd.json_normalize(record["recipe"] or {"name": None}, sep=" ")  # pandas 2 has no row of {}
    for name, value in recipe.to_dict("records")[0].items():
        # the first three have columns of their own; where a policy comes from is no setting
        if name not in ("name", "epochs", "batch_size") and name.split()[-1] != "source":
            values[printable(f"recipe {name}")] = value
    row = {name: _text(value) for name, value in values.items()}
    row["epochs"] = need("epoch", history[-1].get("epoch"), *number) if history else 0
    if history and row["epochs"] < (need("epochs", record.get("epochs"), int, none) or 0):
        raise RecordError(f"{path} is unfinished: epoch {row['epochs']} of {record['epochs']}; go on with it")
    row["seed"] = need("seed", record["seed"], int, none)
    row["minutes"] = need("seconds", record["seconds"], *number) / 60
    row["memory"] = max(of_epochs("peak_memory"), default=math.nan)
    seconds = median(of_epochs("seconds") or [0])  # a disturbed epoch counts little
    row["images/s"] = need("images", flat["dataset images"], *number) / seconds if seconds > 0 else math.nan
    if record.get("note") == DISTURBED:
        row["minutes"] = row["images/s"] = math.nan
    for name, metric in record["metrics"].items():
        if name in row:
            raise RecordError(f"{path} is damaged: a metric is called {name!r}; run it again")
        value = need(f"metric {name}", metric, dict)["value"]
        if value is not None:  # a NaN was written as null
            row[printable(name)] = float(need(f"the value of {name}", value, *number))
            row[f"protocol of {printable(name)}"] = stable(_text(str(metric.get("protocol", ""))))
    return row


def _text(value) -> str | None:
    return None if value is None else printable(value if isinstance(value, str) else json.dumps(value))


def stable(protocol: str) -> str:
    """A protocol's text without what one protocol may choose anew for each run: the L2 weight, the seed."""
    return re.sub(r", seed -?\d+", "", re.sub(r"\bL2 [\d.e+-]+ chosen", "L2 chosen", protocol))


def settings(runs: pd.DataFrame) -> list[str]:
    """The columns that make two runs of one row, but for their seed and device."""
    return [name for name in runs if name in (*SETTINGS, "epochs") or name.startswith("recipe ")]


def metrics(runs: pd.DataFrame) -> list[str]:
    """The names of all metrics, in alphabetical order."""
    return sorted(name for name in runs if f"protocol of {name}" in runs)


# ---- Adding up ---------------------------------------------------------------------------------------------


def tables(runs: pd.DataFrame, metric: str = "knn") -> list[Table]:
    """Runs added up over seeds, in tables of what may be compared, each ranked by one metric; `Unknown` if no
    record has it."""
    known("metric", metric, metrics(runs))
    tables = []
    for _, alike in runs[runs[metric].notna()].groupby([*FACTS]):
        # A protocol decides only where there are two of it: a run judged in fewer ways is of the same kind
        protocols = [f"protocol of {name}" for name in metrics(alike)]
        apart = [name for name in protocols if alike[name].nunique() > 1]
        for _, group in alike.fillna(dict.fromkeys(apart, "not measured")).groupby([*FACTS, *apart]):
            tables.append(_table(group, [*FACTS, *apart], metric))
    shown_first = ("images", "number", "stored", "views")
    others = [name for name in differences(tables) if name not in shown_first]
    for table in tables:
        table.title = "{images}: {number} stored at {stored}, views of {views}".format_map(table.facts)
        for name in others:
            if name in table.facts:
                table.title += f"; {name}: {table.facts[name]}"
    return tables


def _table(runs: pd.DataFrame, facts: list[str], metric: str) -> Table:
    """A row for runs that differ in nothing but seed and device, of each seed the latest."""
    same = settings(runs)
    latest = runs.sort_values("started", kind="stable").drop_duplicates([*same, "seed"], keep="last")
    groups = latest.groupby(same)
    rows = groups.agg(
        n=("seed", "size"), seeds=("seed", lambda seeds: sorted(seeds, key=str)), records=("record", list)
    )
    measured = [name for name in metrics(latest) if latest[name].notna().any()]
    numbers = groups[measured].agg(["mean", "std", "count"])  # the deviation's divisor is n − 1
    numbers.columns = [f"{name} {part}" for name in measured for part in ("mean", "std", "n")]
    # Costs are those of the quickest run: the same work takes longer on a machine that is busy, never shorter
    quick = latest.sort_values("minutes", kind="stable").groupby(same)
    costs = quick[["minutes", "images/s"]].first()
    costs.insert(0, "devices", quick["device"].agg(lambda names: list(dict.fromkeys(names))))  # its own first
    rows = pd.concat([rows, numbers, costs, groups["memory"].max()], axis=1).reset_index()
    rows["title"] = rows["method"].map(title)
    rows = rows.sort_values([f"{metric} mean", "title"], ascending=[False, True], ignore_index=True)
    rows.insert(0, "rank", rows.index + 1)
    for _, alike in rows.groupby("title"):  # what tells rows of one title apart and has no column
        apart = [name for name in same if alike[name].nunique() > 1 and name not in ("epochs", "precision")]
        for name in ["recipe"] if "recipe" in apart else apart[:3]:  # the numbers follow from the recipe
            values = alike[name].where(alike[name] != "", "None")
            rows.loc[alike.index, "title"] += ", " + name.removeprefix("recipe ") + " " + values
    protocols = {name: runs[f"protocol of {name}"].dropna().iloc[-1] for name in measured}
    return Table("", runs[facts].iloc[0].to_dict(), rows, protocols)


def title(method: str) -> str:
    """What a reader calls a method, from the name of its class."""
    return TITLES.get(method.lower(), method)


def differences(tables: Sequence[Table]) -> list[str]:
    """The facts that tell tables apart: each of them splits what those before it left together."""
    facts = pd.DataFrame([table.facts for table in tables]).fillna("")
    names, parts = [], 1
    for name in facts:
        finer = len(facts[[*names, name]].drop_duplicates())
        if finer > parts:
            names, parts = [*names, name], finer
    return names


def why_apart(tables: Sequence[Table]) -> str:
    """A line that says what differs between tables and why they stand apart; empty for one table."""
    if len(tables) < 2:
        return ""
    reasons = []
    for name in differences(tables):
        values = dict.fromkeys(table.facts.get(name, "not measured") for table in tables)
        reasons.append(f"{name} ({'; '.join(values)})")
    rule = "numbers from other images, versions or protocols are not averaged or ranked together"
    return f"{len(tables)} tables, because the records differ in {', '.join(reasons)}: {rule}."


def for_csv(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without formulas for a spreadsheet: a cell or head that starts like one gets an apostrophe."""

    def safe(cell):
        # + or - before a number is none
        formula = r"[=@\t\r]|[+-](?![\d.]+(e[+-]?\d+)?\Z)"
        return f"'{cell}" if isinstance(cell, str) and re.match(formula, cell) else cell

    return rows.map(safe).rename(columns=safe)


# ---- In print ----------------------------------------------------------------------------------------------


def shown(table: Table, metric: str = "knn") -> pd.DataFrame:
    """A table's rows as text, in a reader's columns. Accuracies are in per cent, mean ± std."""
    labels = _columns(table, metric)
    # A metric is a share, and shown in per cent, where it is in [0, 1] in every row
    share = {name: table.rows[f"{name} mean"].dropna().between(0, 1).all() for name in labels}
    lines = []
    for _, row in table.rows.iterrows():
        line = {"": row["rank"], "method": row["title"], "epochs": row["epochs"], "n": row["n"]}
        for name, label in labels.items():
            scale, form = (100, ".1f") if share[name] else (1, ".4g")
            cell = format(scale * row[f"{name} mean"], form)
            if row[f"{name} n"] > 1:
                cell += f" ± {format(scale * row[f'{name} std'], form)}"
            if 0 < row[f"{name} n"] < row["n"]:
                cell += f" (n {row[f'{name} n']})"
            line[label] = cell
        line["least minutes"] = f"{row['minutes']:.1f}"
        line["images/s"] = f"{row['images/s']:.0f}"
        line["memory, GB"] = f"{row['memory'] / 1e9:.1f}"
        line["device"] = "; ".join(f"{device}, {row['precision']}" for device in row["devices"])
        lines.append(line)
    return pd.DataFrame(lines).astype(str).replace("nan", "–")


def _columns(table: Table, metric: str) -> dict[str, str]:
    """The metrics that get a column, and its head: those of `LABELS` at hand, and the one that ranks."""
    labels = {name: label for name, label in LABELS.items() if name in table.protocols}
    return labels if metric in labels else {metric: metric, **labels}


def below(table: Table, metric: str) -> list[str]:
    """What stands under a table: versions, what its numbers are, and how each metric was measured."""
    packages = ", ".join(f"{name} {table.facts[name]}" for name in PACKAGES)
    lines = [f"ranked by {LABELS.get(metric, metric)}; {packages}", *LEGEND]
    for name, label in _columns(table, metric).items():
        lines.append(f"{label}: {table.protocols[name] or 'no protocol in the records'}")
    return lines


def text(tables: Sequence[Table], metric: str = "knn") -> str:
    """For a terminal: aligned columns."""
    parts = [why_apart(tables)]
    for table in tables:
        rows = shown(table, metric)
        for head in ("method", "device"):  # words stand on the left, numbers on the right
            rows[head] = rows[head].str.ljust(rows[head].str.len().max())
        lines = [f"  {line}" for line in below(table, metric)]
        parts += [table.title, rows.to_string(index=False, justify="left"), *lines, ""]
    return "\n".join(parts).strip()


def _escaped(text) -> str:
    """Text of a record for Markdown: no HTML, no link, and no new cell of a table starts in it."""
    return html.escape(str(text), quote=False).replace("|", "\\|").replace("](", "]\\(")


def as_markdown(rows: pd.DataFrame) -> str:
    """A table of text for a page; words stand on the left, numbers on the right."""
    words = ("method", "device", "record", "images", "network")
    lines = [f"| {' | '.join(map(_escaped, line))} |" for line in [list(rows), *rows.to_numpy().tolist()]]
    lines.insert(1, f"|{'|'.join('---' if head in words else '--:' for head in rows)}|")
    return "\n".join(lines)


def markdown(tables: Sequence[Table], metric: str = "knn") -> str:
    """For a page: a heading, a table and small print for each table."""
    parts = [_escaped(why_apart(tables))]
    for table in tables:
        notes = "\n".join(f"- {_escaped(line)}" for line in below(table, metric))
        parts += [f"### {_escaped(table.title)}", as_markdown(shown(table, metric)), notes]
    return "\n\n".join(parts).strip()


def page(tables: Sequence[Table], metric: str = "knn") -> str:
    """A whole HTML page, without anything from elsewhere, in ASCII: it is right in any encoding."""
    parts = ['<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Leaderboard</title>']
    parts.append("<style>body{font-family:sans-serif}</style></head>\n<body>")
    parts.append(f"<p>{html.escape(why_apart(tables))}</p>")
    for table in tables:
        parts.append(f"<h2>{html.escape(table.title)}</h2>")
        parts.append(shown(table, metric).to_html(index=False, escape=True, border=0, justify="left"))
        parts += ["<ul>", *(f"<li>{html.escape(line)}</li>" for line in below(table, metric)), "</ul>"]
    return "\n".join([*parts, "</body>\n</html>"]).encode("ascii", "xmlcharrefreplace").decode()


def as_json(tables: Sequence[Table], metric: str = "knn", problems: Sequence[str] = ()) -> str:
    """Everything, with full precision: {"metric", "why_apart", "differences", "tables", "left_out"}."""
    whole = {"metric": metric, "why_apart": why_apart(tables), "differences": differences(tables)}
    whole |= {"tables": list(map(vars, tables)), "left_out": list(problems)}
    as_rows = {"orient": "records", "double_precision": 15}
    return json.dumps(whole, indent=1, default=lambda frame: json.loads(frame.to_json(**as_rows)))


def as_csv(tables: Sequence[Table], metric: str = "knn") -> str:
    """One line a row, with full precision; the column `table` says which rows may be compared."""
    numbered = {i: table.rows.assign(**table.facts) for i, table in enumerate(tables, 1)}
    rows = pd.concat(numbered, names=["table"]).reset_index("table")
    for name in ("seeds", "devices", "records"):
        rows[name] = rows[name].map(lambda values: "; ".join(map(str, values)))
    return for_csv(rows).to_csv(index=False, lineterminator="\n").rstrip("\n")


FORMS = {"text": text, "markdown": markdown, "html": page, "csv": as_csv}


def committed() -> Path:
    """The folder of the leaderboard's committed records."""
    return results_folder() / "leaderboard"
