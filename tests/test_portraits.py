"""Portraits: what is drawn is what was passed in, labels and edge sizes included, without a warning."""

import warnings

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch

from ssl_lessons import portraits


@pytest.fixture(autouse=True)
def drawn_without_warning():
    """Every test's figures are rendered; a warning is an error, and closing them leaves none behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
    plt.close("all")


def names(count):
    return [f"class {i}" for i in range(count)]


def looks(axis):
    """(colour, marker) of each named series."""
    return [(line.get_color(), line.get_marker()) for line in axis.lines if line.get_label()[0] != "_"]


def test_confusion_is_in_per_cent_of_the_true_class():
    counts = torch.tensor([[3, 1, 0], [0, 5, 5], [0, 0, 0]])  # the last class has no images
    axis, bar = portraits.confusion(counts, names(3), "kNN").axes
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == (
        "predicted class",
        "true class",
        "kNN",
    )
    assert "%" in bar.get_ylabel() and axis.images[0].get_clim() == (0, 100)
    shown = axis.images[0].get_array()
    assert shown[:2].tolist() == [[75, 25, 0], [0, 50, 50]] and shown.mask[2].all()
    printed = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axis.texts}
    assert printed == {(0, 0): "75", (0, 1): "25", (1, 1): "50", (1, 2): "50"}  # (row, column)
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == names(3)


@pytest.mark.parametrize("shape", [(2, 3), (4, 4), (9,)])
def test_confusion_refuses_another_number_of_classes(shape):
    with pytest.raises(ValueError, match=r"for 3 classes; pass \(3, 3\)"):
        portraits.confusion(torch.ones(shape), names(3))


@pytest.mark.parametrize("series", [1, 2, 10])
def test_per_class_puts_the_easiest_class_on_top(series):
    first = {"kNN": [0.25, 0.75, float("nan"), 0.5]}
    more = {f"judge {i}": torch.rand(4) for i in range(1, series)}
    figure = portraits.per_class({**first, **more}, names(4))
    (axis,) = figure.axes
    assert axis.get_xlabel() == "accuracy of the class (%)"
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"class {i}" for i in (1, 3, 0, 2)]
    assert axis.get_ylim() == (3.5, -0.5)
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines["kNN"].get_xdata())[:3] == [75, 50, 25]
    for title, values in more.items():
        assert list(lines[title].get_xdata()) == pytest.approx([100 * values[i].item() for i in (1, 3, 0, 2)])
    assert len(set(looks(axis))) == series  # no two look alike
    assert len({marker for _, marker in looks(axis)}) == series  # nor in grey
    assert len(figure.legends) == (series > 1)


def test_per_class_refuses_another_number_of_classes():
    with pytest.raises(ValueError, match=r"kNN: \(2,\) accuracies for 3 classes"):
        portraits.per_class({"kNN": [0.5, 0.5]}, names(3))
