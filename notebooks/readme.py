"""Write README.md's tables, and draw its picture.

    python notebooks/readme.py             the tables, from the lessons and the committed records
    python notebooks/readme.py --picture   data/results/neighbours.png too; needs Imagenette

No number in those tables is typed: minutes of reading are counted in the notebooks (200 words of text and 15
lines of code a minute), minutes of running come from the lessons' committed records, accuracies from those of
the leaderboard.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from ssl_lessons.batch.leaderboard import put_into
from ssl_lessons.records import TITLES

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
RESULTS = ROOT / "data" / "results"
WORDS, LINES = 200, 15  # read in a minute
SHOWN = {**TITLES, "supervised": "supervised, all labels"}


def reading_minutes(notebook: Path) -> float:
    """An estimate: how long a person reads the text and the code of a lesson."""
    words = lines = 0
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            lines += sum(bool(line.strip()) for line in source.splitlines())
        else:
            words += len(source.split())
    return words / WORDS + lines / LINES


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
        if cells[0].isdigit():
            number, link, question = cells
            lessons[number] = (link[1:].split("]")[0], question)
    return lessons


def lessons_table() -> str:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    repository = re.search(r'Repository = "https://github.com/([^"]+)"', project).group(1)
    colab = f"https://colab.research.google.com/github/{repository}"
    lines = ["| | lesson | question | read | run | open |", "|---|---|---|--:|--:|---|"]
    asked = questions()
    for notebook in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        number = notebook.stem[:2]
        title, question = asked[number]
        running = running_minutes(number)
        shown = "–" if running is None else f"{max(1, round(running))}"
        link = f"[{title}](notebooks/{notebook.name})"
        opens = f"[Colab]({colab}/blob/main/notebooks/{notebook.name})"
        read = f"{reading_minutes(notebook):.0f}"
        lines.append(f"| {number} | {link} | {question} | {read} | {shown} | {opens} |")
    return "\n".join(lines)


def results_table(dataset: str = "imagenette") -> str:
    """Accuracy on one dataset: a row a method, length and size, the mean over its seeds, the best first. The
    evening runs, whose encoders are in data/weights, stand among them."""
    paths = sorted((RESULTS / "leaderboard").glob("*.json"))
    paths += sorted((ROOT / "data" / "weights").glob("*.json"))
    runs = defaultdict(dict)
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["dataset"]["name"] == dataset:
            kind = (record["method"], record["epochs"], record["view_size"])
            runs[kind].setdefault(
                record["seed"], record["metrics"]
            )  # an encoder of the leaderboard is no news
    rows = []
    for (method, epochs, size), seeds in runs.items():
        knn = [100 * metrics["knn"]["value"] for metrics in seeds.values()]
        linear = [100 * metrics["linear_10"]["value"] for metrics in seeds.values()]
        spread = f" ± {stdev(knn):.1f}" if len(knn) > 1 else ""
        shown = f"{mean(knn):.1f}{spread} | {mean(linear):.1f}"
        title = SHOWN.get(method.lower(), method)
        rows.append((mean(knn), f"| {title} | {epochs} | {size} | {len(seeds)} | {shown} |"))
    lines = ["| method | epochs | px | seeds | kNN, % | linear probe, 10 % of the labels, % |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    lines += [line for _, line in sorted(rows, reverse=True)]
    return "\n".join(lines)


SECTIONS = {"lessons": lessons_table, "summary": results_table}


def fill(page: Path = ROOT / "README.md") -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`, for each of `SECTIONS`."""
    for name, section in SECTIONS.items():
        put_into(page, section(), name)


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
