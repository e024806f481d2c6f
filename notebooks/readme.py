"""Write README.md's tables and those of data/results, and draw a picture.

    python notebooks/readme.py             the tables, from the lessons and the committed records
    python notebooks/readme.py --picture   data/results/neighbours.png too; needs Imagenette

No number in those tables is typed: minutes with a class are counted in the notebooks (`counts`), minutes of
running come from the lessons' committed records, accuracies from those of the leaderboard.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import pandas as pd

from ssl_lessons.batch import grid, leaderboard
from ssl_lessons.lab.evidence import YARDSTICKS
from ssl_lessons.records import TITLES, RecordError, Run, atomically

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
RESULTS = ROOT / "data" / "results"
WORDS, LINES = 200, 15  # read in a minute
SHOWN = {**TITLES, **YARDSTICKS}
LEVEL = 0.5  # kNN accuracy of the time table
BUDGET = (
    "- the epochs that take about 16 minutes on one core (grids/equal_minutes.yaml); –: "
    "measured beside other work"
)
CAVEAT = (
    "- images and minutes are of the seed that took least; watched after each epoch, with at most 4,000 "
    "training and 4,000 test images, in the midst of a schedule whose rate has yet to fall; nothing was "
    "chosen by it"
)


def counts(notebook: Path, core: bool = False) -> dict[str, float]:
    """What a lesson asks of a class: cells, words (folded hints apart), code lines, longest cell, minutes.

    `core`: without the sections whose title says "(side road)". Minutes: 200 words or 15 lines of code in
    one, half a minute a figure, exercises as their titles say.
    """
    total = dict.fromkeys(("cells", "words", "lines", "longest", "figures", "exercises"), 0)
    side = False
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        title = re.search(r"^## .*", source, re.MULTILINE) if cell["cell_type"] == "markdown" else None
        side = "(side road)" in title[0] if title else side
        if core and side:
            continue
        total["cells"] += 1
        if cell["cell_type"] == "markdown":
            total["words"] += len(re.sub(r"<details>.*?</details>", "", source, flags=re.DOTALL).split())
            minutes = re.search(r"^### Exercise .* (\d+) min", source, re.MULTILINE)
            total["exercises"] += int(minutes[1]) if minutes else 0
            continue
        shown = [output.get("data", {}) for output in cell["outputs"]]
        total["figures"] += sum(any(kind.startswith("image/") for kind in data) for data in shown)
        hidden = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
        lines = 0 if hidden else sum(bool(line.strip()) for line in source.splitlines())
        total["lines"] += lines
        total["longest"] = max(total["longest"], lines)
    reading = total["words"] / WORDS + total["lines"] / LINES + total["figures"] / 2
    return {**total, "minutes": reading + total["exercises"]}


def running_minutes(number: str) -> float | None:
    """How long a lesson took in profile `class` on Imagenette, by its committed record."""
    record = RESULTS / f"{number}-imagenette-class.json"
    if not record.exists():
        return None
    return json.loads(record.read_text(encoding="utf-8"))["lesson_seconds"] / 60


def questions() -> dict[str, tuple[str, str]]:
    """{number: (title, question)} from the table of notebooks/README.md."""
    lessons = {}
    for line in (NOTEBOOKS / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdigit() and len(cells) == 3:
            number, link, question = cells
            lessons[number] = (link[1:].split("]")[0], question)
    return lessons


def lessons_table() -> str:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    repository = re.search(r'Repository = "https://github.com/([^"]+)"', project).group(1)
    colab = f"https://colab.research.google.com/github/{repository}"
    lines = ["| | lesson | question | with a class | machine | open |", "|---|---|---|--:|--:|---|"]
    asked = questions()
    for notebook in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        number = notebook.stem[:2]
        title, question = asked[number]
        running = running_minutes(number)
        shown = "–" if running is None else f"{max(1, round(running))}"
        link = f"[{title}](notebooks/{notebook.name})"
        opens = f"[Colab]({colab}/blob/main/notebooks/{notebook.name})"
        read = f"{counts(notebook)['minutes']:.0f}"
        lines.append(f"| {number} | {link} | {question} | {read} | {shown} | {opens} |")
    return "\n".join(lines)


def results_table(dataset: str = "imagenette") -> str:
    """Accuracy on one dataset, the best first: of each method the runs of most seeds, and the best. The
    evening runs, whose encoders are in data/weights, are among them."""
    paths = sorted((RESULTS / "leaderboard").glob("*.json"))
    paths += sorted((ROOT / "data" / "weights").glob("*.json"))
    return "\n".join(rows_of(paths, dataset))


def rows_of(paths: list[Path], dataset: str, wanted: set[tuple] | None = None) -> list[str]:
    """Records as lines of a Markdown table, a row a method, length and size: those of `wanted` (method in
    small letters, epochs), or of each method the row of most seeds and the best."""
    runs = defaultdict(dict)
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["dataset"]["name"] != dataset:
            continue
        name, epochs = record["method"].lower(), record["epochs"]
        if wanted is None or (name, epochs) in wanted:
            # an encoder of the leaderboard is no second run
            runs[name, epochs, record["view_size"]].setdefault(record["seed"], record)
    rows = []
    for (name, epochs, size), seeds in runs.items():
        knn = [100 * record["metrics"]["knn"]["value"] for record in seeds.values()]
        linear = [100 * record["metrics"]["linear_10"]["value"] for record in seeds.values()]
        spread = f" ± {stdev(knn):.1f}" if len(knn) > 1 else ""
        # the least: the same work takes longer beside other work, never shorter
        alone = [one["seconds"] for one in seeds.values() if one.get("note") != leaderboard.DISTURBED]
        minutes = f"{min(alone) / 60:.0f}" if alone else "–"
        shown = f"{minutes} | {mean(knn):.1f}{spread} | {mean(linear):.1f}"
        line = f"| {SHOWN.get(name, name)} | {epochs} | {size} | {len(seeds)} | {shown} |"
        rows.append((mean(knn), len(seeds), name, line))
    if wanted is None:
        kept = set()
        for method in {row[2] for row in rows}:
            own = [row for row in rows if row[2] == method]
            kept |= {max(own), max(own, key=lambda row: (row[1], row[0]))}
        rows = kept
    lines = ["| method | epochs | px | seeds | minutes | kNN, % | linear probe, 10 % of the labels, % |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    return lines + [line for *_, line in sorted(rows, reverse=True)]


def leaderboard_of(folder: Path) -> str:
    """The tables of a folder's records, as Markdown. Raises `RecordError` for a damaged record."""
    runs, problems = leaderboard.read([folder])
    if problems:
        raise RecordError("; ".join(problems))
    return leaderboard.markdown(leaderboard.tables(runs))


