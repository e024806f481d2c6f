"""Figures: arrays and records in, a matplotlib Figure out. Nothing here trains, measures or saves.

Colours are Okabe and Ito's, which people with colour-blind eyes tell apart; every axis names its unit.
"""

from collections.abc import Sequence
from itertools import cycle

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ssl_lessons.figures.palette import BLUE, COLOURS, GREEN, GREY, VERMILION, axes_row


def training_curves(
    history: Sequence[dict], random_knn: float | None = None, chance: float | None = None, loss: str = "nats"
) -> Figure:
    """A run's loss and kNN accuracy over its epochs, from `record["history"]`.

    `random_knn` is the same monitor's accuracy before training, `chance` that of guessing; both in [0, 1].
    `loss` names the loss's unit: a cross-entropy's are nats; a cosine has none, so say which it is. A history
    without kNN has one panel.
    """
    judged = [row for row in history if "knn" in row]
    figure, (left, *others) = axes_row(2, 9, 3) if judged else axes_row(1, 5, 3)
    look = {"color": BLUE, "marker": "o", "markersize": 3}
    left.plot([row["epoch"] for row in history], [row["loss"] for row in history], **look)
    left.set(xlabel="epoch", ylabel=f"loss ({loss})", title="what is minimised")
    for right in others:
        right.plot([row["epoch"] for row in judged], [100 * row["knn"] for row in judged], **look)
        for level, label in ((random_knn, "random encoder"), (chance, "guessing")):
            if level is not None:
                style = "--" if label == "guessing" else "-"
                right.axhline(100 * level, color=GREY, linestyle=style, linewidth=1)
                where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
                right.annotate(label, (1, 100 * level), color=GREY, **where)
        right.set(xlabel="epoch", ylabel="kNN accuracy (%)", title="what is wanted")
    return figure


def health(
    history: Sequence[dict] | dict[str, Sequence[dict]],
    names: dict[str, str],
    bands: dict[str, tuple[float, float]] | None = None,
) -> Figure:
    """One small panel for each diagnostic of a run: `names` maps a key of the history to its title.

    Args:
        history: rows of a run's record, one an epoch; or {label: rows} of several runs, drawn together.
        bands: {key: (collapsed, healthy)}, as `diagnose.BANDS`: where a diagnostic has one, red shading says
            collapsed, green healthy, and white is suspect.
    """
    runs = history if isinstance(history, dict) else {"": history}
    figure, axes = axes_row(len(names), 2.6 * len(names) + (1.8 if "" not in runs else 0), 2.4)
    for i, (axis, (key, title)) in enumerate(zip(axes, names.items(), strict=True)):
        for j, (label, rows) in enumerate(runs.items()):
            own = i if "" in runs else j  # one run: a colour for each panel; several: one for each run
            rows = [row for row in rows if key in row]  # a run may lack a diagnostic that another has
            style = "-" if own < len(COLOURS) or "" in runs else "--"
            look = {"color": COLOURS[own % len(COLOURS)], "linestyle": style, "marker": "o", "markersize": 3}
            axis.plot([row["epoch"] for row in rows], [row[key] for row in rows], label=label, **look)
        if key in (bands or {}):
            shade(axis, "y", *bands[key])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
    if "" not in runs:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def shade(axis, direction: str, collapsed: float, healthy: float) -> None:
    """Shade an axis red beyond a band's collapsed edge, green beyond its healthy one, and show both edges.

    `direction` is "x" or "y"; the edges are in the axis's unit.
    """
    low, high = getattr(axis, f"get_{direction}lim")()
    low, high = min(low, collapsed, healthy), max(high, collapsed, healthy)
    room = 0.06 * (high - low)
    low, high = low - room, high + room
    for edge, beyond, colour in ((collapsed, healthy, VERMILION), (healthy, collapsed, GREEN)):
        span = axis.axhspan if direction == "y" else axis.axvspan
        span(edge, high if edge > beyond else low, color=colour, alpha=0.13, linewidth=0)
    getattr(axis, f"set_{direction}lim")(low, high)


def lines(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    log: bool = False,
) -> Figure:
    """Named curves {label: (x, y)} on one pair of axes; `log` for a logarithmic x axis."""
    figure, (axis,) = axes_row(1, 6.5, 3.2)
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
    figure, (axis,) = axes_row(1, 6.5, 2.8)
    flat = {label: values.flatten().float().cpu() for label, values in samples.items()}
    everything = torch.cat(list(flat.values()))
    look = {"range": (everything.min().item(), everything.max().item()), "density": True, "alpha": 0.6}
    for (label, values), colour in zip(flat.items(), cycle(COLOURS), strict=False):
        axis.hist(values.numpy(), bins, label=label, color=colour, **look)
    axis.set(xlabel=xlabel, ylabel="density", title=title)
    axis.legend(frameon=False)
    return figure


def matrix(values: Tensor, xlabel: str, ylabel: str, title: str = "", label: str = "") -> Figure:
    """A matrix (rows, columns) as an image with a colour bar named `label`."""
    figure = matrices({title: values}, xlabel, ylabel, label)
    figure.set_size_inches(6.5, 3.2)
    return figure


def matrices(named: dict[str, Tensor], xlabel: str, ylabel: str, label: str) -> Figure:
    """Matrices (rows, columns) side by side on one colour scale, whose bar is named `label`."""
    figure, axes = axes_row(len(named), 3.3 * len(named) + 0.6, 3.2)
    tables = {title: values.detach().float().cpu() for title, values in named.items()}
    low = min(table.min().item() for table in tables.values())
    high = max(table.max().item() for table in tables.values())
    look = {"aspect": "auto", "cmap": "cividis", "interpolation": "nearest", "vmin": low, "vmax": high}
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        shown = axis.imshow(table.numpy(), **look)
        axis.grid(False)
        axis.set(title=title, xlabel=xlabel)
    axes[0].set_ylabel(ylabel)
    figure.colorbar(shown, ax=axes, label=label)
    return figure


def bars(
    values: dict[str, float], xlabel: str, line: tuple[str, float] | None = None, percent: bool = True
) -> Figure:
    """Named values as horizontal bars; `percent` for shares in [0, 1]; `line` is a (label, value)."""
    figure, (axis,) = axes_row(1, 7.5, 0.42 * len(values) + 0.9)
    scale = 100 if percent else 1
    drawn = axis.barh(list(values), [scale * value for value in values.values()], color=BLUE)
    axis.invert_yaxis()  # the first on top
    axis.bar_label(drawn, fmt="%.1f" if percent else "%.0f", padding=3)
    axis.set(xlabel=xlabel, xlim=(0, scale * max(values.values()) * 1.12 or 1))
    if line:
        label, value = line
        axis.axvline(scale * value, color=VERMILION, linestyle="--", label=label)
        axis.legend(loc="lower right")
    axis.grid(False, axis="y")
    return figure


def accuracy_bars(values: dict[str, float], title: str = "", baselines: Sequence[str] = ()) -> Figure:
    """Accuracies in [0, 1] as labelled horizontal bars in per cent; those named in `baselines` are grey."""
    figure = bars(values, "test accuracy (%)")
    (axis,) = figure.axes
    axis.set_title(title)
    for name, bar in zip(values, axis.patches, strict=True):
        bar.set_color(GREY if name in baselines else BLUE)
    return figure
