"""Charts of leaderboards and of speed, beside figures.py and in its style: a matplotlib Figure out."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from ssl_lessons.figures.palette import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    axes_row,
)
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


# ---- Speed -------------------------------------------------------------------------------------------------

# A step's parts from the images to the moved target; the passes in between by kind of operation.
_STEP = {
    "read": ("read images", "0.25"),
    "views": ("views", VERMILION),
    "convolution": ("convolution", BLUE),
    "normalisation": ("normalisation", SKY),
    "activation, pooling": ("activation, pooling", GREEN),
    "linear, loss": ("linear layers, small maps, loss", ORANGE),
    "other": ("other in both passes", "0.8"),
    "optimizer": ("optimiser", PURPLE),
    "after_step": ("moving average, queue", GREY),
    "rest": ("loop", "0.55"),
}


def step_time(profiles: Mapping[str, dict]) -> Figure:
    """Where the time of a training step goes: a stacked bar for each profile, outside and inside the passes.

    Args:
        profiles: {name: what `profiling.step_profile` returned}, milliseconds; the first on top.
    """
    bars = {}
    for name, profile in profiles.items():
        parts, kinds = profile["parts"], profile["kinds"]
        passes = parts["forward"] + parts["backward"]
        named = {kind: kinds[kind] for kind in kinds if kind in _STEP}
        bars[name] = {**parts, **named, "other": max(0.0, passes - sum(named.values()))}
    rows = {name: {_STEP[key][0]: bar[key] for key in _STEP} for name, bar in bars.items()}
    return stacked(rows, "time of one training step (ms)", [colour for _, colour in _STEP.values()])


def stacked(rows: Mapping[str, Mapping[str, float]], xlabel: str, colours: Sequence[str] = COLOURS) -> Figure:
    """Horizontal bars of named parts, the first row on top; a part shows its share where it has room."""
    figure, (axis,) = axes_row(1, 9.0, 0.5 * len(rows) + 1.8)
    longest = max(sum(parts.values()) for parts in rows.values())
    for place, parts in enumerate(rows.values()):
        left = 0.0
        for (part, value), colour in zip(parts.items(), colours, strict=False):
            axis.barh(place, value, left=left, color=colour, height=0.66, label=part if not place else None)
            if value > 0.06 * longest:
                share = f"{value / sum(parts.values()):.0%}"
                axis.text(
                    left + value / 2, place, share, ha="center", va="center", fontsize=9, color=_on(colour)
                )
            left += value
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(xlabel)
    axis.grid(False, axis="y")
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def _on(colour: str) -> str:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = to_rgb(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def grouped(groups: Mapping[str, Mapping[str, float | None]], ylabel: str, height: float = 3.6) -> Figure:
    """Bars side by side in named groups, each with its number.

    A None leaves its place empty; a name without any number (a peer that is not installed) has no place.
    """
    given = (name for bars in groups.values() for name, value in bars.items() if value is not None)
    names = list(dict.fromkeys(given))
    width, crowded = 0.82 / len(names), len(groups) * len(names) > 16
    figure, (axis,) = axes_row(1, min(11.0, 2.2 + 0.55 * len(groups) * len(names)), height)
    for i, name in enumerate(names):
        places = [g + (i - (len(names) - 1) / 2) * width for g in range(len(groups))]
        values = [bars.get(name) for bars in groups.values()]
        shown = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
        drawn = axis.bar(*zip(*shown, strict=True), 0.94 * width, color=COLOURS[i % len(COLOURS)], label=name)
        words = [f"{value:.3g}" if value < 100 else f"{value:.0f}" for _, value in shown]
        axis.bar_label(drawn, words, fontsize=8, rotation=90 if crowded else 0, padding=2)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_ylabel(ylabel)
    axis.margins(y=0.1)
    axis.grid(False, axis="x")
    axis.set_axisbelow(True)
    if len(names) > 1:
        figure.legend(loc="outside upper center", ncols=len(names), fontsize=9, frameon=False)
    return figure


def _short(value: float) -> str:
    """1000 and 1024 as 1k."""
    if value >= 1000:
        return f"{value / (1024 if value % 1024 == 0 else 1000):g}k"
    return f"{value:g}"


def growth(series: Sequence[dict]) -> Figure:
    """How time and memory grow: a panel for each series, both axes logarithmic, the slopes in its title.

    Args:
        series: of each "label" (what grows, with its unit), "x", "seconds", "bytes" (of memory that the run
            added) and "slopes" {"seconds": …, "bytes": …}, the exponents.
    """
    figure, axes = axes_row(len(series), 3.4 * len(series), 3.6)
    for axis, one in zip(axes, series, strict=True):
        beside = axis.twinx()
        axis.loglog(one["x"], one["seconds"], "o-", color=BLUE)
        beside.loglog(one["x"], [size / 2**20 for size in one["bytes"]], "s--", color=VERMILION)
        axis.set_xlabel(one["label"])
        axis.set_xticks(one["x"], [_short(x) for x in one["x"]])
        axis.xaxis.set_minor_locator(NullLocator())
        for each in (axis, beside):
            each.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            each.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            each.yaxis.set_minor_locator(NullLocator())
        slopes = one["slopes"]
        axis.set_title(f"time ∝ x^{slopes['seconds']:.2f}\nmemory ∝ x^{slopes['bytes']:.2f}", fontsize=10)
        axis.tick_params(axis="y", colors=BLUE)
        beside.tick_params(axis="y", colors=VERMILION)
        beside.grid(False)
        beside.spines["right"].set_visible(True)
        # within a factor of ten a flat line should look flat
        for each, values in ((axis, one["seconds"]), (beside, [size / 2**20 for size in one["bytes"]])):
            low, high = min(values), max(values)
            each.set_ylim(low / max(1.5, (10 * low / high) ** 0.5), high * max(1.5, (10 * low / high) ** 0.5))
        if axis is axes[0]:
            axis.set_ylabel(f"{one.get('timed', 'a step')} (s)", color=BLUE)
        if axis is axes[-1]:
            beside.set_ylabel("memory added (MiB)", color=VERMILION)
    return figure
