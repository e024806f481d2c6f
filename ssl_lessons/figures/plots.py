"""Figures: arrays and records in, a matplotlib Figure out. Nothing here trains, measures or saves.

Colours are Okabe and Ito's, which people with colour-blind eyes tell apart; every axis names its unit.
"""

from collections.abc import Sequence
from itertools import cycle
from statistics import fmean, stdev

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ssl_lessons.figures.palette import BLUE, COLOURS, GREEN, GREY, STYLE, VERMILION, axes_row


def learning_curves(
    runs: dict[str, Sequence[dict]], levels: dict[str, float], title: str = "", live: str = ""
) -> Figure:
    """kNN accuracy over the epochs of named histories, between the levels of what was not trained that way.

    Args:
        runs: {label: `record["history"]`}. levels: {label: accuracy in [0, 1]}, dashed lines.
        live: the label of the run to be seen before the others.
    """
    figure, (axis,) = axes_row(1, 8, 3.6)
    for (label, history), colour in zip(runs.items(), cycle(COLOURS), strict=False):
        judged = [row for row in history if "knn" in row]
        x, y = [row["epoch"] for row in judged], [100 * row["knn"] for row in judged]
        look = {"linewidth": 2.6, "markersize": 5} if label == live else {"linewidth": 1.4, "markersize": 3}
        axis.plot(x, y, label=label, color=VERMILION if label == live else colour, marker="o", **look)
    for label, value in levels.items():
        axis.axhline(100 * value, color=GREY, linestyle="--", linewidth=1)
        where = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "center"}
        axis.annotate(f"{label} {100 * value:.1f}", (1.01, 100 * value), color=GREY, fontsize=9, **where)
    axis.set(xlabel="epoch", ylabel="kNN accuracy (%)", title=title)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if runs:  # below the axes: no corner is free of curves and levels
        figure.legend(frameon=False, loc="outside lower center", ncols=len(runs), fontsize=9)
    return figure


def arms(
    values: dict[str, Sequence[float]],
    levels: dict[str, float],
    xlabel: str = "kNN accuracy (%)",
    title: str = "",
) -> Figure:
    """Each arm of an experiment: seeds as dots, their mean with its standard error; values in [0, 1]."""
    figure, (axis,) = axes_row(1, 7.5, 0.45 * len(values) + 1.2)
    for row, seeds in enumerate(values.values()):
        points = [100 * value for value in seeds]
        error = stdev(points) / len(points) ** 0.5 if len(points) > 1 else 0.0
        axis.errorbar(fmean(points), row, xerr=error, fmt="D", color=BLUE, markersize=7, capsize=5)
        axis.plot(points, [row + 0.22] * len(points), "o", color=GREY, markersize=4)  # below: none is hidden
    for label, value in levels.items():
        axis.axvline(100 * value, color=VERMILION, linestyle="--", linewidth=1, label=label)
    axis.set(xlabel=xlabel, title=title, yticks=range(len(values)), yticklabels=list(values))
    axis.invert_yaxis()  # the first on top
    axis.margins(y=0.2)
    if levels:
        axis.legend(frameon=False, fontsize=9, loc="best")
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
    figure, axes = axes_row(len(names), 2.9 * len(names), 2.4 if "" in runs else 3.0)
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
        axis.xaxis.get_major_locator().set_params(integer=True)
    if "" not in runs:
        place = {"loc": "outside lower center", "ncols": 2 + len(names) // 3, "frameon": False}
        figure.legend(*axes[0].get_legend_handles_labels(), **place)
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
        span(edge, high if edge > beyond else low, color=colour, alpha=0.25, linewidth=0)
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
    elif all(float(value).is_integer() for x, _ in curves.values() for value in x):
        axis.xaxis.get_major_locator().set_params(integer=True)
    if len(curves) > 1:
        axis.legend(frameon=False)
    return figure


def histograms(samples: dict[str, Tensor], xlabel: str, title: str = "", bins: int = 50) -> Figure:
    """Overlaid histograms of named samples, each scaled to area 1."""
    figure, (axis,) = axes_row(1, 6.5, 2.8)
    flat = {label: values.flatten().float().cpu() for label, values in samples.items()}
    everything = torch.cat(list(flat.values()))
    look = {"range": (everything.min().item(), everything.max().item()), "density": True}
    look |= {"histtype": "step", "linewidth": 2}  # outlines: fills would mix to a colour that has no name
    for (label, values), colour in zip(flat.items(), cycle(COLOURS), strict=False):
        axis.hist(values.numpy(), bins, label=label, color=colour, **look)
    axis.set(xlabel=xlabel, ylabel="density", title=title)
    axis.legend(frameon=False)
    return figure


def matrix(values: Tensor, xlabel: str, ylabel: str, title: str = "", label: str = "") -> Figure:
    """A matrix (rows, columns) as an image with a colour bar named `label`."""
    figure = matrices({title: values}, xlabel, ylabel, label)
    square = values.shape[0] == values.shape[1]
    figure.set_size_inches(*(4.6, 3.8) if square else (6.5, 3.2))
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


def spread(values: dict[str, Sequence[float]], xlabel: str) -> Figure:
    """Named runs as dots, one for each seed, and below them, if there are several, mean and sample deviation.

    Args:
        values: {name: one number in [0, 1] for each seed}, drawn in per cent, the first on top.
    """
    figure, (axis,) = axes_row(1, 7.5, 0.45 * len(values) + 1.0)
    for i, each in enumerate(values.values()):
        percent = [100 * value for value in each]
        axis.plot(percent, [i] * len(each), "o", color=BLUE, alpha=0.6, markersize=7)
        if len(each) > 1:
            bar = {"color": VERMILION, "marker": "|", "markersize": 10, "capsize": 3}
            axis.errorbar(fmean(percent), i + 0.28, xerr=stdev(percent), **bar)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.4, -0.5)
    axis.set_xlabel(xlabel)
    axis.grid(False, axis="y")
    return figure


