"""Shapes: the same pictures every time, and honest ones: only their form and texture give the class away."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_lessons import shapes

CHANCE = 10  # per cent, ten balanced classes


# ---- the contract ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(1, 64), (10, 8), (37, 33), (203, 21)])
def test_shape_type_and_range(count, size):
    images, labels = shapes.draw(count, size, seed=3)
    assert images.shape == (count, size, size, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (count,)
    assert labels.dtype == np.int64
    assert labels.min() >= 0
    assert labels.max() < len(shapes.CLASSES)
    assert images.flags.c_contiguous


def test_nothing_asked_for_gives_nothing():
    images, labels = shapes.draw(0, size=16)
    assert images.shape == (0, 16, 16, 3)
    assert labels.shape == (0,)


def test_ten_classes_and_no_form_or_texture_settles_the_class():
    assert len(set(shapes.CLASSES)) == 10
    textures, forms = zip(*(name.split() for name in shapes.CLASSES), strict=True)
    assert all(textures.count(texture) > 1 for texture in textures)
    assert sum(forms.count(form) > 1 for form in forms) >= 6


def test_balanced_at_every_length_and_shuffled():
    labels = shapes.draw(1000, size=8, seed=0)[1]
    assert np.bincount(labels).tolist() == [100] * 10
    assert np.ptp(np.bincount(labels[:123], minlength=10)) <= 1
    orders = {tuple(block) for block in labels.reshape(-1, 10)}
    assert len(orders) > 90  # blocks of ten, nearly all in orders of their own


@pytest.mark.parametrize("name", ["count", "size", "seed"])
@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (2.5, TypeError), ("12", TypeError)])
def test_wrong_arguments_are_named_with_their_value(name, value, error):
    arguments = {"count": 2, "size": 16, "seed": 0} | {name: value}
    with pytest.raises(error, match=name) as raised:
        shapes.draw(**arguments)
    assert repr(value) in str(raised.value)


def test_a_picture_too_small_to_show_a_form_is_refused():
    with pytest.raises(ValueError, match="size must be at least 8, not 7"):
        shapes.draw(1, size=7)


# ---- the same pictures, every time -------------------------------------------------------------------------

DIGEST = """
import hashlib
from ssl_lessons import shapes
images, labels = shapes.draw(230, size=40, seed=7)
print(hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())
"""


def test_the_same_bytes_here_and_in_another_process():
    other = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    np.random.seed(1)  # NumPy's global state must not matter
    images, labels = shapes.draw(230, size=40, seed=7)
    assert other.stdout.strip() == hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def test_a_longer_series_begins_like_a_shorter_one():
    short, short_labels = shapes.draw(57, size=32, seed=5)
    long, long_labels = shapes.draw(431, size=32, seed=5)
    assert np.array_equal(short_labels, long_labels[:57])
    # One level of slack: a vector unit may round the last pixels otherwise in a batch of another length.
    assert np.abs(short.astype(int) - long[:57]).max() <= 1


def test_seeds_draw_different_pictures():
    one, other = shapes.draw(100, size=16, seed=0), shapes.draw(100, size=16, seed=1)
    assert not np.array_equal(one[1], other[1])
    assert not (one[0] == other[0]).all(axis=(1, 2, 3)).any()


def test_another_size_shows_the_same_scenes():
    large, labels = shapes.draw(40, size=96, seed=2)
    small, same = shapes.draw(40, size=32, seed=2)
    assert np.array_equal(labels, same)
    shrunk = large.reshape(40, 32, 3, 32, 3, 3).mean(axis=(2, 4))
    error = np.abs(shrunk - small).mean(axis=(1, 2, 3))
    assert error.max() < 6  # of 255; a neighbour in the series is far away:
    assert np.abs(shrunk - np.roll(small, 1, axis=0)).mean(axis=(1, 2, 3)).mean() > 20


def test_edges_are_antialiased():
    """Along an outline there are pixels between the two colours; without antialiasing a step takes none."""
    images, labels = shapes.draw(200, size=64, seed=0)
    discs = images[labels == shapes.CLASSES.index("plain disc")].astype(float).sum(axis=3)
    step = np.abs(np.diff(discs, axis=2))  # (n, 64, 63)
    whole = np.abs(discs[:, :, 2:] - discs[:, :, :-2])  # across two pixels
    edge = whole > 0.6 * whole.max(axis=(1, 2), keepdims=True)
    partial = np.maximum(step[:, :, 1:], step[:, :, :-1])[edge] < 0.9 * whole[edge]
    assert partial.mean() > 0.5


# ---- honest pictures: 4,000 to learn from, 1,000 to judge by, at 64 px -------------------------------------


@pytest.fixture(scope="module")
def data():
    """Train images, train labels, test images, test labels; images float32 (N, 3, 64, 64) in [0, 1]."""
    parts = []
    for count, seed in ((4000, 0), (1000, 1)):
        images, labels = shapes.draw(count, size=64, seed=seed)
        parts += [torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels)]
    return parts


def weighted_knn(train, train_labels, test, test_labels, k=20, t=0.07):
    """Per cent right of a kNN on cosine similarity, weights exp(similarity / t)."""
    similarity = F.normalize(test, dim=1) @ F.normalize(train, dim=1).T
    near, index = similarity.topk(k, dim=1)
    votes = torch.zeros(len(test), 10).scatter_add_(1, train_labels[index], (near / t).exp())
    return 100 * (votes.argmax(1) == test_labels).float().mean().item()


def small_network(seed):
    torch.manual_seed(seed)
    layers, width = [], 3
    for out, stride in ((16, 2), (32, 1), (64, 1), (96, 1)):
        layers += [nn.Conv2d(width, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if stride == 1 and out < 96 else []
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(memory_format=torch.channels_last)


@torch.no_grad()
def outputs(network, images):
    network.eval()
    return torch.cat([network(part) for part in ((images - 0.45) / 0.225).split(250)])


@pytest.mark.parametrize("bins", [4, 8])
def test_colour_histograms_do_not_tell_the_class(data, bins):
    train, train_labels, test, test_labels = data

    def histogram(images):  # joint over R, G and B: (N, bins³)
        level = (images * (bins - 1e-3)).long().flatten(2)
        cell = (level[:, 0] * bins + level[:, 1]) * bins + level[:, 2]
        return torch.zeros(len(images), bins**3).scatter_add_(1, cell, torch.ones(cell.shape))

    assert weighted_knn(histogram(train), train_labels, histogram(test), test_labels) < 25


def test_pixels_do_not_tell_the_class(data):
    train, train_labels, test, test_labels = data
    assert weighted_knn(train.flatten(1), train_labels, test.flatten(1), test_labels) < 25


def test_a_random_encoder_does_not_tell_the_class(data):
    train, train_labels, test, test_labels = data
    encoder = small_network(seed=0)
    accuracy = weighted_knn(outputs(encoder, train), train_labels, outputs(encoder, test), test_labels)
    assert CHANCE < accuracy < 45


def test_a_supervised_small_network_learns_the_classes(data):
    train, train_labels, test, test_labels = data
    network = small_network(seed=0).append(nn.Linear(96, 10))
    epochs, batch, rate = 4, 50, 6e-3
    steps = epochs * len(train) // batch
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    for _ in range(epochs):
        network.train()
        for index in torch.randperm(len(train)).split(batch):
            views = ((train[index] - 0.45) / 0.225).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(views), train_labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    accuracy = 100 * (outputs(network, test).argmax(1) == test_labels).float().mean().item()
    assert accuracy > 90


def test_whole_numbers_of_numpy_and_torch_draw_the_same():
    images, labels = shapes.draw(250, 16)
    other, same = shapes.draw(np.uint8(250), np.int32(16), torch.tensor(0))
    assert (other == images).all() and (same == labels).all()
