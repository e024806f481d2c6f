"""What two lessons or more draw: curves and bars (`plots`), photographs and tables (`pictures`)."""

from ssl_lessons.figures.palette import BLUE, COLOURS, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from ssl_lessons.figures.pictures import confusion, image_grid
from ssl_lessons.figures.plots import (
    accuracy_bars,
    arms,
    bars,
    health,
    histograms,
    leaderboard,
    learning_curves,
    lines,
    matrices,
    matrix,
    shade,
    spread,
)

__all__ = ["BLUE", "COLOURS", "GREEN", "GREY", "ORANGE", "PURPLE", "SKY", "VERMILION", "accuracy_bars"]
__all__ += ["arms", "learning_curves"]
__all__ += ["bars", "confusion", "health", "histograms", "image_grid", "leaderboard", "lines", "matrices"]
__all__ += ["matrix", "shade", "spread"]
