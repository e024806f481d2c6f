"""Shapes: the embedded dataset. Ten classes of drawn pictures, no download, the same on every run.

A class is a form and a texture together: two classes are discs, four are plain, and only the pair tells them
apart. Everything else is drawn at random: place, scale, rotation, light, background. Short cuts are shut:

- All images share one palette. By colours of its own, instance discrimination would tell an image from every
  other, and would learn no form.
- A texture is cut through to the ground, so that a histogram holds the same few colours for every class, and
  the exposure varies more than the classes differ in painted area.
- Objects lie anywhere, turned and lit at random, so that comparing pixels does not find their like.
"""

import operator

import numpy as np
from numpy import ndarray

# Local coordinates of a batch, x and y (n, H, W): the object's centre is (0, 0), its half-extent about 1, y
# points down. A form is a signed distance in these units: negative inside, zero on the outline.


def _polygon(x: ndarray, y: ndarray, corners: ndarray) -> ndarray:
    """Signed distance to a closed polygon: the nearest edge, negative where an even-odd ray says inside."""
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
    angle, radius = 2 * np.pi * np.arange(count) / count, np.resize(radii, count)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1).astype(np.float32)


def _bar(x: ndarray, y: ndarray) -> ndarray:
    return np.maximum(np.abs(x) - 1, np.abs(y) - 0.36)


# The heart x = 16 sin³ t, y = 13 cos t − 5 cos 2t − 2 cos 3t − cos 4t, in sixteenths
_T = 2 * np.pi * np.arange(28) / 28
_UP = 13 * np.cos(_T) - 5 * np.cos(2 * _T) - 2 * np.cos(3 * _T) - np.cos(4 * _T)
_HEART = np.stack([np.sin(_T) ** 3, -(_UP + 2.5) / 16], axis=1).astype(np.float32)
_DIAGONAL = np.float32([[0.7071, 0.7071], [-0.7071, 0.7071]])  # an eighth of a turn
_FORMS = {
    "disc": lambda x, y: np.hypot(x, y) - 0.74,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.78) - 0.15,
    "square": lambda x, y: _polygon(x, y, _corners([1.2], 4) @ _DIAGONAL),
    "triangle": lambda x, y: _polygon(x, y, _corners([1.2], 3)),
    "star": lambda x, y: _polygon(x, y, _corners([1.15, 0.46], 10)),
    "cross": lambda x, y: np.minimum(_bar(x, y), _bar(y, x)),  # the union of two bars
    "heart": lambda x, y: _polygon(x, y, _HEART),
}

# A texture is the share (0 to 1) that is cut away at a point; its edges are softened over one pixel, whose
# width in local units is `pixel`, like the outline.


