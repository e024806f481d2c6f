"""Portraits of a representation: what it confuses, what it finds alike, where it looks; each a Figure.

Beside figures.py, which draws runs and measurements; the palette is the same. Each series has a marker of its
own as well as a colour, so that colour is never the only thing that tells two apart.
"""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ssl_lessons.figures.palette import COLOURS, GREEN, GREY, STYLE, VERMILION, axes_row

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def confusion(matrix: Tensor, classes: Sequence[str], title: str = "") -> Figure:
    """A confusion matrix, in per cent of the images of each true class.

    Args:
        matrix: counts (C, C); row i holds the images whose true class is i, column j those called j.
        classes: the C names.
        title: above the figure.
    Raises:
        ValueError: a matrix that is not (C, C) for these names.
    """
    if matrix.shape != (len(classes), len(classes)):
        raise ValueError(
            f"a matrix of shape {tuple(matrix.shape)} for {len(classes)} classes; pass ({len(classes)}, "
            f"{len(classes)}), a row for each true class"
        )
    counts = matrix.detach().cpu().double()
    share = 100 * counts / counts.sum(dim=1, keepdim=True)  # a class without images: nan, left white
    side = 0.46 * len(classes)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(side + 2.9, side + 1.9), layout="constrained")
    shown = axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    for i, row in enumerate(share.tolist()):
        for j, value in enumerate(row):
            if value >= 0.5:  # what would be printed as 0 is left empty: the eye finds the rest
                colour = "white" if value > 55 else "black"
                axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=10, color=colour)
    axis.grid(False)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted class", ylabel="true class", title=title)
    figure.colorbar(shown, ax=axis, label="share of the true class (%)", shrink=0.8)
    return figure


def per_class(accuracies: dict[str, Tensor | Sequence[float]], classes: Sequence[str]) -> Figure:
    """Accuracy of each class under one or more judges, a row for each class, the easiest class on top.

    Args:
        accuracies: {title: C numbers in [0, 1]}; nan leaves the place empty. The rows are in the order of the
            first title's.
        classes: the C names.
    """
    table = {title: torch.as_tensor(values).double().cpu() for title, values in accuracies.items()}
    for title, values in table.items():
        if values.shape != (len(classes),):
            raise ValueError(f"{title}: {tuple(values.shape)} accuracies for {len(classes)} classes")
    order = next(iter(table.values())).nan_to_num(-1).argsort(descending=True, stable=True)
    return _dot_rows(
        {title: 100 * values[order] for title, values in table.items()},
        [classes[i] for i in order],
        "accuracy of the class (%)",
        (0, 100),
    )


def neighbours(
    images: Tensor,
    neighbour_images: Tensor,
    titles: Sequence[str] = (),
    right: Tensor | None = None,
    captions: Sequence[Sequence[str]] = (),
    cell: float = 1.05,
) -> Figure:
    """Photographs, each with its neighbours beside it: a row for each, the nearest first.

    Args:
        images: uint8, or float in [0, 1], (R, 3, H, W), the queries of R rows; or (1, 3, H, W), one query of
            all rows, drawn once.
        neighbour_images: (R, k, 3, H, W).
        titles: one beside each row.
        right: bool (R, k), neighbours of the query's class, framed in solid green; the others' frame is
            dashed and vermilion. None frames nothing.
        captions: R rows of k words, above the neighbours.
        cell: inches a picture.
    Raises:
        ValueError: another number of queries than rows.
    """
    rows, k = neighbour_images.shape[:2]
    if len(images) not in (1, rows):
        raise ValueError(f"{len(images)} queries for {rows} rows of neighbours; pass one, or one a row")
    wide = max([0, *(len(title) for title in titles)]) * 0.085
    high = cell + (0.2 if captions else 0.0)
    size = (cell * (k + 1) + wide + 0.3, high * rows + 0.3)
    figure, grid = plt.subplots(rows, k + 1, figsize=size, dpi=80, layout="constrained", squeeze=False)
    for i, line in enumerate(grid):
        for j, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if j == 0 and i >= len(images):
                axis.set_facecolor("none")
                continue
            _picture(axis, images[i] if j == 0 else neighbour_images[i, j - 1])
            if j and right is not None:
                good = bool(right[i, j - 1])
                look = (GREEN, "-", 3.0) if good else (VERMILION, (0, (3, 2)), 2.2)
                for spine in axis.spines.values():
                    spine.set(visible=True, color=look[0], linestyle=look[1], linewidth=look[2])
            if j and captions:
                axis.set_title(captions[i][j - 1], fontsize=8, pad=3)
        if i < len(titles):
            line[0].set_ylabel(titles[i], fontsize=10, rotation=0, ha="right", va="center")
    words = 10 if cell >= 0.9 else 8
    grid[0, 0].set_title("photograph", fontsize=words)
    if not captions:
        grid[0, 1].set_title("nearest", fontsize=words)
    return figure


