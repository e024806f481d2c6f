"""Photographs side by side, and the table of what is taken for what."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ssl_lessons.figures.palette import axes_row


def image_grid(
    images: Tensor, rows: int, titles: Sequence[str] = (), row_titles: Sequence[str] = (), cell: float = 1.1
) -> Figure:
    """Pictures in `rows` rows, filled row by row.

    Args:
        images: uint8, or float in [0, 1], (N, 3, H, W) with N a multiple of `rows`.
        titles: one above each column (or above each picture where there are N).
        row_titles: one beside each row.
        cell: inches a picture.
    """
    columns = len(images) // rows
    if columns < 1 or columns * rows != len(images):
        raise ValueError(f"{len(images)} images do not fill {rows} rows; pass a multiple of {rows}")
    figure, grid = plt.subplots(
        rows, columns, figsize=(cell * columns, cell * rows + 0.25), layout="constrained", squeeze=False
    )
    figure.set_dpi(144)
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
    figure, (axis,) = axes_row(1, side + 2.9, side + 1.9)
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
