"""The look of all figures: Okabe and Ito's colours, which colour-blind eyes tell apart, in one style."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#777777"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)

STYLE = {"figure.dpi": 144, "font.size": 11, "axes.grid": True, "grid.alpha": 0.25}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}


def axes_row(columns: int, width: float, height: float, rows: int = 1) -> tuple[Figure, list]:
    """A figure of `columns` by `rows` panels, `width` by `height` inches, and its axes, row by row."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height), layout="constrained")
        return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
