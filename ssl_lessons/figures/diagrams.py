"""Drawings that explain and measure nothing: the map of the series, and what its methods keep."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ssl_lessons.figures.palette import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION


def dictionaries() -> Figure:
    """Three ways to keep a dictionary of keys, after figure 2 of MoCo (arXiv:1911.05722).

    Solid arrows carry values forward, dashed vermilion ones the gradient back.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.8), layout="constrained")
    figure.set_dpi(80)
    keys = {"end-to-end": "encoder k", "memory bank": "memory of\nall images", "MoCo": "momentum\nencoder"}
    for axis, (title, source) in zip(axes, keys.items(), strict=True):
        axis.set(xlim=(0, 10), ylim=(0, 10.6), title=title)
        axis.axis("off")

        def box(x, y, text, colour, axis=axis):
            style = {"boxstyle": "round,pad=0.35", "facecolor": colour, "alpha": 0.28, "edgecolor": colour}
            axis.text(x, y, text, ha="center", va="center", fontsize=10, bbox=style)

        def arrow(start, end, back=False, axis=axis, **more):
            look = {"color": VERMILION, "linestyle": "--"} if back else {"color": "#333333"}
            axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "linewidth": 1.4, **look, **more})

        box(5, 9.6, "contrastive loss", ORANGE)
        box(2.2, 4.2, "encoder q", BLUE)
        box(7.6, 4.2, source, BLUE if title == "end-to-end" else GREEN)
        axis.text(2.2, 0.6, "query view", ha="center")
        axis.text(7.6, 0.6, "(drawn at random)" if title == "memory bank" else "key view", ha="center")
        arrow((2.2, 1.3), (2.2, 3.3))
        arrow((2.0, 5.1), (3.9, 8.9))
        arrow((4.5, 8.9), (2.7, 5.1), back=True)
        if title != "memory bank":
            arrow((7.6, 1.3), (7.6, 3.1))
        if title == "MoCo":
            box(7.6, 7.0, "queue of K keys", GREEN)
            arrow((7.6, 5.3), (7.6, 6.3))
            arrow((7.2, 7.7), (6.2, 8.9))
            arrow((3.7, 4.2), (5.9, 4.2), linestyle=":")
            axis.text(4.75, 4.55, "m", ha="center", fontsize=10, style="italic")
        else:
            arrow((8.0, 5.3), (6.5, 8.9))
        if title == "end-to-end":
            arrow((5.9, 8.9), (7.3, 5.1), back=True)
    axes[0].text(4.9, 6.8, "gradient", color=VERMILION, ha="center", fontsize=10)
    axes[2].text(3.7, 6.4, "gradient", color=VERMILION, ha="left", fontsize=10)
    return figure


# The map of the series: method, lesson, both branches from the views upward (* a moving average, // no
# gradient further down), what compares them, and what else a view must differ from.
_TWO = ("encoder", "projector")
_MAP = (
    ("SimCLR", "02", _TWO, _TWO, "cosine", "all other views\nof the batch"),
    ("MoCo", "03", _TWO, ("*encoder", "*projector"), "cosine", "a queue of\nearlier keys"),
    ("Relational reasoning", "04", _TWO[:1], _TWO[:1], "relation head", "a view of\nanother image"),
    ("BYOL", "05", (*_TWO, "predictor"), ("*encoder", "*projector"), "cosine", ""),
    ("SimSiam", "06", (*_TWO, "predictor"), (*_TWO, "//"), "cosine", ""),
)
_MAP_KEY = (
    ("trained by gradients; two blue boxes\nof one name share their weights", BLUE, "box"),
    ("a slowly moving average of the blue\nbox beside it; no gradients", ORANGE, "box"),
    ("compared, and should agree", GREEN, "-"),
    ("compared, and should differ", VERMILION, "--"),
    ("stop-gradient: this side counts as given", VERMILION, "//"),
)


def _box(axis, x: float, y: float, text: str, face: str, width: float = 1.5, height: float = 0.44, **look):
    style = {"boxstyle": "round,pad=0.02,rounding_size=0.1", "facecolor": face, "edgecolor": "none", **look}
    axis.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
    axis.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if face == BLUE else "black")


