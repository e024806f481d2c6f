"""What two lessons or more draw: curves and bars (`plots`), photographs and tables (`pictures`)."""

from ssl_lessons.figures.palette import BLUE, COLOURS, GREEN, GREY, VERMILION  # noqa: F401
from ssl_lessons.figures.pictures import confusion, image_grid  # noqa: F401
from ssl_lessons.figures.plots import (  # noqa: F401
    arms,
    health,
    histograms,
    leaderboard,
    learning_curves,
    lines,
    matrices,
    matrix,
)