def _picture(axis, picture: Tensor, **look) -> None:
    """(3, H, W), uint8 or in [0, 1], on an axis without ticks."""
    picture = picture.detach().cpu()
    picture = picture.float() / 255 if picture.dtype == torch.uint8 else picture.float().clamp(0, 1)
    axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest", **look)
    axis.set_xticks([])
    axis.set_yticks([])


def embedding_map(
    maps: dict[str, Tensor],
    labels: Tensor,
    classes: Sequence[str],
    axes: tuple[str, str] = ("first coordinate", "second coordinate"),
    columns: int = 3,
    panel: float = 3.0,
) -> Figure:
    """Points (N, 2) for each title, a colour and a marker for each class; one legend for all panels.

    The large markers are the classes' medians.

    Args:
        maps: {title: float (N, 2)}, the same N images in each, in panels of their own scale.
        labels: int64 (N,), indices into `classes`.
        axes: what the two coordinates are; their numbers are left out, for they have no unit.
        columns: panels in a row, at most. panel: inches a panel.
    """
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    with plt.rc_context(STYLE):
        size = ((panel + 0.1) * columns + 1.7, max(panel * rows, 0.25 * len(classes)) + 0.3)
        figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    panels = list(grid.flat)
    for axis in panels[len(maps) :]:
        axis.set_visible(False)
    for place, (axis, (title, points)) in enumerate(zip(panels, maps.items(), strict=False)):
        for label, name in enumerate(classes):
            some = points[labels == label].detach().cpu().numpy()
            look = {"color": _colour(label), "marker": MARKERS[label % len(MARKERS)]}
            axis.scatter(some[:, 0], some[:, 1], s=13, alpha=0.6, linewidths=0, label=name, **look)
            if len(some):  # where the class as a whole lies
                x, y = points[labels == label].median(dim=0).values.tolist()
                axis.scatter(x, y, s=110, edgecolors="white", linewidths=1.2, zorder=3, **look)
        axis.set_title(title, fontsize=11 if panel >= 2.5 else 9)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(axes[0], fontsize=10)
        if place % columns == 0:
            axis.set_ylabel(axes[1], fontsize=10)
    handles, names = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside right center", frameon=False, markerscale=2.0)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    return figure


def layers(
    accuracies: dict[str, dict[str, float]],
    widths: dict[str, int] | None = None,
    ylabel: str = "kNN accuracy (%)",
    chance: float | None = None,
) -> Figure:
    """Accuracy by depth: {title: {layer: accuracy in [0, 1]}}, the layers in order from the image upwards.

    Args:
        widths: {layer: numbers an image}, written below the layers' names.
        chance: of guessing, in [0, 1].
    """
    figure, (axis,) = axes_row(1, 7.5, 3.8)
    order = list(next(iter(accuracies.values())))
    for i, (title, row) in enumerate(accuracies.items()):
        look = {"marker": MARKERS[i % len(MARKERS)], "color": _colour(i), "markersize": 7}
        axis.plot(range(len(order)), [100 * row[name] for name in order], label=title, **look)
    if chance is not None:
        axis.axhline(100 * chance, color=GREY, linestyle="--", linewidth=1)
        axis.annotate("guessing", (0.01, 100 * chance), xycoords=("axes fraction", "data"), va="bottom")
    names = [f"{name}\n{widths[name]:,}" if widths else name for name in order]
    axis.set_xticks(range(len(order)), names, fontsize=10)
    what = "layer, from the image upwards" + (", and how many numbers an image" if widths else "")
    axis.set(xlabel=what, ylabel=ylabel)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def invariances(moved: dict[str, dict[str, dict[str, float]]], most: float | None = None) -> Figure:
    """How far embeddings move: {title: {change: {"q25", "median", "q75"}}}, from `inside.invariance`.

    A marker is the median over images, the line through it the middle half of them. The distance is in per
    cent of that between different images.

    Args:
        most: right end of the axis in per cent; None: where the furthest line ends.
    """
    changes = list(next(iter(moved.values())))
    step = min(0.8 / len(moved), 0.2)
    figure, (axis,) = axes_row(1, 7.5, max(0.4, 0.11 * len(moved)) * len(changes) + 1.4)
    for i, (title, row) in enumerate(moved.items()):
        rows = [place + step * (i - (len(moved) - 1) / 2) for place in range(len(changes))]
        low, middle, high = ([100 * row[change][q] for change in changes] for q in ("q25", "median", "q75"))
        axis.hlines(rows, low, high, color=_colour(i), alpha=0.45, linewidth=2)
        look = {"marker": MARKERS[i % len(MARKERS)], "color": _colour(i), "markersize": 6}
        axis.plot(middle, rows, linestyle="", label=title, **look)
    for place in range(1, len(changes)):
        axis.axhline(place - 0.5, color=GREY, alpha=0.25, linewidth=0.8)
    axis.set_yticks(range(len(changes)), changes)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(changes) - 0.5, -0.5)  # the first on top
    axis.set_xlim(0, most)
    axis.grid(False, axis="y")
    axis.set_xlabel("distance moved (% of the distance between different images)")
    figure.legend(loc="outside upper center", ncols=4, columnspacing=1.2, frameon=False)
    return figure


