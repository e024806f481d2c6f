"""Charts of leaderboards, beside figures.py and in its style: a matplotlib Figure out."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from ssl_lessons.figures.palette import BLUE, COLOURS, GREY, STYLE, VERMILION, axes_row
from ssl_lessons.leaderboard import Table, mean_std
from ssl_lessons.printing import LABELS, is_share

INK = "0.2"  # of labels: a point's own colour may be too pale to read
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Where a label may stand beside its point: offsets in points, and how the text is aligned to them.
PLACES = [(8, 0, "left", "center"), (-8, 0, "right", "center")]
PLACES += [(0, sign * up, "center", "center") for up in (13, 25, 37, 49) for sign in (1, -1)]
PLACES += [
    (sign * 12, up, side, "center")
    for up in (14, -14, 28, -28)
    for sign, side in ((1, "left"), (-1, "right"))
]


def leaderboard(found: Sequence[Table], metric: str = "knn") -> Figure:
    """Accuracy against training time: a panel for each table, a labelled point with error bars for each row.

    Bars are one sample standard deviation over seeds, both ways. What took no training is a dashed line.

    Args:
        found: from `leaderboard.tables`. metric: the one they are ranked by.
    """
    methods = sorted({row.settings["method"] for table in found for row in table.rows})
    looks = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(methods)}
    across, down = min(2, len(found)), (len(found) + 1) // 2
    with plt.rc_context(STYLE):
        size = (6.2 * across + 0.4, 4.4 * down)
        figure, grid = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    panels = grid.flat[: len(found)]
    for axis in grid.flat[len(found) :]:
        axis.remove()
    labels = []
    for axis, table in zip(panels, found, strict=True):
        scale = 100 if is_share(table.rows, metric) else 1
        trained = [row for row in table.rows if row.minutes > 0]
        several = len({row.settings["epochs"] for row in trained}) > 1
        for row in table.rows:
            mean, std = (scale * (row.metrics[metric][part] or 0) for part in ("mean", "std"))
            if row.minutes == 0:
                _level(axis, row.title, mean, std)
                continue
            colour, marker = looks[row.settings["method"]]
            x, spread = row.minutes, row.minutes_std or 0
            bars = {"yerr": std, "xerr": spread, "capsize": 3, "elinewidth": 1.2}
            axis.errorbar(x, mean, color=colour, marker=marker, markersize=7, linestyle="", **bars)
            name = f"{row.title}, {row.settings['epochs']} epochs" if several else row.title
            labels.append((axis, name, (x, mean), (spread, std)))
        axis.set_xlim(0, 1.15 * max((row.minutes + (row.minutes_std or 0) for row in trained), default=1))
        axis.margins(y=0.12)
        axis.set_title(table.title.split(";")[0], fontsize=10)
        devices = dict.fromkeys(f"{row.settings['device']}, {row.settings['precision']}" for row in trained)
        axis.set_xlabel("\n".join(["training, wall-clock (minutes)", *devices]), fontsize=10)
        axis.set_ylabel(f"{LABELS.get(metric, metric)}" + (" accuracy (%)" if scale == 100 else ""))
    figure.canvas.draw()  # settles the size of the axes: labels are placed by what they would cover
    for axis in panels:
        _label(axis, [label[1:] for label in labels if label[0] is axis])
    return figure


def _level(axis: Axes, name: str, mean: float, std: float) -> None:
    axis.axhline(mean, color=GREY, linestyle="--", linewidth=1)
    axis.axhspan(mean - std, mean + std, color=GREY, alpha=0.15, linewidth=0)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axis.annotate(name, (0, mean), (4, 4), ha="left", va="bottom", fontsize=9, color=INK, **place)


def _label(axis: Axes, named: list[tuple[str, tuple[float, float], tuple[float, float]]]) -> None:
    """A name beside each point, at the first of `PLACES` where it covers no point, bar, level, text or line,
    and its own line crosses no text."""
    figure = axis.figure
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    inside = axis.get_window_extent(renderer)
    crosses = []  # a point with its bars, as two thin boxes
    for _, (x, y), (across, up) in named:
        for dx, dy in ((across, 0), (0, up)):
            ends = axis.transData.transform([(x - dx, y - dy), (x + dx, y + dy)])
            crosses.append(Bbox(ends).padded(4 * pixel))
    texts, lines = [text.get_window_extent(renderer) for text in axis.texts], []
    dashed = (line for line in axis.lines if line.get_linestyle() == "--")
    levels = [level.get_window_extent(renderer).padded(pixel) for level in dashed]
    for name, point, (across, _) in named:
        right = (axis.transData.transform((across, 0)) - axis.transData.transform((0, 0)))[0] / pixel
        for x, y, ha, va in PLACES:
            out = x + (right if x > 0 else -right) if y == 0 else x  # beyond the bar
            line = {"arrowstyle": "-", "color": INK, "linewidth": 0.6} if abs(y) > 13 else None
            style = {"ha": ha, "va": va, "fontsize": 9, "color": INK, "arrowprops": line}
            text = axis.annotate(name, point, (out, y), textcoords="offset points", **style)
            box = text.get_window_extent(renderer) if line is None else _words(text, renderer)
            # from the point to the middle of the words, as matplotlib draws it
            way = [Path([axis.transData.transform(point), box.get_points().mean(0)])] if line else []
            free = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            free = free and not any(box.overlaps(other) for other in (*texts, *levels, *crosses))
            free = free and not any(each.intersects_bbox(box) for each in lines)
            if free and not any(each.intersects_bbox(other) for each in way for other in texts):
                break
            text.remove()
        else:  # a crowd: beside the point, rather than nowhere
            text = axis.annotate(name, point, (8, 0), textcoords="offset points", fontsize=9, color=INK)
            box, way = text.get_window_extent(renderer), []
        texts.append(box)
        lines += way


def _words(text: Annotation, renderer) -> Bbox:
    """The extent of an annotation's words without its line, which starts at the point."""
    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def spread(values: dict[str, Sequence[float]], xlabel: str) -> Figure:
    """Named runs as dots, one for each seed, and below them, if there are several, mean and sample deviation.

    Args:
        values: {name: one number in [0, 1] for each seed}, drawn in per cent, the first on top.
    """
    figure, (axis,) = axes_row(1, 7.5, 0.45 * len(values) + 1.0)
    for i, each in enumerate(values.values()):
        mean, std = mean_std([100 * value for value in each])
        axis.plot([100 * value for value in each], [i] * len(each), "o", color=BLUE, alpha=0.6, markersize=7)
        if std is not None:
            bar = {"color": VERMILION, "marker": "|", "markersize": 10, "capsize": 3}
            axis.errorbar(mean, i + 0.28, xerr=std, **bar)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.4, -0.5)
    axis.set_xlabel(xlabel)
    axis.grid(False, axis="y")
    return figure
