"""Charts of speed, beside figures.py and in its style: a matplotlib Figure out."""

from collections.abc import Mapping, Sequence

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ssl_lessons.figures.palette import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    axes_row,
)

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
