"""Photographs side by side, and the table of what is taken for what."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ssl_lessons.figures.palette import axes_row


def image_grid(
    images: Tensor, rows: int, titles: Sequence[str] = (), row_titles: Sequence[str] = (), cell: float = 1.1
) -> Figure:
    """Pictures, uint8 or float in [0, 1], (N, 3, H, W), in `rows` rows of `cell` inches, filled row by row;
    N is a multiple of `rows`. `titles` stand above each column (or above each picture where there are N),
    `row_titles` beside each row."""
    columns = len(images) // rows
    if columns < 1 or columns * rows != len(images):
        raise ValueError(f"{len(images)} images do not fill {rows} rows; pass a multiple of {rows}")
    figure, axes = axes_row(columns, cell * columns, cell * rows + 0.25, rows)
    pictures = images.detach().cpu()
    pictures = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures.float().clamp(0, 1)
    for i, (axis, picture) in enumerate(zip(axes, pictures, strict=True)):
        axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")  # (3, H, W) -> (H, W, 3)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if i < len(titles):
            axis.set_title(titles[i], fontsize=9)
        if row_titles and i % columns == 0:
            axis.set_ylabel(row_titles[i // columns], fontsize=9, rotation=0, ha="right", va="center")
    return figure


def confusion(matrix: Tensor, classes: Sequence[str], title: str = "") -> Figure:
    """A confusion matrix, in per cent of the images of each true class. `matrix`: counts (C, C), row i the
    images whose true class is i, column j those called j; `classes`: the C names. ValueError: another shape.
    """
    count = len(classes)
    if matrix.shape != (count, count):
        raise ValueError(f"a matrix {tuple(matrix.shape)} for {count} classes; pass ({count}, {count})")
    counts = matrix.detach().cpu().double()
    share = 100 * counts / counts.sum(dim=1, keepdim=True)  # a class without images: nan, left white
    figure, (axis,) = axes_row(1, 0.46 * count + 2.9, 0.46 * count + 1.9)
    table = axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    for i, j in (share >= 0.5).nonzero().tolist():  # a printed 0 would hide the rest
        colour = "white" if share[i, j] > 55 else "black"
        axis.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=10, color=colour)
    axis.grid(False)
    axis.set_xticks(range(count), classes, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(count), classes)
    axis.set(xlabel="predicted class", ylabel="true class", title=title)
    figure.colorbar(table, ax=axis, label="share of the true class (%)", shrink=0.8)
    return figure
