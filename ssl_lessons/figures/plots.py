"""Arrays and records in, a matplotlib Figure out, every axis with its unit."""

from collections.abc import Sequence
from itertools import cycle
from statistics import fmean, stdev

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ssl_lessons.figures.palette import BLUE, COLOURS, GREEN, GREY, VERMILION, axes_row


def learning_curves(
    runs: dict[str, Sequence[dict]], levels: dict[str, float], title: str = "", live: str = ""
) -> Figure:
    """kNN accuracy over the epochs of `runs`, {label: `record["history"]`}; `levels`, {label: accuracy in
    [0, 1]}, are dashed lines, and `live` is the label of the run to be seen before the others."""
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
    values: dict[str, Sequence[float]], levels: dict[str, float], xlabel="kNN accuracy (%)", title=""
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
        bands: {key: (collapsed, healthy)}, as `diagnose.BANDS`: red shading says collapsed, green healthy.
    """
    several = isinstance(history, dict)
    runs = history if several else {"": history}
    figure, axes = axes_row(len(names), 2.9 * len(names), 3.0 if several else 2.4)
    for i, (axis, (key, title)) in enumerate(zip(axes, names.items(), strict=True)):
        for j, (label, rows) in enumerate(runs.items()):
            number = j if several else i  # a colour for each run; of one run, for each panel
            rows = [row for row in rows if key in row]  # a run may lack a diagnostic that another has
            look = {"color": COLOURS[number % len(COLOURS)], "marker": "o", "markersize": 3}
            look["linestyle"] = "--" if several and number >= len(COLOURS) else "-"
            axis.plot([row["epoch"] for row in rows], [row[key] for row in rows], label=label, **look)
        if bands and key in bands:
            _shade(axis, *bands[key])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    if several:
        place = {"loc": "outside lower center", "ncols": 2 + len(names) // 3, "frameon": False}
        figure.legend(*axes[0].get_legend_handles_labels(), **place)
    return figure


def _shade(axis, collapsed: float, healthy: float) -> None:
    """Shade an axis red below (or above) a band's collapsed edge, green beyond its healthy one."""
    low, high = axis.get_ylim()
    low, high = min(low, collapsed, healthy), max(high, collapsed, healthy)
    room = 0.06 * (high - low)  # so that both edges are seen
    far = 100 * room  # beyond the limits that a caller may set later
    worst, best = (low - far, high + far) if healthy > collapsed else (high + far, low - far)
    axis.axhspan(collapsed, worst, color=VERMILION, alpha=0.25, linewidth=0)
    axis.axhspan(healthy, best, color=GREEN, alpha=0.25, linewidth=0)
    axis.set_ylim(low - room, high + room)


def lines(curves: dict[str, tuple], xlabel: str, ylabel: str, title: str = "", log: bool = False) -> Figure:
    """Named curves {label: (x values, y values)} on one pair of axes; `log` for a logarithmic x axis."""
    figure, (axis,) = axes_row(1, 6.5, 3.2)
    for (label, (x, y)), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        axis.plot(x, y, label=label, color=colour, marker="o", markersize=4)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ticks = sorted({float(value) for x, _ in curves.values() for value in x})
    if log:
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    elif all(tick.is_integer() for tick in ticks):
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


def matrices(named: dict[str, Tensor], xlabel: str, ylabel: str, label: str) -> Figure:
    """Matrices (rows, columns) side by side on one colour scale, whose bar is named `label`."""
    figure, axes = axes_row(len(named), 3.3 * len(named) + 0.6, 3.2)
    tables = [values.detach().float().cpu() for values in named.values()]
    low, high = min(table.min().item() for table in tables), max(table.max().item() for table in tables)
    look = {"aspect": "auto", "cmap": "cividis", "interpolation": "nearest", "vmin": low, "vmax": high}
    for axis, title, table in zip(axes, named, tables, strict=True):
        picture = axis.imshow(table.numpy(), **look)
        axis.grid(False)
        axis.set(title=title, xlabel=xlabel)
    axes[0].set_ylabel(ylabel)
    figure.colorbar(picture, ax=axes, label=label)
    return figure


def matrix(values: Tensor, xlabel: str, ylabel: str, title: str = "", label: str = "") -> Figure:
    """A matrix (rows, columns) as an image with a colour bar named `label`."""
    figure = matrices({title: values}, xlabel, ylabel, label)
    square = values.shape[0] == values.shape[1]
    figure.set_size_inches(*(4.6, 3.8) if square else (6.5, 3.2))
    return figure


def leaderboard(tables: Sequence, metric: str = "knn", label: str = "kNN") -> Figure:
    """Accuracy against training time: a panel for each table of `batch.leaderboard.tables`, a point for each
    row. Colour tells the method, shape the epochs. Bars are one sample standard deviation of the accuracy
    over seeds, minutes are the least of them; what took no training is a dashed line. `metric`: the one they
    are ranked by; `label`: its name."""
    across, down = min(2, len(tables)), (len(tables) + 1) // 2
    figure, panels = axes_row(across, 6.2 * across + 0.4, 4.4 * down, down)
    for axis in panels[len(tables) :]:
        axis.remove()
    methods, lengths = set(), set()
    for table in tables:
        trained = table.rows[table.rows["minutes"] > 0]
        methods |= set(trained["method"])
        lengths |= set(trained["epochs"])
    colours = dict(zip(sorted(methods), cycle(COLOURS), strict=False))
    shapes = dict(zip(sorted(lengths), cycle("os^DvPX"), strict=False))
    for axis, table in zip(panels, tables, strict=False):
        rows = table.rows.rename(columns={f"{metric} mean": "mean", f"{metric} std": "std"})
        rows = rows.fillna({"std": 0.0})
        scale = 100 if rows["mean"].between(0, 1).all() else 1
        rows[["mean", "std"]] *= scale
        for _, row in rows[rows["minutes"] == 0].iterrows():
            axis.axhline(row["mean"], color=GREY, linestyle="--", linewidth=1)
            low, high = row["mean"] - row["std"], row["mean"] + row["std"]
            axis.axhspan(low, high, color=GREY, alpha=0.15, linewidth=0)
            where = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "center"}
            axis.annotate(row["title"], (1.01, row["mean"]), color=GREY, fontsize=9, **where)
        trained = rows[rows["minutes"] > 0]
        several = trained["epochs"].nunique() > 1
        for _, row in trained.iterrows():
            name = f"{row['title']}, {row['epochs']} epochs" if several else row["title"]
            look = {"color": colours[row["method"]], "marker": shapes[row["epochs"]], "markersize": 7}
            look |= {"linestyle": "", "capsize": 3, "elinewidth": 1.2, "label": name}
            look["markeredgecolor"] = "white"  # a point shows on another
            axis.errorbar(row["minutes"], row["mean"], row["std"], **look)
        if len(trained):
            axis.legend(frameon=False, fontsize=9, loc="best")
        axis.set_xlim(0, 1.15 * max(trained["minutes"], default=1))
        axis.margins(y=0.12)
        axis.set_title(table.title.split(";")[0], fontsize=10)
        devices = trained["devices"].str[0] + ", " + trained["precision"]  # whose minutes they are
        axis.set_xlabel("\n".join(["training, wall-clock (least minutes)", *devices.unique()]), fontsize=10)
        axis.set_ylabel(f"{label} accuracy (%)" if scale == 100 else label)
    return figure