def methods_tables(folder: Path = RESULTS) -> str:
    """The leaderboard, its second budget, the time to half, the lessons' own single runs. Raises
    `RecordError` for a damaged record."""
    parts = [leaderboard_of(folder / "leaderboard")]
    budget = grid.read(NOTEBOOKS / "grids" / "equal_minutes.yaml")
    wanted = {(one.parameters["method"], one.parameters["epochs"]) for one in budget}
    lines = rows_of(sorted((folder / "leaderboard").glob("*.json")), "imagenette", wanted)
    if len(lines) > 2:  # more than its head
        parts += ["### At equal minutes, Imagenette", "\n".join(lines), BUDGET]
    if watched := time_table(folder / "leaderboard"):
        parts += [f"### Time to {100 * LEVEL:g} % kNN on Imagenette", watched, CAVEAT]
    return "\n\n".join([*parts, "### The lessons' own runs, one seed each", own_runs(folder)])


def gpu_table(folder: Path = RESULTS) -> str:
    """The runs on a GPU, at the lessons' settings `class`. Raises `RecordError` for a damaged record."""
    return leaderboard_of(folder / "gpu")


def time_table(folder: Path, dataset: str = "imagenette") -> str:
    """When the committed runs on a dataset first reach `LEVEL`, as a Markdown table; empty without any.

    Of records whose history has kNN, as `trained` with a monitor makes them (row.ipynb); see `CAVEAT`.
    """
    runs = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        record = Run.open(path).record
        history = pd.DataFrame(record["history"])
        if "knn" in history and record["dataset"]["name"] == dataset and record["method"] != "Supervised":
            runs[record["method"].lower(), record["epochs"]].append((record, history))
    lines = []
    for (method, epochs), seeds in runs.items():
        line = {"method": TITLES[method], "epochs of the run": epochs, "seeds": len(seeds)}
        best = max(history["knn"].max() for _, history in seeds)
        line |= {"reached after, epochs": f"not; {best:.1%}", "images, k": "–", "minutes": "–", "device": "–"}
        reached, least = [], None
        for record, history in seeds:
            epoch = history["epoch"][history["knn"] >= LEVEL].min()
            if epoch != epoch:  # NaN: this run never does
                continue
            reached.append(int(epoch))
            minutes = history["seconds"][history["epoch"] <= epoch].sum() / 60
            alone = record.get("note") != leaderboard.DISTURBED
            if alone and (least is None or minutes < least):
                least = minutes
                images = record["dataset"]["images"] // record["batch_size"] * record["batch_size"] * epoch
                line |= {"images, k": f"{images / 1000:.0f}", "minutes": f"{minutes:.1f}"}
                line["device"] = f"{record['device']}, {record['precision']}"
        if reached:
            line["reached after, epochs"] = ", ".join(map(str, sorted(reached)))
        lines.append(line)
    return leaderboard.as_markdown(pd.DataFrame(lines)) if lines else ""


