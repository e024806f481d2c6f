"""Portraits of a representation: what it confuses, what it finds alike, where it looks; each a Figure.

Beside figures.py, which draws runs and measurements; the palette is the same. Each series has a marker of its
own as well as a colour, so that colour is never the only thing that tells two apart.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ssl_lessons.diagrams import COLOURS, GREY
from ssl_lessons.figures import _STYLE, _axes

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
    with plt.rc_context(_STYLE):
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


def _dot_rows(
    columns: dict[str, Tensor], names: Sequence[str], xlabel: str, xlim: tuple[float, float] | None = None
) -> Figure:
    """A dot for each named series in each row, with a grey line from the row's least to its greatest."""
    figure, (axis,) = _axes(1, 7.5, 0.34 * len(names) + 1.2)
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
    return (*COLOURS, GREY, "#000000")[i % (len(COLOURS) + 2)]