def _soft(distance: ndarray, pixel: ndarray) -> ndarray:
    """Coverage of a pixel by the inside of an outline at this signed distance: 1 inside, 0 outside."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def _stripes(x: ndarray, period: float, pixel: ndarray) -> ndarray:
    """A grating with equal bars and gaps."""
    return _soft((np.abs(np.mod(x / period, 1) - 0.5) - 0.25) * period, pixel)


def _checks(x: ndarray, y: ndarray, pixel: ndarray) -> ndarray:
    across, down = _stripes(x, 0.8, pixel), _stripes(y, 0.8, pixel)
    return across + down - 2 * across * down


def _dots(x: ndarray, y: ndarray, pixel: ndarray) -> ndarray:
    period = 0.52
    u, v = np.mod(x, period) - period / 2, np.mod(y, period) - period / 2
    return _soft(np.hypot(u, v) - 0.17, pixel)


_TEXTURES = {"plain": lambda x, y, pixel: np.zeros_like(x), "checked": _checks, "dotted": _dots}
_TEXTURES["striped"] = lambda x, y, pixel: _stripes(y, 0.5, pixel)

# A class is a texture and a form.
CLASSES = ("plain disc", "dotted disc", "striped square", "checked square", "plain triangle")
CLASSES += ("striped triangle", "plain ring", "plain star", "dotted heart", "checked cross")

# The shared palette, RGB in [0, 1].
FOREGROUND = np.float32([(0.98, 0.70, 0.22), (0.42, 0.76, 0.98), (0.96, 0.50, 0.52), (0.55, 0.86, 0.52)])
BACKGROUND = np.float32([(0.26, 0.28, 0.41), (0.41, 0.33, 0.32), (0.25, 0.39, 0.38), (0.38, 0.30, 0.43)])

_CLOUDS = 4  # the side of the grid that the background's clouds are made of
_CHUNK = 200  # images drawn at once: keeps each working array at a few megabytes


def _paint(labels: ndarray, chance: ndarray, clouds: ndarray, size: int) -> ndarray:
    """Pictures from their labels (n,) and their random numbers in [0, 1). → uint8 (n, size, size, 3)

    Places, light and exposure vary enough to defeat pixels and histograms; the clouds stay faint, because to
    instance discrimination they are a name tag on every image."""
    fore = FOREGROUND[(chance[:, 0] * len(FOREGROUND)).astype(int)]  # (n, 3)
    back = BACKGROUND[(chance[:, 1] * len(BACKGROUND)).astype(int)]  # (n, 3)
    column = chance.T.astype(np.float32)[:, :, None, None]  # ten of (n, 1, 1)
    scale = 0.36 + 0.34 * column[2]  # the object's half-extent, in half picture sides
    room = 1 - 0.6 * scale  # at least this share of its half-extent stays inside the picture
    centre_x, centre_y = (2 * column[3] - 1) * room, (2 * column[4] - 1) * room
    turn = (2 * column[5] - 1) * (np.pi / 6)
    light = 2 * np.pi * column[6]
    phase_x, phase_y = column[7], column[8]  # where the texture begins
    exposure = 1 - 0.4 * column[9]

    # Picture coordinates in [-1, 1], then the object's own: shifted, turned, scaled.
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    px, py = grid[None, None, :], grid[None, :, None]
    cos, sin = np.cos(turn), np.sin(turn)
    x = ((px - centre_x) * cos + (py - centre_y) * sin) / scale  # (n, size, size)
    y = ((py - centre_y) * cos - (px - centre_x) * sin) / scale
    pixel = 2 / (size * scale)  # one pixel in local units

    distance, cut = np.empty_like(x), np.empty_like(x)
    for label, name in enumerate(CLASSES):
        texture, form = name.split()
        rows = labels == label
        if rows.any():
            distance[rows] = _FORMS[form](x[rows], y[rows])
            cut[rows] = _TEXTURES[texture](x[rows] + phase_x[rows], y[rows] + phase_y[rows], pixel[rows])
    object_share = _soft(distance, pixel) * (1 - cut)

    # Light: a gradient over the whole picture, a darker rim on the object, a soft shadow on the ground.
    lamp = exposure * (1 + 0.2 * (np.cos(light) * px + np.sin(light) * py))
    rim = 1 - 0.15 * np.exp(np.minimum(distance, 0) * 8)
    shadow = 1 - 0.2 * np.exp(np.abs(distance) * -8)
    # The clouds' few values become pixels by cosine interpolation, a matrix (size, _CLOUDS).
    place = (np.arange(size) + 0.5) / size * (_CLOUDS - 1)
    away = np.clip(np.abs(place[:, None] - np.arange(_CLOUDS)), 0, 1)
    weights = (0.5 + 0.5 * np.cos(np.pi * away)).astype(np.float32)
    noise = weights @ (2 * clouds.astype(np.float32) - 1) @ weights.T  # (n, size, size)
    on_object = object_share * rim * lamp
    on_ground = (1 - object_share) * shadow * (1 + 0.1 * noise) * lamp
    colour = on_object[..., None] * fore[:, None, None] + on_ground[..., None] * back[:, None, None]
    return np.clip(colour * 255 + 0.5, 0, 255).astype(np.uint8)


def draw(count: int, size: int = 64, seed: int = 0) -> tuple[ndarray, ndarray]:
    """Draw the first `count` pictures of the endless series that `seed` names: 0 for training, 1 for testing.
    Returns images, uint8 (count, size, size, 3), RGB in 0..255, and labels, int64 (count,), indices into
    `CLASSES`. Every ten pictures in a row hold each class once, in an order of their own. Picture i depends
    on the seed and on i alone: a larger `count` only appends, and another `size` shows the same scenes at
    another resolution. TypeError: an argument that is no whole number. ValueError: count < 0, size < 8 or
    seed < 0."""
    for name, value, least in (("count", count, 0), ("size", size, 8), ("seed", seed, 0)):
        if not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be a whole number, not {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    count, size, seed = map(operator.index, (count, size, seed))  # NumPy's would overflow
    # Three streams, each read row by row, so that the rows of the first images do not depend on `count`.
    order, scene, weather = (np.random.default_rng([seed, stream]) for stream in range(3))
    blocks = -(-count // len(CLASSES))
    labels = order.random((blocks, len(CLASSES))).argsort(axis=1).reshape(-1)[:count].astype(np.int64)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        some = labels[start : start + _CHUNK]
        chance, clouds = scene.random((len(some), 10)), weather.random((len(some), _CLOUDS, _CLOUDS))
        images[start : start + _CHUNK] = _paint(some, chance, clouds, size)
    return images, labels
