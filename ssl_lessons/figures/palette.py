"""The look of all figures: Okabe and Ito's colours, which colour-blind eyes tell apart, in one style."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

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

STYLE = {
    "figure.dpi": 144,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def axes_row(columns: int, width: float, height: float) -> tuple[Figure, list]:
    """A figure of some columns side by side, `width` by `height` inches, and its axes."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])
