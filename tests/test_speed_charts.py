"""The charts of speed: every number drawn where it belongs, and readable."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

from ssl_lessons import charts, devices, profiling


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def profile(scale=1.0) -> dict:
    parts = {name: scale * (i + 1.0) for i, name in enumerate([*devices.PARTS, "rest"])}
    passes = parts["forward"] + parts["backward"]
    kinds = {name: 0.2 * passes for name in profiling.KINDS}
    return {"parts": parts, "kinds": {**kinds, profiling.OTHER: 0.1 * passes}}


def test_a_bar_of_the_step_is_as_long_as_the_step():
    profiles = {"SimCLR, fp32": profile(), "SimCLR, bf16": profile(0.5)}
    (axis,) = charts.step_time(profiles).axes
    bars = {}
    for bar in axis.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        bars[row] = bars.get(row, 0) + bar.get_width()
    for row, one in enumerate(profiles.values()):
        assert bars[row] == pytest.approx(sum(one["parts"].values()))  # kinds and "other" are the two passes
    assert [label.get_text() for label in axis.get_yticklabels()] == list(profiles)
    assert "ms" in axis.get_xlabel()
    named = {text.get_text() for text in axis.figure.legends[0].get_texts()}
    assert {"views", "convolution", "optimiser", "moving average, queue"} <= named


def test_stacked_writes_a_share_only_where_it_has_room():
    (axis,) = charts.stacked({"one": {"a": 97.0, "b": 3.0}}, "x (s)").axes
    assert [text.get_text() for text in axis.texts] == ["97%"]


def test_grouped_has_a_number_on_each_bar_and_none_for_what_is_missing():
    (axis,) = charts.grouped({"A": {"ours": 120.0, "peer": 55.5}, "B": {"ours": 9.0, "peer": None}}, "y").axes
    assert sorted(text.get_text() for text in axis.texts) == ["120", "55.5", "9"]
    assert [bar.get_height() for bar in axis.patches] == [120.0, 9.0, 55.5]


def test_grouped_leaves_out_a_name_without_any_number():
    figure = charts.grouped({"A": {"ours": 1.0, "gone": None, "peer": 2.0}, "B": {"gone": None}}, "y")
    (axis,) = figure.axes
    assert [bar.get_height() for bar in axis.patches] == [1.0, 2.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "peer"]


def test_growth_tells_the_slopes_and_names_both_axes():
    series = {"label": "images", "x": [1, 10, 100], "seconds": [1.0, 10.0, 100.0], "bytes": [2**20] * 3}
    series |= {"slopes": {"seconds": 1.0, "bytes": 0.0}, "timed": "an epoch"}
    axis, beside = charts.growth([series]).axes
    assert axis.get_title() == "time ∝ x^1.00\nmemory ∝ x^0.00"
    assert axis.get_ylabel() == "an epoch (s)" and beside.get_ylabel() == "memory added (MiB)"
    assert (
        list(axis.lines[0].get_ydata()) == series["seconds"]
        and list(beside.lines[0].get_ydata()) == [1.0] * 3
    )


@pytest.mark.parametrize(("colour", "ink"), [("white", "black"), ("black", "white"), ("#0072b2", "white")])
def test_ink_can_be_read_on_its_colour(colour, ink):
    assert charts._on(colour) == ink