def _arrow(axis, start: tuple[float, float], end: tuple[float, float], colour: str, line: str = "-"):
    look = {"color": colour, "linestyle": line, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", **look})


def _branch(axis, x: float, view: str, parts: Sequence[str], top: float) -> None:
    """One view's way up: arrow, box, arrow, … and a green arrow into the comparison at height `top`."""
    _arrow(axis, (x, 0.24), (x, 0.6), "black")
    axis.text(x + 0.08, 0.4, view, fontsize=8, color=GREY, va="center")
    for i, part in enumerate(parts):
        y, last = 0.84 + 0.74 * i, i + 1 == len(parts)
        if part == "//":
            axis.text(x, y, part, ha="center", va="center", fontsize=14, color=VERMILION, weight="bold")
        else:
            _box(axis, x, y, part.strip("*"), ORANGE if part[0] == "*" else BLUE)
        _arrow(axis, (x, y + 0.24), (x, top if last else y + 0.52), GREEN if last else "black")
        if part[0] == "*":
            _arrow(axis, (x - 1.23, y), (x - 0.77, y), ORANGE, ":")


def series_map() -> Figure:
    """The five methods of the series side by side: what each compares with what, and where gradients go."""
    figure, grid = plt.subplots(2, 3, figsize=(11, 7.2), layout="constrained")
    figure.set_dpi(80)
    for axis in grid.flat:
        axis.set(xlim=(0, 6.1), ylim=(-0.35, 4.55))
        axis.axis("off")
    for axis, (name, lesson, left, right, judge, others) in zip(grid.flat, _MAP, strict=False):
        axis.set_title(f"{name}  (lesson {lesson})", fontsize=11, weight="bold")
        _box(axis, 2.15, 0, "one image", "#EEEEEE", 3.5)
        _branch(axis, 1.15, "view 1", left, 3.64)
        _branch(axis, 3.15, "view 2", right, 3.64)
        _box(axis, 2.15, 3.9, f"{judge}: same image", "white", 3.5, edgecolor=GREEN, linewidth=2)
        if not others:
            axis.text(5.1, 2.2, "no negatives", fontsize=9, color=GREY, ha="center", va="center")
            continue
        _box(axis, 5.15, 2.2, others, "#EEEEEE", 1.75, 0.75)
        axis.plot([5.15, 5.15], [2.62, 3.9], color=VERMILION, linestyle="--", linewidth=1.2)
        _arrow(axis, (5.15, 3.9), (3.95, 3.9), VERMILION, "--")
        axis.text(5.2, 4.02, "different", fontsize=9, color=VERMILION, ha="center", va="bottom")
    key = grid[1, 2]
    key.set_title("How to read it", fontsize=11, weight="bold")
    for y, (text, colour, sign) in zip((3.8, 3.0, 2.25, 1.65, 1.05), _MAP_KEY, strict=True):
        key.text(1.4, y, text, fontsize=9, va="center")
        if sign == "box":
            _box(key, 0.7, y, "", colour, 0.8)
        elif sign == "//":
            key.text(0.7, y, sign, fontsize=14, color=colour, ha="center", va="center", weight="bold")
        else:
            _arrow(key, (0.3, y), (1.1, y), colour, sign)
    key.text(0.3, 0.2, "Kept when training ends: the blue encoder.", fontsize=9, va="center", weight="bold")
    return figure


def contrastive_batch(images: int = 4) -> Figure:
    """SimCLR in one drawing, after figure 2 of arXiv:2002.05709: one image's way through f and g, and the
    similarities of a batch of `images`: positives, negatives, and the diagonal that takes no part."""
    figure, (way, grid) = plt.subplots(
        1, 2, figsize=(10.5, 4.4), width_ratios=(1.15, 1), layout="constrained"
    )
    figure.set_dpi(80)
    way.set(xlim=(0, 6), ylim=(-0.4, 5.3), title="one image …")
    way.axis("off")
    _box(way, 2.4, 0, "image", "#EEEEEE", 4.2)
    for x, view in ((1.2, "view 1"), (3.6, "view 2")):
        for y, name in ((1.3, "encoder f"), (3.0, "projector g")):
            _arrow(way, (x, y - 1.05 if y < 2 else y - 0.5), (x, y - 0.25), "black")
            _box(way, x, y, name, BLUE, 1.7)
        way.text(x + 0.1, 0.65, view, fontsize=9, color=GREY, va="center")
        _arrow(way, (x, 1.55), (x, 1.95), "black")
        way.text(x, 2.2, "h", ha="center", va="center", fontsize=12, style="italic")
        _arrow(way, (x, 3.25), (x, 3.65), "black")
        way.text(x, 3.9, "z", ha="center", va="center", fontsize=12, style="italic")
        _arrow(way, (x, 4.1), (x, 4.55), GREEN)
    _box(way, 2.4, 4.8, "cosine: more alike than all others?", "white", 4.2, edgecolor=GREEN, linewidth=2)
    way.text(4.75, 1.75, "kept", fontsize=11, color=BLUE, va="center", weight="bold")
    way.text(4.75, 3.45, "thrown away\nafter training", fontsize=11, color=GREY, va="center")
    way.axhline(2.45, 0.02, 0.98, color=GREY, linestyle=":", linewidth=1)

    rows = 2 * images
    for i in range(rows):
        for j in range(rows):
            face = "#EEEEEE" if i == j else GREEN if abs(i - j) == images else ORANGE
            grid.add_patch(plt.Rectangle((j, i), 1, 1, facecolor=face, edgecolor="white", linewidth=2))
            if i == j:
                grid.text(j + 0.5, i + 0.5, "–", ha="center", va="center", color=GREY)
            elif face == GREEN:
                grid.text(j + 0.5, i + 0.5, "+", ha="center", va="center", color="white", weight="bold")
    names = [f"{view}, image {i + 1}" for view in (1, 2) for i in range(images)]
    grid.set_yticks([i + 0.5 for i in range(rows)], [f"view {name}" for name in names], fontsize=9)
    grid.set_xticks([])
    grid.set(xlim=(0, rows), ylim=(rows, 0), aspect="equal", title=f"… and a batch of {images}")
    grid.set_xlabel(f"the same {rows} views\ngreen +: positive    orange: negative    –: itself, left out")
    grid.tick_params(length=0)
    grid.spines[:].set_visible(False)
    return figure


def relations() -> Figure:
    """Relational reasoning (arXiv:2006.05849): views of two images, their features, two pairs, one head."""
    figure, axis = plt.subplots(figsize=(10.5, 4), layout="constrained")
    figure.set_dpi(80)
    axis.set(xlim=(0, 13), ylim=(-0.1, 5.2))
    axis.axis("off")
    looks = {"A": ORANGE, "B": SKY}
    heights = {("A", 1): 4.4, ("A", 2): 3.3, ("B", 1): 1.8, ("B", 2): 0.7}
    for (image, view), y in heights.items():
        _box(axis, 1.1, y, f"image {image}, view {view}", "#EEEEEE", 1.9)
        _arrow(axis, (2.1, y), (2.75, y), "black")
        _arrow(axis, (4.35, y), (4.85, y), "black")
        _box(axis, 5.4, y, f"z {image}{view}", looks[image], 0.9, alpha=0.75)
    _box(axis, 3.55, 2.55, "encoder f", BLUE, 1.45, 4.6)

    pairs = (
        (3.85, ("A", 1), ("A", 2), "1: the same", GREEN),
        (1.25, ("A", 1), ("B", 2), "0: another", VERMILION),
    )
    for y, left, right, answer, colour in pairs:
        for x, (image, view) in ((7.55, left), (8.45, right)):
            _box(axis, x, y, f"z {image}{view}", looks[image], 0.86, alpha=0.75)
            _arrow(axis, (5.92, heights[image, view]), (7.02, y), GREY)
        _arrow(axis, (8.95, y), (9.6, y), "black")
        _arrow(axis, (11.05, y), (11.6, y), "black")
        axis.text(12.3, y, answer, ha="center", va="center", fontsize=10, color=colour, weight="bold")
    _box(axis, 10.33, 2.55, "relation\nhead r", BLUE, 1.35, 3.6)
    axis.text(8.0, 4.35, "intra: one image", ha="center", fontsize=10)
    axis.text(8.0, 0.6, "inter: two images", ha="center", fontsize=10)
    axis.text(12.3, 4.85, "target", ha="center", fontsize=10, color=GREY)
    return figure


def bootstrap() -> Figure:
    """BYOL's online and target networks, after figure 2 of the paper (arXiv:2006.07733).

    Black arrows carry values forward, dashed vermilion ones the gradient back, dotted orange the average.
    """
    figure, axis = plt.subplots(figsize=(10.5, 3.5), layout="constrained")
    figure.set_dpi(80)
    axis.set(xlim=(0, 12.6), ylim=(0, 4.2))
    axis.axis("off")
    rows = {"online θ": (3.1, BLUE, "view T"), "target ξ": (1.1, ORANGE, "view T′")}
    _box(axis, 0.8, 2.1, "one image", "#EEEEEE", 1.3)
    parts = ((4.2, "encoder f"), (6.4, "projector g"), (8.6, "predictor q"))
    for name, (y, colour, view) in rows.items():
        own = parts if colour == BLUE else parts[:2]
        _box(axis, 2.3, y, view, "#EEEEEE", 1.0)
        _arrow(axis, (0.8, 2.1 + (0.25 if y > 2.1 else -0.25)), (1.77, y), "black")
        axis.text(
            1.4, y + (0.75 if y > 2.1 else -0.75), name, fontsize=10, color=GREY, ha="center", va="center"
        )
        for i, (x, part) in enumerate(own):
            _box(axis, x, y, part, colour)
            start = 2.82 if i == 0 else own[i - 1][0] + 0.77
            _arrow(axis, (start, y), (x - 0.77, y), "black")
            if colour == BLUE:  # the way back, below the boxes
                back = (parts[i + 1][0] - 0.5 if i + 1 < len(parts) else 10.3, y - 0.36)
                _arrow(axis, back, (x + 0.5, y - 0.36), VERMILION, "--")
            else:
                _arrow(axis, (x, rows["online θ"][0] - 0.5), (x, y + 0.26), ORANGE, ":")
                axis.text(x + 0.1, 2.1, "slow average", fontsize=9, color=GREY, va="center")
    axis.text(8.6, 1.1, "//", fontsize=16, color=VERMILION, ha="center", va="center", weight="bold")
    axis.text(8.6, 0.55, "stop-gradient", fontsize=9, color=VERMILION, ha="center", va="center")
    axis.text(9.9, 2.45, "gradient", fontsize=9, color=VERMILION, ha="center", va="center")
    _arrow(axis, (7.17, 1.1), (8.3, 1.1), "black")
    _box(axis, 11.3, 2.1, "2 − 2 · cosine", "white", 1.9, 0.6, edgecolor=GREEN, linewidth=2)
    _arrow(axis, (9.37, 3.1), (11.0, 2.45), GREEN)
    _arrow(axis, (8.9, 1.1), (11.0, 1.75), GREEN)
    axis.text(4.2, 3.75, "kept at the end", fontsize=9, color=GREY, ha="center", va="center")
    return figure


def without_negatives() -> Figure:
    """BYOL and SimSiam side by side, from the map of the series: what takes the moving average's place."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    figure.set_dpi(80)
    for axis, (name, _, left, right, judge, _) in zip(axes, _MAP[3:], strict=True):
        axis.set(xlim=(0, 4.3), ylim=(-0.35, 4.3), title=name)
        axis.axis("off")
        _box(axis, 2.15, 0, "one image", "#EEEEEE", 3.5)
        _branch(axis, 1.15, "view 1", left, 3.64)
        _branch(axis, 3.15, "view 2", right, 3.64)
        _box(axis, 2.15, 3.9, f"{judge}: same image", "white", 3.5, edgecolor=GREEN, linewidth=2)
    return figure
