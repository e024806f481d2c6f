"""Figures: arrays and records in, a matplotlib Figure out. Nothing here trains, measures or saves.

Colours are Okabe and Ito's, which people with colour-blind eyes tell apart; every axis names its unit.
"""

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#777777",
)
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
_STYLE = {
    "figure.dpi": 80,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def _axes(columns: int, width: float, height: float) -> tuple[Figure, list]:
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def image_grid(
    images: Tensor, rows: int, titles: Sequence[str] = (), row_titles: Sequence[str] = (), cell: float = 1.1
) -> Figure:
    """Pictures in `rows` rows, filled row by row.

    Args:
        images: uint8, or float in [0, 1], (N, 3, H, W) with N a multiple of `rows`.
        titles: one above each column (or above each picture where there are N). row_titles: one beside each row.
        cell: inches a picture.
    """
    columns = len(images) // rows
    if columns < 1 or columns * rows != len(images):
        raise ValueError(f"{len(images)} images do not fill {rows} rows; pass a multiple of {rows}")
    figure, grid = plt.subplots(
        rows, columns, figsize=(cell * columns, cell * rows + 0.25), layout="constrained", squeeze=False
    )
    figure.set_dpi(80)
    pictures = images.detach().cpu()
    pictures = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures.float().clamp(0, 1)
    for i, (axis, picture) in enumerate(zip(grid.flat, pictures, strict=True)):
        axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")  # (3, H, W) -> (H, W, 3)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        if i < len(titles):
            axis.set_title(titles[i], fontsize=9)
        if row_titles and i % columns == 0:
            axis.set_ylabel(row_titles[i // columns], fontsize=9, rotation=0, ha="right", va="center")
    return figure


def training_curves(history: Sequence[dict], random_knn: float | None = None, chance: float | None = None) -> Figure:
    """A run's loss and kNN accuracy over its epochs, from `record["history"]`.

    `random_knn` is the same monitor's accuracy before training, `chance` that of guessing; both in [0, 1].
    """
    figure, (left, right) = _axes(2, 9, 3)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], color=BLUE, marker="o", markersize=3)
    left.set(xlabel="epoch", ylabel="loss (nats)", title="what is minimised")
    judged = [row for row in history if "knn" in row]
    right.plot(
        [row["epoch"] for row in judged], [100 * row["knn"] for row in judged], color=BLUE, marker="o", markersize=3
    )
    for level, label in ((random_knn, "random encoder"), (chance, "guessing")):
        if level is not None:
            right.axhline(100 * level, color=GREY, linestyle="--" if label == "guessing" else "-", linewidth=1)
            right.annotate(label, (1, 100 * level), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=GREY)
    right.set(xlabel="epoch", ylabel="kNN accuracy (%)", title="what is wanted")
    return figure


def health(history: Sequence[dict], names: dict[str, str]) -> Figure:
    """One small panel for each diagnostic of a run: `names` maps a key of the history to its title."""
    figure, axes = _axes(len(names), 2.6 * len(names), 2.4)
    for axis, (key, title), colour in zip(axes, names.items(), cycle(COLOURS), strict=False):
        axis.plot([row["epoch"] for row in history], [row[key] for row in history], color=colour, marker="o", markersize=3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
    return figure


def accuracy_bars(values: dict[str, float], title: str = "", baselines: Sequence[str] = ()) -> Figure:
    """Accuracies in [0, 1] as labelled horizontal bars in per cent; those named in `baselines` are grey."""
    figure, (axis,) = _axes(1, 7.5, 0.45 * len(values) + 1.0)
    names = list(values)[::-1]
    colours = [GREY if name in baselines else BLUE for name in names]
    bars = axis.barh(names, [100 * values[name] for name in names], color=colours)
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.set(xlabel="test accuracy (%)", title=title, xlim=(0, 112 * max(values.values()) or 1))
    axis.grid(False, axis="y")
    return figure


def lines(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str, title: str = "", log: bool = False
) -> Figure:
    """Named curves {label: (x, y)} on one pair of axes; `log` for a logarithmic x axis."""
    figure, (axis,) = _axes(1, 6.5, 3.2)
    for (label, (x, y)), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        axis.plot(x, y, label=label, color=colour, marker="o", markersize=4)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log:
        axis.set_xscale("log", base=2)
        ticks = sorted({value for x, _ in curves.values() for value in x})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    if len(curves) > 1:
        axis.legend(frameon=False)
    return figure


def histograms(samples: dict[str, Tensor], xlabel: str, title: str = "", bins: int = 50) -> Figure:
    """Overlaid histograms of named samples, each scaled to area 1."""
    figure, (axis,) = _axes(1, 6.5, 2.8)
    everything = torch.cat([values.flatten().float().cpu() for values in samples.values()])
    span = (everything.min().item(), everything.max().item())
    for (label, values), colour in zip(samples.items(), cycle(COLOURS), strict=False):
        axis.hist(values.flatten().float().cpu().numpy(), bins, range=span, density=True, alpha=0.6, label=label, color=colour)
    axis.set(xlabel=xlabel, ylabel="density", title=title)
    axis.legend(frameon=False)
    return figure


def matrix(values: Tensor, xlabel: str, ylabel: str, title: str = "", label: str = "") -> Figure:
    """A matrix (rows, columns) as an image with a colour bar named `label`."""
    figure, (axis,) = _axes(1, 6.5, 3.2)
    shown = axis.imshow(values.detach().float().cpu().numpy(), aspect="auto", cmap="cividis", interpolation="nearest")
    axis.grid(False)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    figure.colorbar(shown, ax=axis, label=label)
    return figure


def overview(images: Tensor, views: Sequence[Tensor], accuracies: dict[str, dict[str, float]]) -> Figure:
    """README.md's picture: images with their views on the left, accuracies on the right.

    Args:
        images: uint8 (N, 3, H, W). views: float in [0, 1], each (N, 3, S, S).
        accuracies: {dataset: {encoder: kNN accuracy in [0, 1]}}, the same encoders for each dataset.
    """
    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(12, 3.4), layout="constrained", dpi=100)
    left, right = figure.subfigures(1, 2, width_ratios=(1.9, 1))
    rows = {"image": images.float() / 255, **{f"view {i + 1}": view for i, view in enumerate(views)}}
    grid = left.subplots(len(rows), len(images))
    for (name, pictures), line in zip(rows.items(), grid, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=11, rotation=0, ha="right", va="center")
    with plt.rc_context(_STYLE):
        axis = right.subplots()
    encoders = list(next(iter(accuracies.values())))
    for i, (encoder, colour) in enumerate(zip(encoders, (GREY, BLUE, SKY), strict=False)):
        places = [place + 0.27 * (i - (len(encoders) - 1) / 2) for place in range(len(accuracies))]
        bars = axis.bar(places, [100 * row[encoder] for row in accuracies.values()], 0.25, label=encoder, color=colour)
        axis.bar_label(bars, fmt="%.0f", fontsize=9)
    axis.set_xticks(range(len(accuracies)), list(accuracies))
    axis.set(ylabel="kNN accuracy (%)", ylim=(0, 100))
    axis.grid(False, axis="x")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(encoders), fontsize=9, columnspacing=1)
    return figure


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


