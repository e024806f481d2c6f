"""Portraits: what is drawn is what was passed in, labels and edge sizes included, without a warning."""

import matplotlib

matplotlib.use("Agg")

import pytest
import torch

from ssl_lessons.figures import pictures as portraits

pytestmark = pytest.mark.usefixtures("drawn_without_warning")


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


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def shown(axis):
    """The picture of an axis, (3, H, W) in [0, 1]."""
    return torch.as_tensor(axis.images[0].get_array().copy()).permute(2, 0, 1)


def test_neighbours_stand_beside_their_photograph_in_frames_that_say_right_or_wrong():
    queries, found = noise(2, 3, 5, 5), noise(2, 3, 3, 5, 5)
    right = torch.tensor([[True, False, True], [False, False, True]])
    captions = [["a", "b", "c"], ["d", "e", "f"]]
    figure = portraits.neighbours(queries, found, ["SimCLR", "random"], right, captions)
    assert len(figure.axes) == 8
    assert [figure.axes[i].get_ylabel() for i in (0, 4)] == ["SimCLR", "random"]
    for row in range(2):
        assert torch.allclose(shown(figure.axes[4 * row]), queries[row] / 255)
        assert not any(spine.get_visible() for spine in figure.axes[4 * row].spines.values())
        for j in range(3):
            axis = figure.axes[4 * row + j + 1]
            assert torch.allclose(shown(axis), found[row, j] / 255)
            assert axis.get_title() == captions[row][j]
            edge = axis.spines["left"]
            assert edge.get_visible() and (edge.get_linestyle() == "-") == bool(right[row, j])
            colour = portraits.GREEN if right[row, j] else portraits.VERMILION
            assert edge.get_edgecolor()[:3] == matplotlib.colors.to_rgb(colour)


def test_one_photograph_for_several_rows_is_drawn_once():
    figure = portraits.neighbours(torch.rand(1, 3, 4, 4), torch.rand(3, 1, 3, 4, 4), ["a", "b", "c"])
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 0, 1, 0, 1]
    assert [figure.axes[i].get_ylabel() for i in (0, 2, 4)] == ["a", "b", "c"]
    assert not any(spine.get_visible() for axis in figure.axes for spine in axis.spines.values())
    with pytest.raises(ValueError, match="2 queries for 3 rows"):
        portraits.neighbours(torch.rand(2, 3, 4, 4), torch.rand(3, 1, 3, 4, 4))


@pytest.mark.parametrize("panels, classes", [(1, 2), (4, 10)])
def test_embedding_map_has_a_look_for_each_class_and_a_point_for_each_image(panels, classes):
    labels = torch.arange(60) % classes
    labels[labels == 1] = 0  # a class without images
    maps = {f"map {i}": torch.randn(60, 2) for i in range(panels)}
    figure = portraits.embedding_map(maps, labels, names(classes), ("t-SNE 1", "t-SNE 2"))
    drawn = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in drawn] == list(maps)
    assert drawn[0].get_xlabel() == "t-SNE 1" and drawn[0].get_ylabel() == "t-SNE 2"
    for axis, points in zip(drawn, maps.values(), strict=True):
        clouds = [each for each in axis.collections if not each.get_label().startswith("_")]
        assert [cloud.get_label() for cloud in clouds] == names(classes)
        for label, cloud in enumerate(clouds):
            assert torch.allclose(torch.as_tensor(cloud.get_offsets().data).float(), points[labels == label])
        medians = [each.get_offsets()[0].tolist() for each in axis.collections if each not in clouds]
        assert len(medians) == classes - 1  # not of the empty one
        assert medians[0] == pytest.approx(points[labels == 0].median(dim=0).values.tolist())
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names(classes)


def test_no_two_of_ten_classes_look_alike_in_colour_or_in_grey():
    assert len({portraits._colour(i) for i in range(10)}) == len(set(portraits.MARKERS)) == 10


@pytest.mark.parametrize("series", [1, 7])
def test_layers_draws_accuracies_in_per_cent_from_the_image_upwards(series):
    rows = {f"m{i}": {"pixels": 0.3, "layer1": 0.25 + i / 20} for i in range(series)}
    figure = portraits.layers(rows, {"pixels": 3072, "layer1": 64}, chance=0.1)
    (axis,) = figure.axes
    assert axis.get_ylabel() == "kNN accuracy (%)" and "layer" in axis.get_xlabel()
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["pixels\n3,072", "layer1\n64"]
    for i, line in enumerate(axis.lines[:series]):
        assert line.get_ydata() == pytest.approx([30, 25 + 5 * i]) and line.get_label() == f"m{i}"
    assert axis.lines[-1].get_ydata()[0] == 10 and axis.texts[0].get_text() == "guessing"
    assert len(set(looks(axis)[:series])) == series
    plain = portraits.layers(rows).axes[0]
    assert [tick.get_text() for tick in plain.get_xticklabels()] == ["pixels", "layer1"]


@pytest.mark.parametrize("series", [1, 7])
def test_invariances_draws_the_median_and_the_middle_half(series):
    row = {"crop": {"q25": 0.1, "median": 0.2, "q75": 0.5}, "hue": {"q25": 0.0, "median": 0.0, "q75": 0.0}}
    (axis,) = portraits.invariances({f"m{i}": row for i in range(series)}, most=120).axes
    assert axis.get_xlabel() == "distance moved (% of the distance between different images)"
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["crop", "hue"]
    assert axis.get_xlim() == (0, 120) and axis.get_ylim() == (1.5, -0.5)
    dots = [line for line in axis.lines if line.get_label()[0] != "_"]
    assert len(dots) == len(axis.collections) == series
    heights = set()
    for dot, lines in zip(dots, axis.collections, strict=True):
        assert list(dot.get_xdata()) == [20, 0]
        first = lines.get_segments()[0]
        assert first[:, 0].tolist() == [10, 50] and first[0, 1] == dot.get_ydata()[0]
        assert [round(y) for y in dot.get_ydata()] == [0, 1]  # within the row of its change
        heights.add(float(dot.get_ydata()[0]))
    assert len(heights) == series  # side by side


def test_heatmaps_are_shares_of_their_own_greatest_value_over_a_grey_photograph():
    images = noise(2, 3, 6, 6)
    maps = {"occlusion": torch.rand(2, 3, 3), "gradient": torch.zeros(2, 6, 6)}
    figure = portraits.heatmaps(images, maps, ["tench", "church"])
    *axes, bar = figure.axes
    assert len(axes) == 6 and [axes[i].get_ylabel() for i in (0, 2, 4)] == ["photograph", *maps]
    assert [axes[i].get_title() for i in (0, 1)] == ["tench", "church"]
    assert torch.allclose(shown(axes[1]), images[1] / 255)
    under, over = axes[2].images
    colours = torch.as_tensor(under.get_array().copy())
    assert torch.allclose(colours[..., 0], colours[..., 2])  # grey
    assert torch.allclose(
        torch.as_tensor(over.get_array().data), maps["occlusion"][0] / maps["occlusion"][0].max()
    )
    assert over.get_clim() == (0, 1) and list(over.get_extent()) == list(under.get_extent())
    assert not axes[4].images[1].get_array().any() and "greatest value" in bar.get_ylabel()
