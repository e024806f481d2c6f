"""Figures: a Figure out, axes that say what they show, nothing lost at edge sizes, no warning."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
from IPython.display import SVG
from matplotlib.figure import Figure

from ssl_lessons import figures
from ssl_lessons.figures import palette

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("drawn_without_warning")


def history(epochs, judged=True):
    rows = [{"epoch": e + 1, "loss": 5 / (e + 1), "embedding_std": 0.5, "lr": 0.1} for e in range(epochs)]
    for row in rows[:: 2 if judged else epochs + 1]:
        row |= {"knn": 0.3} if judged else {}
    return rows


def assert_labelled(axis):
    assert axis.get_xlabel() and (axis.get_ylabel() or axis.get_title())


def shown_drawings():
    """(lesson, cell, file) of every cell that shows a drawing."""
    shown = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for name in re.findall(r'SVG\("figures/(.+?)"\)', "".join(cell["source"])):
                shown.append((path.stem, cell, ROOT / "notebooks" / "figures" / name))
    return shown


@pytest.mark.parametrize(
    "lesson, cell, drawing", shown_drawings(), ids=lambda value: getattr(value, "stem", "")
)
def test_a_drawing_is_well_formed_says_what_it_shows_and_is_the_one_in_the_output(lesson, cell, drawing):
    root = ElementTree.parse(drawing).getroot()
    assert root.find("{http://www.w3.org/2000/svg}title").text
    ((output,), shown) = cell["outputs"], SVG(drawing).data
    assert "".join(output["data"]["image/svg+xml"]) == shown, (
        f"run the cell of {drawing.name} in {lesson} again"
    )


def test_every_drawing_is_shown():
    assert {file for *_, file in shown_drawings()} == set((ROOT / "notebooks" / "figures").glob("*.svg"))


@pytest.mark.parametrize("count, rows", [(1, 1), (6, 2), (6, 6)])
def test_image_grid_shows_every_picture(count, rows):
    images = torch.randint(0, 256, (count, 3, 5, 7), dtype=torch.uint8)
    figure = figures.image_grid(images, rows, titles=["a"], row_titles=[f"row {i}" for i in range(rows)])
    assert isinstance(figure, Figure) and len(figure.axes) == count
    assert figure.axes[0].get_title() == "a" and figure.axes[0].get_ylabel() == "row 0"
    for axis, image in zip(figure.axes, images, strict=True):
        shown = torch.as_tensor(axis.images[0].get_array().copy())  # (H, W, 3)
        assert torch.allclose(shown, image.permute(1, 2, 0) / 255.0)


def test_image_grid_takes_views_and_refuses_a_gap():
    figure = figures.image_grid(torch.tensor([-1.0, 0.25, 2.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4), 1)
    assert [float(axis.images[0].get_array().max()) for axis in figure.axes] == [0, 0.25, 1]  # clamped
    for count, rows in ((5, 2), (1, 2), (0, 1)):
        with pytest.raises(ValueError, match=f"{count} images do not fill {rows} rows"):
            figures.image_grid(torch.zeros(count, 3, 4, 4), rows)


@pytest.mark.parametrize("count", [1, 3, 14])
def test_health_has_a_panel_for_each_diagnostic(count):
    rows = [{"epoch": e, **{f"d{i}": i for i in range(count)}} for e in (1, 2)]
    figure = figures.health(rows, {f"d{i}": f"diagnostic {i}" for i in range(count)})
    assert [axis.get_title() for axis in figure.axes] == [f"diagnostic {i}" for i in range(count)]
    for i, axis in enumerate(figure.axes):
        assert_labelled(axis)
        assert list(axis.lines[0].get_ydata()) == [i, i]


def spans(axis):
    """{colour: (from, to)} of the shaded stretches of an axis, as far as its limits."""
    low, high = axis.get_ylim()
    boxes = {}
    for patch in axis.patches:  # a rectangle, or before Matplotlib 3.9 a polygon
        boxes[patch.get_facecolor()[:3]] = patch.get_path().get_extents(patch.get_patch_transform())
    return {c: tuple(sorted(min(max(y, low), high) for y in (box.y0, box.y1))) for c, box in boxes.items()}


RED, GREEN = (matplotlib.colors.to_rgb(colour) for colour in (palette.VERMILION, palette.GREEN))


def test_health_shades_the_bands_and_nothing_else():
    rows = [{"epoch": e, "loss": -e, "std": 0.9, "uniformity": -2.5} for e in (1, 2)]
    bands = {"std": (0.1, 0.5), "uniformity": (-0.5, -2.0), "another": (0, 1)}
    names = {"loss": "loss", "std": "spread", "uniformity": "evenness"}
    loss, std, uniformity = figures.health(rows, names, bands).axes
    assert not loss.patches
    for axis, key in ((std, "std"), (uniformity, "uniformity")):
        low, high = axis.get_ylim()
        collapsed, healthy = bands[key]
        assert low < collapsed < high and low < healthy < high  # both edges can be seen
        assert all(low < y < high for y in axis.lines[0].get_ydata())
        more = healthy > collapsed
        assert spans(axis) == {
            RED: (low, collapsed) if more else (collapsed, high),
            GREEN: (healthy, high) if more else (low, healthy),
        }
    std.set_ylim(0, 1)  # as lesson 04: the shading reaches to the new limits
    assert spans(std) == {RED: (0, 0.1), GREEN: (0.5, 1)}


def test_health_of_several_runs_has_a_line_for_each_and_one_legend():
    runs = {f"run {i}": [{"epoch": e, "loss": i, "std": 0.5} for e in (1, 2)] for i in range(8)}
    del runs["run 3"][0]["std"], runs["run 3"][1]["std"]  # another method, without this diagnostic
    figure = figures.health(runs, {"loss": "loss", "std": "spread"}, {"std": (0.1, 0.5)})
    for axis in figure.axes:
        looks = [(line.get_color(), line.get_linestyle()) for line in axis.lines]
        assert len(looks) == len(set(looks)) == 8
    assert [len(line.get_ydata()) for line in figure.axes[1].lines] == [2, 2, 2, 0, 2, 2, 2, 2]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(runs)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_lines_draws_every_curve(count):
    curves = {f"c{i}": ([16, 256], [i, i + 1]) for i in range(count)}
    (axis,) = figures.lines(curves, "queue (keys)", "accuracy (%)", log=True).axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("queue (keys)", "accuracy (%)")
    assert [line.get_label() for line in axis.lines] == list(curves)
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["16", "256"]
    assert (axis.get_legend() is None) == (count == 1)


@pytest.mark.parametrize("count", [1, 8])
def test_histograms_draws_every_sample_with_area_one(count):
    samples = {f"s{i}": torch.randn(50, 2) + i for i in range(count)} | {"single": torch.tensor([0.5])}
    (axis,) = figures.histograms(samples, "cosine similarity", bins=10).axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("cosine similarity", "density")
    assert len(axis.patches) == count + 1
    for outline in axis.patches:
        x, y = outline.get_xy().T
        area = np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2  # the shoelace formula
        assert area == pytest.approx(1)
    assert not axis.get_legend().get_frame_on()


def test_histograms_of_equal_values():
    (axis,) = figures.histograms({"same": torch.ones(9)}, "std").axes
    assert len(axis.patches) == 1 and axis.get_xlabel() == "std"


@pytest.mark.parametrize("shape", [(1, 1), (3, 40)])
def test_matrix(shape):
    values = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    figure = figures.matrix(values, "key", "query", label="cosine")
    axis, bar = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel(), bar.get_ylabel()) == ("key", "query", "cosine")
    assert axis.images[0].get_array().shape == shape


def test_matrices_share_one_scale():
    figure = figures.matrices({"low": torch.zeros(2, 2), "high": torch.ones(2, 2)}, "key", "query", "cosine")
    assert [axis.images[0].get_clim() for axis in figure.axes[:2]] == [(0, 1), (0, 1)]


def test_confusion_is_in_per_cent_of_the_true_class():
    counts = torch.tensor([[3, 1, 0], [0, 5, 5], [0, 0, 0]])  # the last class has no images
    axis, bar = figures.confusion(counts, ["a", "b", "c"], "kNN").axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted class", "true class")
    assert "%" in bar.get_ylabel() and axis.images[0].get_clim() == (0, 100)
    shown = axis.images[0].get_array()
    assert shown[:2].tolist() == [[75, 25, 0], [0, 50, 50]] and shown.mask[2].all()
    printed = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axis.texts}
    assert printed == {(0, 0): "75", (0, 1): "25", (1, 1): "50", (1, 2): "50"}  # (row, column)
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["a", "b", "c"]


@pytest.mark.parametrize("shape", [(2, 3), (4, 4), (9,)])
def test_confusion_refuses_another_number_of_classes(shape):
    with pytest.raises(ValueError, match=r"for 3 classes; pass \(3, 3\)"):
        figures.confusion(torch.ones(shape), ["a", "b", "c"])


def test_colours_differ():
    assert len(set(figures.COLOURS)) == len(figures.COLOURS) == 6