# The map of the series: method, lesson, both branches from the views upward (* a moving average, // no gradient
# further down), what compares them, and what else a view must differ from.
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


def boxes(image: Tensor, drawn: dict[str, Sequence[tuple[int, int, int, int]]]) -> Figure:
    """Named sets of boxes (top, left, height, width in pixels), each set on a copy of one image (3, H, W) in [0, 1]."""
    figure, axes = _axes(len(drawn), 3.2 * len(drawn), 3.2)
    for axis, (title, some) in zip(axes, drawn.items(), strict=True):
        axis.imshow(image.permute(1, 2, 0).numpy(), alpha=0.7)
        for (top, left, height, width), colour in zip(some, COLOURS * 9, strict=False):
            axis.add_patch(plt.Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, linewidth=2))
        axis.set(title=title, xlabel="column (pixels)", ylabel="row (pixels)")
        axis.grid(False)
    return figure


def bars(values: dict[str, float], xlabel: str, line: tuple[str, float] | None = None, percent: bool = True) -> Figure:
    """Named values as horizontal bars; `percent` shows shares in [0, 1] as per cent; `line` is a (label, value)."""
    figure, (axis,) = _axes(1, 7.5, 0.42 * len(values) + 0.9)
    scale = 100 if percent else 1
    drawn = axis.barh(list(values)[::-1], [scale * value for value in list(values.values())[::-1]], color=BLUE)
    axis.bar_label(drawn, fmt="%.1f" if percent else "%.0f", padding=3)
    axis.set(xlabel=xlabel, xlim=(0, scale * max(values.values()) * 1.12))
    if line:
        axis.axvline(scale * line[1], color=VERMILION, linestyle="--", label=line[0])
        axis.legend(loc="lower right")
    axis.grid(False, axis="y")
    return figure


def matrices(named: dict[str, Tensor], xlabel: str, ylabel: str, label: str) -> Figure:
    """Matrices side by side on one colour scale, whose bar is named `label`."""
    figure, axes = _axes(len(named), 3.3 * len(named) + 0.6, 3.2)
    span = {"vmin": min(float(m.min()) for m in named.values()), "vmax": max(float(m.max()) for m in named.values())}
    for axis, (title, values) in zip(axes, named.items(), strict=True):
        shown = axis.imshow(values.numpy(), aspect="auto", cmap="cividis", interpolation="nearest", **span)
        axis.grid(False)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel if axis is axes[0] else "")
    figure.colorbar(shown, ax=axes, label=label)
    return figure