def heatmaps(
    images: Tensor, maps: dict[str, Tensor], titles: Sequence[str] = (), cell: float = 1.25
) -> Figure:
    """Photographs, and below them maps of their pixels, over the photograph in grey.

    Args:
        images: uint8, or float in [0, 1], (N, 3, H, W).
        maps: {row title: float (N, H′, W′), ≥ 0}; each map is drawn as a share of its own greatest value, so
            that places compare within a map and not between maps.
        titles: one above each photograph.
    """
    rows, count = {"photograph": None, **maps}, len(images)
    wide = 0.085 * max(len(title) for title in rows)
    size = (cell * count + wide + 1.1, cell * len(rows) + 0.3)
    figure, grid = plt.subplots(len(rows), count, figsize=size, dpi=80, layout="constrained", squeeze=False)
    lightness = images.float().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1).to(images.dtype)
    for (title, found), line in zip(rows.items(), grid, strict=True):
        for i, axis in enumerate(line):
            axis.spines[:].set_visible(False)
            height, width = images.shape[-2:]
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            if found is None:
                _picture(axis, images[i])
                if i < len(titles):
                    axis.set_title(textwrap.fill(titles[i], 11), fontsize=9)
                continue
            _picture(axis, lightness[i])
            share = found[i].detach().cpu().float()
            share = share / share.max().clamp_min(1e-12)
            look = {"cmap": "inferno", "vmin": 0, "vmax": 1, "alpha": 0.65, "interpolation": "bilinear"}
            shown = axis.imshow(share.numpy(), extent=extent, **look)
        line[0].set_ylabel(title, fontsize=10, rotation=0, ha="right", va="center")
    bar = figure.colorbar(shown, ax=grid, label="share of the\nmap's greatest value", shrink=0.7, aspect=30)
    bar.solids.set_alpha(1)
    return figure


def _dot_rows(
    columns: dict[str, Tensor], names: Sequence[str], xlabel: str, xlim: tuple[float, float] | None = None
) -> Figure:
    """A dot for each named series in each row, with a grey line from the row's least to its greatest."""
    figure, (axis,) = axes_row(1, 7.5, 0.34 * len(names) + 1.2)
    table = torch.stack(list(columns.values()))  # (series, rows)
    low, high = table.nan_to_num(torch.inf).amin(0), table.nan_to_num(-torch.inf).amax(0)
    for row, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if a < b:
            axis.plot([a, b], [row, row], color=GREY, alpha=0.4, linewidth=2, zorder=1)
    for i, (title, values) in enumerate(columns.items()):
        look = {"marker": MARKERS[i % len(MARKERS)], "color": _colour(i), "markersize": 8}
        axis.plot(values.tolist(), range(len(names)), label=title, linestyle="", alpha=0.9, **look)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)  # the first on top
    axis.set_xlabel(xlabel)
    if xlim:
        axis.set_xlim(xlim[0] - 2, xlim[1] + 2)
    if len(columns) > 1:
        figure.legend(loc="outside upper center", ncols=4, columnspacing=1.2, frameon=False)
    return figure


def _colour(i: int) -> str:
    more = (
        GREY,
        "#000000",
        "#882255",
        "#999933",
    )  # wine and olive: from Paul Tol's palettes, for the like eyes
    return (*COLOURS, *more)[i % (len(COLOURS) + len(more))]
