"""A leaderboard in print: plain text, Markdown, HTML, JSON, CSV, and README.md's part between two markers."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ssl_lessons.leaderboard import Row, Table, differences, read, tables, why_apart
from ssl_lessons.records import TITLES, RecordError, Run, atomically, results_folder

LABELS = {"knn": "kNN", "linear_100": "linear", "linear_10": "linear 10 %", "linear_1": "linear 1 %"}
LABELS |= {"finetune_100": "fine-tuned", "finetune_10": "fine-tuned 10 %", "finetune_1": "fine-tuned 1 %"}


def is_share(rows: Sequence[Row], metric: str) -> bool:
    """Whether a metric is a share in [0, 1] in every row, and so shown in per cent."""
    return all(0 <= row.metrics[metric]["mean"] <= 1 for row in rows if metric in row.metrics)


def _metrics(table: Table, metric: str) -> list[str]:
    """The metrics that get a column: those of `LABELS` at hand, and the one that ranks."""
    shown = [name for name in LABELS if any(name in row.metrics for row in table.rows)]
    return shown if metric in shown else [metric, *shown]


def _cell(row: Row, metric: str, share: bool) -> str:
    if metric not in row.metrics:
        return "–"
    found = row.metrics[metric]
    write = (lambda value: f"{100 * value:.1f}") if share else (lambda value: f"{value:.4g}")
    text = write(found["mean"]) + ("" if found["std"] is None else f" ± {write(found['std'])}")
    return text if found["n"] == row.n else f"{text} (n {found['n']})"


def cells(table: Table, metric: str = "knn") -> list[list[str]]:
    """A table as text: the names of its columns, then its rows. Accuracies are in per cent, mean ± std."""

    def given(value, form: str) -> str:
        return "–" if value is None else format(value, form)

    rows, names = table.rows, _metrics(table, metric)
    share = {name: is_share(rows, name) for name in names}
    heads = ["", "method", "epochs", "n", *(LABELS.get(name, name) for name in names)]
    heads += ["minutes", "images/s", "memory, GB"]
    energy = any(row.joules is not None for row in rows)
    lines = [[*heads, *(["energy, Wh"] if energy else []), "device"]]
    for row in rows:
        line = [str(row.rank), row.title, str(row.settings["epochs"]), str(row.n)]
        line += [_cell(row, name, share[name]) for name in names]
        memory = None if row.peak_memory is None else row.peak_memory / 1e9
        line += [given(row.minutes, ".1f"), given(row.images_a_second, ".0f"), given(memory, ".1f")]
        if energy:
            line.append(given(None if row.joules is None else row.joules / 3600, ".1f"))
        lines.append([*line, f"{row.settings['device']}, {row.settings['precision']}"])
    return lines


def below(table: Table, metric: str) -> list[str]:
    """What stands under a table: versions, how each shown metric was measured, and what to beware of."""
    packages = ", ".join(f"{name} {table.facts[name]}" for name in ("ssl-lessons", "torch", "torchvision"))
    measured = [
        f"{LABELS.get(name, name)}: {table.protocols.get(name) or 'no protocol in the records'}"
        for name in _metrics(table, metric)
    ]
    said = "accuracies in per cent, mean ± sample standard deviation over n seeds; minutes of training; "
    said += "memory: the most that tensors took on a GPU, or the whole process on a CPU"
    return [f"ranked by {LABELS.get(metric, metric)}; {packages}", said, *measured, *table.notes]


def text(found: Sequence[Table], metric: str = "knn") -> str:
    """For a terminal: aligned columns."""
    parts = [why_apart(found)] if why_apart(found) else []
    for table in found:
        lines = cells(table, metric)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        words = (1, len(widths) - 1)  # the method and the device; all else is numbers, flush right
        parts.append(table.title)
        for line in lines:
            padded = (
                c.ljust(w) if i in words else c.rjust(w)
                for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            parts.append("  ".join(padded).rstrip())
        parts += [f"  {line}" for line in below(table, metric)]
        parts.append("")
    return "\n".join(parts).rstrip()


def markdown(found: Sequence[Table], metric: str = "knn") -> str:
    """For README.md: a heading, a table and small print for each table."""
    parts = [why_apart(found)] if why_apart(found) else []
    for table in found:
        heads, *rows = [[cell.replace("|", "\\|") for cell in line] for line in cells(table, metric)]
        sides = ["---" if head in ("method", "device") else "--:" for head in heads]
        lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(sides)}|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        parts += [f"### {table.title}", "\n".join(lines)]
        parts.append("\n".join(f"- {line}" for line in below(table, metric)))
    return "\n\n".join(parts)


def page(found: Sequence[Table], metric: str = "knn") -> str:
    """A whole HTML page, without anything from elsewhere."""
    say, parts = html.escape, []
    if why_apart(found):
        parts.append(f"<p>{say(why_apart(found))}</p>")
    for table in found:
        heads, *rows = cells(table, metric)
        parts.append(f"<h2>{say(table.title)}</h2>\n<table>")
        parts.append(f"<tr>{''.join(f'<th>{say(head)}</th>' for head in heads)}</tr>")
        parts += [f"<tr>{''.join(f'<td>{say(cell)}</td>' for cell in row)}</tr>" for row in rows]
        parts.append("</table>\n<ul>")
        parts += [f"<li>{say(line)}</li>" for line in below(table, metric)]
        parts.append("</ul>")
    style = "body{font-family:sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:right}"
    style += "tr:nth-child(even){background:#f2f2f2}td:nth-child(2),td:last-child{text-align:left}"
    head = f'<meta charset="utf-8"><title>Leaderboard</title><style>{style}</style>'
    body = "\n".join(["<h1>Leaderboard</h1>", *parts])
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>'


def as_json(found: Sequence[Table], metric: str = "knn", problems: Sequence[str] = ()) -> str:
    """Everything, with full precision: {"metric", "why_apart", "differences", "tables", "left_out"}."""
    whole = {"metric": metric, "why_apart": why_apart(found), "differences": differences(found)}
    whole |= {"tables": [asdict(table) for table in found], "left_out": list(problems)}
    return json.dumps(whole, indent=1, ensure_ascii=False, default=str)


def as_csv(found: Sequence[Table], metric: str = "knn") -> str:
    """One line a row, with full precision; the column `table` says which rows may be compared."""
    names = dict.fromkeys([metric, *(name for table in found for row in table.rows for name in row.metrics)])
    common = ("method", "recipe", "epochs", "batch size", "network", "device", "precision")
    numbers = ("minutes", "minutes_std", "images_a_second", "peak_memory", "joules")
    facts = dict.fromkeys(key for table in found for key in table.facts)
    heads = ["table", "rank", "title", *common, "n", "seeds"]
    heads += [f"{name} {part}" for name in names for part in ("mean", "std", "n")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*heads, *numbers, *facts])
    for i, table in enumerate(found):
        for row in table.rows:
            line = [i + 1, row.rank, row.title, *(row.settings.get(key) for key in common)]
            line += [row.n, " ".join(map(str, row.seeds))]
            line += [row.metrics.get(name, {}).get(p) for name in names for p in ("mean", "std", "n")]
            line += [getattr(row, name) for name in numbers]
            writer.writerow([*line, *(table.facts.get(key) for key in facts)])
    return out.getvalue().rstrip("\n")


# ---- README.md ---------------------------------------------------------------------------------------------


def put_into(file: str | Path, content: str, name: str = "results") -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a file, atomically.

    Raises:
        ValueError: the file does not have each marker once, in this order.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = Path(file).read_text(encoding="utf-8")
    if whole.count(start) != 1 or whole.count(end) != 1 or whole.index(start) > whole.index(end):
        raise ValueError(f"{file} must have the line {start} once and, after it, {end} once")
    before, after = whole[: whole.index(start)], whole[whole.index(end) :]
    atomically(
        Path(file),
        lambda path: path.write_text(f"{before}{start}\n{content}\n{after}", encoding="utf-8"),
    )


def committed(folder: Path | None = None) -> Path:
    """The committed records of the leaderboard: data/results/leaderboard, else all of data/results."""
    folder = folder or results_folder()
    return folder / "leaderboard" if (folder / "leaderboard").is_dir() else folder


def readme(folder: Path | None = None) -> str:
    """What stands in README.md between the markers: the leaderboard, then the lessons' own single runs.

    Args:
        folder: of the committed records; those for the leaderboard are in its leaderboard/.
    """
    folder = folder or results_folder()
    if committed(folder) == folder:
        return lessons_table(folder)
    entries, problems = read([committed(folder)])
    if problems:
        raise RecordError("; ".join(problems))
    parts = [markdown(tables(entries))]
    if watched := time_table(committed(folder)):
        parts += [f"### Time to {100 * LEVEL:g} % kNN on Imagenette", watched, CAVEAT]
    parts += ["### The lessons' own runs, one seed each", lessons_table(folder)]
    return "\n\n".join(parts)


LEVEL = 0.5  # of kNN accuracy
CAVEAT = (
    "- watched after each epoch, with at most 4,000 training and 4,000 test images, in the midst of a "
    "schedule whose rate has yet to fall: a run that was meant to end there would stand higher; nothing was "
    "chosen by it"
)


def time_table(folder: Path, dataset: str = "imagenette") -> str:
    """When the committed runs on a dataset first reach `LEVEL`, as a Markdown table; empty without any.

    Of records whose history has kNN, as `trained` with a monitor makes them (row.ipynb); see `CAVEAT`.
    """
    lines = [
        "| method | epochs of the run | reached after | images, k | minutes | seed | device |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for path in sorted(folder.glob("*.json")):
        record = Run.open(path).record
        watched = [row for row in record["history"] if "knn" in row and "seconds" in row]
        if record["dataset"]["name"] != dataset or not watched or record["method"] == "Supervised":
            continue
        first = next((row["epoch"] for row in watched if row["knn"] >= LEVEL), None)
        start = f"| {TITLES[record['method'].lower()]} | {record['epochs']} |"
        end = f"{record['seed']} | {record['device']}, {record['precision']} |"
        if first is None:
            lines.append(f"{start} not; {max(row['knn'] for row in watched):.1%} | – | – | {end}")
            continue
        steps = record["dataset"]["images"] // record["batch_size"] * first
        minutes = math.fsum(row["seconds"] for row in record["history"][:first]) / 60
        images = steps * record["batch_size"] / 1000
        lines.append(f"{start} {first} epochs | {images:.0f} | {minutes:.1f} | {end}")
    return "\n".join(lines) if len(lines) > 2 else ""


def lessons_table(folder: Path | None = None) -> str:
    """The committed records of lessons 02 to 06 as a Markdown table."""
    lines = [
        "| record | method | images | network | epochs | minutes | kNN | random | 10 % | random | device |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for path in sorted((folder or results_folder()).glob("0[2-6]-*.json")):
        row = Run.open(path).record
        names = ("knn", "knn_random", "linear_10", "linear_10_random")
        judged = " | ".join(f"{row['metrics'][metric]['value']:.1%}" for metric in names)
        lines.append(
            f"| {path.stem} | {TITLES[row['method'].lower().removeprefix('my')]} "
            f"| {row['dataset']['name']}, {row['view_size']} px "
            f"| {row['network']['name']} | {row['epochs']} "
            f"| {row['seconds'] / 60:.1f} | {judged} | {row['device']}, {row['precision']} |"
        )
    return "\n".join(lines)
