"""Exercise 10.3, a view of your own: its solution, cases, and known mistakes."""

import torch
import torch.nn.functional as F


def small(pixels, size):
    return F.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 1)


def view_by(flip, coins=None, shrink=small):
    """A view with one thing done otherwise."""

    def view_of(pixels, size):
        view = shrink(pixels, size)
        coin = coins(view) if coins else torch.rand(len(view), 1, 1, 1) < 0.5
        return torch.where(coin, flip(view), view)

    return view_of


mirror = lambda view: view.flip(-1)  # noqa: E731
view_mistakes = {
    "one coin for the whole batch: each image should throw its own": (
        view_by(mirror, lambda view: torch.rand(1, 1, 1, 1) < 0.5)
    ),
    "flip(-2) turns the picture upside down; left to right is the last axis": (
        view_by(lambda view: view.flip(-2))
    ),
    "flip(0) changes the order of the images, not the images": view_by(lambda view: view.flip(0)),
    "flip(1) changes the order of the colours, red for blue": view_by(lambda view: view.flip(1)),
    "every image is mirrored: the network would never see one as it is": (
        view_by(mirror, lambda view: torch.ones(len(view), 1, 1, 1, dtype=torch.bool))
    ),
    "no image is mirrored": view_by(lambda view: view),
    "each pixel throws a coin: half of each picture comes from its mirror image": (
        view_by(mirror, lambda view: torch.rand_like(view) < 0.5)
    ),
    "the corner was cut out: the whole image should be resized": (
        view_by(mirror, shrink=lambda pixels, size: pixels[:, :, :size, :size])
    ),
    "the values are in 0 to 255; stay in [0, 1]": (
        view_by(mirror, shrink=lambda pixels, size: 255 * small(pixels, size))
    ),
}


def view_case(seed):
    return torch.rand(64, 3, 40, 40, generator=torch.Generator().manual_seed(seed)), (16, 20, 24)[seed]


def what_each_image_became(view, pixels, size):
    """(how many are whole or mirrored, are both kinds there) and, where not all are, the views themselves."""
    whole = small(pixels, size)
    if view.shape != whole.shape:
        return view
    plain, mirrored = (((view - w).abs().amax(dim=(1, 2, 3)) < 1e-3) for w in (whole, whole.flip(-1)))
    kinds = torch.tensor([int((plain | mirrored).sum()), int(plain.any()), int(mirrored.any())])
    return kinds if kinds[0] == len(view) else torch.cat([kinds.float(), view.sum(dim=(0, 2, 3))])


EXERCISE = {
    "solution": view_by(mirror),
    "case": view_case,
    "mistakes": view_mistakes,
    "observe": what_each_image_became,
}
