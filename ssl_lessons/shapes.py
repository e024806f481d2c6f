"""Shapes: the embedded dataset. Ten classes of drawn pictures, no download, the same on every run.

A class is a form and a texture together: two classes are discs, four are plain, and only the pair tells them
apart. Everything else is drawn at random: place, scale, rotation, light, background. Colours come from one
palette that all images share. That is deliberate: with colours of its own, an image could be told from every
other by colour alone, and instance discrimination would learn exactly that and no form.

The file goes from the parts to the whole: forms, textures, the random numbers of an image, the picture.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
from numpy import ndarray

# Local coordinates: the object's centre is (0, 0), its half-extent about 1, y points down. A form is a signed
# distance function: negative inside, zero on the outline, positive outside, in the same local units. One
# function serves a whole batch, because x and y are arrays (n, H, W).


def _polygon(x: ndarray, y: ndarray, corners: ndarray) -> ndarray:
    """Signed distance to a closed polygon: the nearest edge, negative where an even-odd ray test says inside."""
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ey != 0:
            inside ^= ((y >= ay) != (y >= by)) & (x < ax + (y - ay) * (ex / ey))
    return np.where(inside, -1, 1).astype(x.dtype) * np.sqrt(nearest)


def _corners(radii: list[float], count: int) -> ndarray:
    """`count` corners around the centre, the first at the top, with the given radii in turn. (count, 2)"""
    angle = 2 * np.pi * np.arange(count) / count
    radius = np.resize(radii, count)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1).astype(np.float32)


def _disc(x: ndarray, y: ndarray) -> ndarray:
    return np.hypot(x, y) - np.float32(0.88)


def _ring(x: ndarray, y: ndarray) -> ndarray:
    return np.abs(np.hypot(x, y) - np.float32(0.72)) - np.float32(0.24)


def _square(x: ndarray, y: ndarray) -> ndarray:
    return _polygon(x, y, _corners([1.12], 4) @ np.float32([[0.7071, 0.7071], [-0.7071, 0.7071]]))


def _triangle(x: ndarray, y: ndarray) -> ndarray:
    return _polygon(x, y, _corners([1.15], 3))


def _star(x: ndarray, y: ndarray) -> ndarray:
    return _polygon(x, y, _corners([1.15, 0.46], 10))


def _cross(x: ndarray, y: ndarray) -> ndarray:
    w, r = 0.36, 1.0
    arm = [
        (-w, -r),
        (w, -r),
        (w, -w),
        (r, -w),
        (r, w),
        (w, w),
        (w, r),
        (-w, r),
        (-w, w),
        (-r, w),
        (-r, -w),
        (-w, -w),
    ]
    return _polygon(x, y, np.float32(arm))


def _heart(x: ndarray, y: ndarray) -> ndarray:
    """Two discs above a rounded tip: the outline x = 16 sin³t, y = 13 cos t − 5 cos 2t − 2 cos 3t − cos 4t."""
    t = 2 * np.pi * np.arange(28) / 28
    across = 16 * np.sin(t) ** 3
    up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _polygon(x, y, np.stack([across / 16, -(up + 2.5) / 16], axis=1).astype(np.float32))


# A texture is the share (0 to 1) of the second tone at a point. `pixel` is a pixel's width in local units: edges
# inside the texture are softened over one pixel, like the outline.


def _soft(distance: ndarray, pixel: ndarray) -> ndarray:
    """Coverage of a pixel by the inside of an outline at this signed distance: 1 inside, 0 outside."""
    return np.clip(np.float32(0.5) - distance / pixel, 0, 1)


def _wave(x: ndarray, period: float) -> ndarray:
    """Signed distance to the nearest stripe of a grating with equal bars and gaps."""
    return (np.abs(np.mod(x / np.float32(period), 1) - np.float32(0.5)) - np.float32(0.25)) * np.float32(
        period
    )


def _plain(x: ndarray, y: ndarray, pixel: ndarray) -> ndarray:
    return np.zeros_like(x)


def _stripes(x: ndarray, y: ndarray, pixel: ndarray) -> ndarray:
    return _soft(_wave(y, 0.5), pixel)


def _checks(x: ndarray, y: ndarray, pixel: ndarray) -> ndarray:
    across, down = _soft(_wave(x, 0.8), pixel), _soft(_wave(y, 0.8), pixel)
    return across + down - 2 * across * down


def _dots(x: ndarray, y: ndarray, pixel: ndarray) -> ndarray:
    period, radius = np.float32(0.52), np.float32(0.17)
    u, v = np.mod(x, period) - period / 2, np.mod(y, period) - period / 2
    return _soft(np.hypot(u, v) - radius, pixel)


_Form = Callable[[ndarray, ndarray], ndarray]
_Texture = Callable[[ndarray, ndarray, ndarray], ndarray]
_KINDS: dict[str, tuple[_Form, _Texture]] = {
    "plain disc": (_disc, _plain),
    "dotted disc": (_disc, _dots),
    "striped square": (_square, _stripes),
    "checked square": (_square, _checks),
    "plain triangle": (_triangle, _plain),
    "striped triangle": (_triangle, _stripes),
    "plain ring": (_ring, _plain),
    "plain star": (_star, _plain),
    "dotted heart": (_heart, _dots),
    "checked cross": (_cross, _checks),
}
CLASSES: tuple[str, ...] = tuple(_KINDS)

# The shared palette, RGB in [0, 1].
FOREGROUND = np.float32([(0.90, 0.62, 0.10), (0.33, 0.68, 0.92), (0.88, 0.40, 0.42), (0.45, 0.78, 0.45)])
BACKGROUND = np.float32([(0.22, 0.24, 0.34), (0.36, 0.30, 0.28), (0.22, 0.34, 0.34), (0.34, 0.28, 0.38)])

_TEXTURE = np.float32(0.55)  # how far the second tone goes from the foreground towards black
_NOISE = np.float32(0.25)  # strength of the background's clouds, relative to its colour
_CLOUDS = 5  # the clouds are a 5 × 5 grid of random values, smoothly interpolated
_CHUNK = 200  # images drawn at once: keeps the working arrays at a few megabytes each


def _interpolation(size: int) -> ndarray:
    """Smooth (cosine) interpolation of the `_CLOUDS` grid values to `size` pixels, as a matrix. (size, grid)"""
    at = (np.arange(size) + 0.5) / size * (_CLOUDS - 1)
    away = np.clip(np.abs(at[:, None] - np.arange(_CLOUDS)), 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * away)).astype(np.float32)


def _paint(labels: ndarray, chance: ndarray, clouds: ndarray, size: int) -> ndarray:
    """Pictures from their labels (n,) and their random numbers in [0, 1). → uint8 (n, size, size, 3)"""
    column = [c[:, None, None] for c in chance.T.astype(np.float32)]  # each (n, 1, 1)
    fore = FOREGROUND[(chance[:, 0] * len(FOREGROUND)).astype(int)]  # (n, 3)
    back = BACKGROUND[(chance[:, 1] * len(BACKGROUND)).astype(int)]  # (n, 3)
    scale = 0.42 + 0.26 * column[2]  # half-extent of the object, in half picture sides
    room = 1 - 0.85 * scale  # a corner may leave the picture, the object may not
    centre_x, centre_y = (2 * column[3] - 1) * room, (2 * column[4] - 1) * room
    turn = (2 * column[5] - 1) * np.float32(np.pi / 4)
    light = 2 * np.float32(np.pi) * column[6]

    # Picture coordinates in [-1, 1], then the object's own: shifted, turned, scaled.
    grid = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    px, py = grid[None, None, :], grid[None, :, None]
    cos, sin = np.cos(turn), np.sin(turn)
    x = ((px - centre_x) * cos + (py - centre_y) * sin) / scale  # (n, size, size)
    y = ((py - centre_y) * cos - (px - centre_x) * sin) / scale
    pixel = 2 / (size * scale)  # one pixel in local units

    distance, tone = np.empty_like(x), np.empty_like(x)
    for label, (form, texture) in enumerate(_KINDS.values()):
        mine = labels == label
        if mine.any():
            distance[mine] = form(x[mine], y[mine])
            shifted_x, shifted_y = x[mine] + column[7][mine], y[mine] + column[8][mine]
            tone[mine] = texture(shifted_x, shifted_y, pixel[mine])

    # Light: a gradient over the whole picture, a rim where the object falls away, a soft shadow around it.
    ramp = np.cos(light) * px + np.sin(light) * py
    rim = 1 - np.float32(0.25) * np.exp(np.minimum(distance, 0) * 8)
    shadow = 1 - np.float32(0.35) * np.exp(np.maximum(distance, 0) * -5)
    weights = _interpolation(size)
    noise = weights @ (2 * clouds.astype(np.float32) - 1) @ weights.T  # (n, size, size)

    inside = _soft(distance, pixel)
    on_object = inside * (1 - _TEXTURE * tone) * rim * (1 + np.float32(0.2) * ramp)
    on_ground = (1 - inside) * (1 + _NOISE * noise) * shadow * (1 + np.float32(0.1) * ramp)
    picture = np.empty((*x.shape, 3), dtype=np.uint8)
    for c in range(3):
        value = on_object * fore[:, c, None, None] + on_ground * back[:, c, None, None]
        picture[..., c] = np.clip(value * 255 + np.float32(0.5), 0, 255)
    return picture


def _whole(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def draw(count: int, size: int = 64, seed: int = 0) -> tuple[ndarray, ndarray]:
    """Draw the first `count` pictures of the endless series that `seed` names.

    Returns images, uint8 (count, size, size, 3), RGB in 0..255, and labels, int64 (count,), indices into
    `CLASSES`. Every ten pictures in a row hold each class once, in an order of their own. Picture i depends on
    the seed and on i alone: a larger `count` only appends, and another `size` shows the same scenes at another
    resolution. By convention seed 0 is for training and seed 1 for testing.

    Raises TypeError for arguments that are not whole numbers, ValueError for count < 0, size < 8 or seed < 0.
    """
    count, size, seed = _whole("count", count, 0), _whole("size", size, 8), _whole("seed", seed, 0)
    # Three streams, each read row by row, so that the rows of the first images do not depend on `count`.
    order, scene, weather = (np.random.default_rng([seed, stream]) for stream in range(3))
    blocks = -(-count // len(CLASSES))
    labels = order.random((blocks, len(CLASSES))).argsort(axis=1).reshape(-1)[:count].astype(np.int64)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        some = slice(start, min(start + _CHUNK, count))
        rows = some.stop - some.start
        chance, clouds = scene.random((rows, 9)), weather.random((rows, _CLOUDS, _CLOUDS))
        images[some] = _paint(labels[some], chance, clouds, size)
    return images, labels
