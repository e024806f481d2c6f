"""A short run of every method on Shapes ends well above the encoder that it started from.

On the recipes `short`, but for what minutes are too short for: small batches, and an augmentation that draws
all anew that is not a class of Shapes. Classes are a form and a texture; so turn, size, place, colours and
exposure are drawn again for each view, and what two views of an image share is its class and little more.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_lessons import BYOL, MoCo, Relational, SimCLR, SimSiam, evaluate, networks, pretrain, shapes
from ssl_lessons.images import ImageStore

STORED, VIEW = 40, 32  # pixels
RUNS = {  # method: epochs, batch, and fields of its recipe
    SimCLR: (4, 50, {}),
    MoCo: (4, 50, {"queue": 500}),
    Relational: (4, 50, {}),
    BYOL: (10, 32, {}),
    SimSiam: (12, 32, {}),
}


@pytest.fixture(scope="module")
def stores() -> list[ImageStore]:
    drawn = [shapes.draw(count, STORED, seed) for seed, count in enumerate((1500, 500))]
    return [
        ImageStore(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(labels),
            shapes.CLASSES,
            "shapes",
            "drawn",
            str(len(images)),
        )
        for images, labels in drawn
    ]


def anew(images: torch.Tensor) -> torch.Tensor:
    """Float (B, 3, H, W) in [0, 1] -> (B, 3, VIEW, VIEW): another turn, size, place, colours and exposure."""
    count = len(images)
    angle, zoom = 2 * math.pi * torch.rand(count), 0.7 + 0.5 * torch.rand(count)
    cos, sin, mirror = zoom * angle.cos(), zoom * angle.sin(), 2.0 * torch.randint(2, (count,)) - 1
    place = 0.3 * torch.rand(2, count) - 0.15
    rows = (torch.stack([cos * mirror, -sin, place[0]], 1), torch.stack([sin * mirror, cos, place[1]], 1))
    grid = F.affine_grid(torch.stack(rows, dim=1), [count, 3, VIEW, VIEW], align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    mix = torch.rand(count, 3, 3)  # each colour a mixture of the three
    x = torch.einsum("bij,bjhw->bihw", mix / mix.sum(dim=2, keepdim=True), x)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    contrast = 0.4 + 0.6 * torch.rand(count, 1, 1, 1)
    x = (x - low) / (high - low).clamp_min(0.1) * contrast + (1 - contrast) * torch.rand(count, 1, 1, 1)
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, x, 1 - x).clamp(0, 1)


def knn(encoder, stores) -> float:
    train, test = (evaluate.features(encoder, store, VIEW, "cpu") for store in stores)
    return (evaluate.knn(train, stores[0].labels, test) == stores[1].labels).float().mean().item()


@pytest.mark.parametrize("method", RUNS, ids=lambda method: method.__name__)
def test_a_short_run_ends_15_points_of_knn_above_the_random_encoder(method, stores):
    epochs, batch, fields = RUNS[method]
    torch.manual_seed(0)
    m = method(networks.conv4(), image_size=VIEW, recipe="short", augment=anew, **fields)
    random = knn(m.encoder, stores)
    settings = {"device": "cpu", "precision": "fp32", "progress": "none"}
    pretrain(m, stores[0], epochs=epochs, batch_size=batch, **settings)
    assert knn(m.encoder, stores) >= random + 0.15
