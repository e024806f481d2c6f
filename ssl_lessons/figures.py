"""Figures: arrays and records in, a matplotlib Figure out. Nothing here trains, measures or saves.

Colours are Okabe and Ito's, which people with colour-blind eyes tell apart; every axis names its unit.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
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
    "legend.frameon": False,
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
    for axis, (key, title), colour in zip(axes, names.items(), COLOURS * 2, strict=False):
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
    axis.set(xlabel="test accuracy (%)", title=title, xlim=(0, max(100 * v for v in values.values()) * 1.12))
    axis.grid(False, axis="y")
    return figure


def lines(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str, title: str = "", log: bool = False
) -> Figure:
    """Named curves {label: (x, y)} on one pair of axes; `log` for a logarithmic x axis."""
    figure, (axis,) = _axes(1, 6.5, 3.2)
    for (label, (x, y)), colour in zip(curves.items(), COLOURS * 3, strict=False):
        axis.plot(x, y, label=label, color=colour, marker="o", markersize=4)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log:
        axis.set_xscale("log", base=2)
        ticks = sorted({value for x, _ in curves.values() for value in x})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    if len(curves) > 1:
        axis.legend()
    return figure


def histograms(samples: dict[str, Tensor], xlabel: str, title: str = "", bins: int = 50) -> Figure:
    """Overlaid histograms of named samples, each scaled to area 1."""
    figure, (axis,) = _axes(1, 6.5, 2.8)
    everything = torch.cat([values.flatten().float().cpu() for values in samples.values()])
    span = (everything.min().item(), everything.max().item())
    for (label, values), colour in zip(samples.items(), COLOURS, strict=False):
        axis.hist(values.flatten().float().cpu().numpy(), bins, range=span, density=True, alpha=0.6, label=label, color=colour)
    axis.set(xlabel=xlabel, ylabel="density", title=title)
    axis.legend()
    return figure


def matrix(values: Tensor, xlabel: str, ylabel: str, title: str = "", label: str = "") -> Figure:
    """A matrix (rows, columns) as an image with a colour bar named `label`."""
    figure, (axis,) = _axes(1, 6.5, 3.2)
    shown = axis.imshow(values.detach().float().cpu().numpy(), aspect="auto", cmap="cividis", interpolation="nearest")
    axis.grid(False)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    figure.colorbar(shown, ax=axis, label=label)
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