def own_runs(folder: Path = RESULTS) -> str:
    """The committed records of lessons 02 to 06 as a Markdown table."""
    lines = []
    for path in sorted(folder.glob("0[2-6]-*.json")):
        row = Run.open(path).record
        line = [path.stem, TITLES[row["method"].lower().removeprefix("my")]]
        line += [f"{row['dataset']['name']}, {row['view_size']} px", row["network"]["name"], row["epochs"]]
        line.append(f"{row['seconds'] / 60:.1f}")
        for name in ("knn", "knn_random", "linear_10", "linear_10_random"):
            line.append(f"{row['metrics'][name]['value']:.1%}")
        lines.append([*line, f"{row['device']}, {row['precision']}"])
    heads = ["record", "method", "images", "network", "epochs", "minutes", "kNN", "random", "10 %", "random"]
    return leaderboard.as_markdown(pd.DataFrame(lines, columns=[*heads, "device"]))


def counts_table() -> str:
    """Size and minutes of each lesson, and of its core path."""
    head = ["", "cells", "words", "code lines", "longest cell", "figures", "exercises, min"]
    head += ["with a class, min", "core path, min", "machine, min"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for notebook in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        whole, core = counts(notebook), counts(notebook, core=True)
        machine = running_minutes(notebook.stem[:2])
        cells = [notebook.stem[:2], *(f"{value:.0f}" for value in whole.values()), f"{core['minutes']:.0f}"]
        lines.append(f"| {' | '.join(cells)} | {'–' if machine is None else f'{machine:.0f}'} |")
    return "\n".join(lines)


SECTIONS = {"README.md": {"lessons": lessons_table, "summary": results_table}}
SECTIONS["notebooks/README.md"] = {"counts": counts_table}
SECTIONS["data/results/README.md"] = {"results": methods_tables, "gpu": gpu_table}


def put_into(file: Path, content: str, name: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a file; ValueError if it does not
    have each of them once, in this order."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    parts = re.split(f"({start}|{end})", file.read_text(encoding="utf-8"))
    if parts[1::2] != [start, end]:
        raise ValueError(f"{file} must have the line {start} once and, after it, {end} once")
    whole = f"{parts[0]}{start}\n{content}\n{end}{parts[-1]}"
    atomically(file, lambda path: path.write_text(whole, encoding="utf-8"))


def fill(root: Path = ROOT) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`, for each of `SECTIONS`."""
    for page, sections in SECTIONS.items():
        for name, section in sections.items():
            put_into(root / page, section(), name)


def picture(target: Path = RESULTS / "neighbours.png", k: int = 4) -> None:
    """The first test photograph of each class beside its k nearest training photographs, by `pretrained`."""
    import matplotlib.pyplot as plt
    import torch
    from PIL import Image

    from ssl_lessons import evaluate, figures, images

    encoder = evaluate.pretrained("moco-imagenette")
    stores = {split: images.load("imagenette", split, 80) for split in ("train", "test")}
    firsts = [int((stores["test"].labels == label).nonzero()[0]) for label in range(10)]
    unit = torch.nn.functional.normalize
    keys = unit(evaluate.features(encoder, stores["train"], 64), dim=1)
    queries = unit(evaluate.features(encoder, stores["test"].subset(firsts), 64), dim=1)
    nearest = (queries @ keys.T).topk(k).indices  # (10, k)
    same = stores["train"].labels[nearest] == torch.arange(10)[:, None]
    print(f"{int(same.sum())} of {same.numel()} neighbours are of the query's class")
    figure = plt.figure(figsize=(9.6, 4.5), dpi=100)
    for place, (query, rows) in enumerate(zip(firsts, nearest, strict=True)):
        row, half = place % 5, place // 5
        pixels = torch.cat([stores["test"].images[[query]], stores["train"].images[rows]])
        for column, image in enumerate(pixels):
            gap = 0.006 * (column > 0)  # between a query and its neighbours
            left = half * 0.51 + column * 0.0955 + gap
            axis = figure.add_axes((left + 0.002, 0.8 - row * 0.2 + 0.006, 0.0895, 0.188))
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            right = column == 0 or bool(same[place, column - 1])
            for side in axis.spines.values():
                side.set_color("black" if column == 0 else figures.GREEN if right else figures.VERMILION)
                side.set_linewidth(2.5)
                side.set_linestyle("-" if right else ":")
    figure.savefig(target)
    plt.close(figure)
    with Image.open(target) as drawn:  # 256 colours: a third of the bytes
        small = drawn.convert("RGB").quantize(256)
    small.save(target, optimize=True)


if __name__ == "__main__":
    if "--picture" in sys.argv:
        picture()
    fill()