def leaderboard(tables: Sequence, metric: str = "knn", label: str = "kNN") -> Figure:
    """Accuracy against training time: a panel for each table, a point for each row.

    Colour tells the method, shape the epochs. Bars are one sample standard deviation of the accuracy over
    seeds; minutes are the least of them. What took no training is a dashed line.

    Args:
        tables: from `batch.leaderboard.tables`. metric: the one they are ranked by; label: its name.
    """
    points = [row for table in tables for row in table.rows.to_dict("records") if row["minutes"] > 0]
    methods, lengths = (sorted({row[name] for row in points}) for name in ("method", "epochs"))
    across, down = min(2, len(tables)), (len(tables) + 1) // 2
    with plt.rc_context(STYLE):
        size = (6.2 * across + 0.4, 4.4 * down)
        figure, panels = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axis in panels.flat[len(tables) :]:
        axis.remove()
    for axis, table in zip(panels.flat, tables, strict=False):
        rows = table.rows.rename(columns={f"{metric} mean": "mean", f"{metric} std": "std"})
        scale = 100 if rows["mean"].between(0, 1).all() else 1
        rows[["mean", "std"]] *= scale
        rows = rows.fillna({"std": 0.0})
        for _, row in rows[rows["minutes"] == 0].iterrows():
            low, high = row["mean"] - row["std"], row["mean"] + row["std"]
            axis.axhline(row["mean"], color=GREY, linestyle="--", linewidth=1)
            axis.axhspan(low, high, color=GREY, alpha=0.15, linewidth=0)
            where = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "center"}
            axis.annotate(row["title"], (1.01, row["mean"]), color=GREY, fontsize=9, **where)
        trained = rows[rows["minutes"] > 0]
        several = trained["epochs"].nunique() > 1
        for _, row in trained.iterrows():
            look, shape = methods.index(row["method"]), lengths.index(row["epochs"])
            point = {"color": COLOURS[look % len(COLOURS)], "marker": "os^DvPX"[shape % 7], "markersize": 7}
            point["markeredgecolor"] = "white"  # a point shows on another
            name = f"{row['title']}, {row['epochs']} epochs" if several else row["title"]
            bar = {"yerr": row["std"], "capsize": 3, "elinewidth": 1.2}
            axis.errorbar(row["minutes"], row["mean"], linestyle="", label=name, **point, **bar)
        if len(trained):
            axis.legend(frameon=False, fontsize=9, loc="best")
        axis.set_xlim(0, 1.15 * max(trained["minutes"], default=1))
        axis.margins(y=0.12)
        axis.set_title(table.title.split(";")[0], fontsize=10)
        devices = trained["devices"].str[0] + ", " + trained["precision"]  # whose minutes they are
        axis.set_xlabel("\n".join(["training, wall-clock (least minutes)", *devices.unique()]), fontsize=10)
        axis.set_ylabel(f"{label} accuracy (%)" if scale == 100 else label)
    return figure
