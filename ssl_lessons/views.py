"""Views: what augmentation does to a batch of images, every image with its own random draw.

`views()` draws from a paper's `Policy` (policies.py) and applies it in the order of MoCo v2's official code:
crop and resize, colour jitter, greyscale, blur, solarize (BYOL), flip (earlier here, which moves no value),
normalise. No Python call per image: crop, antialiased resize and flip are `down @ image @ across.T` with two
matrices an image; brightness, contrast and saturation are `clamp(a·x + b·grey(x) + c)`. Blur is linear too,
but follows the colours, which clamp: folded into the matrices it moved 8 % of the blurred values by more than
1/255 (512 photographs, 64 px). Colours are torchvision's on floats.

Letters: B images (b in a piece), H x W stored, S side of a view. A name that ends in `_` works in place.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lessons.images import to_device

# isort: split
from ssl_lessons.policies import (  # noqa: F401, I001  to a reader of a lesson there is one module, views
    BYOL_T, BYOL_T_PRIME, CONTRAST, CROP_ONLY, HUE, MOCO_V1, MOCO_V2, POLICIES, RELATIONAL, SATURATION,
    SIMCLR, SIMSIAM, Draws, Policy, draw,
)  # fmt: skip

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, of values in [0, 1]; used by all the official codes
STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision's rgb_to_grayscale
_GPU_PIXELS = 1024 * 96 * 96  # a GPU's piece, mostly the whole batch: about 110 MB for each float copy of it
_CPU_PIXELS = 48 * 64 * 64  # a CPU's piece: long enough to hide the cost of a call, short enough for cache


def geometry(images: Tensor, draws: Draws, size: int) -> Tensor:
    """Crop, resize with antialiasing and flip: uint8 (B, 3, H, W) -> float32 (B, 3, S, S) in [0, 1]. Equal to
    torchvision's `resized_crop(..., antialias=True)` on floats to 1e-5."""
    source = images.permute(0, 2, 1, 3)  # (B, H, 3, W), as an ImageStore's batches lie in memory
    b, height, _, width = source.shape
    top, left, h, w = to_device(draws.boxes, images.device).float().unbind(1)
    down = _resampling(top, h, height, size, None) / 255  # (B, S, H)
    across = _resampling(left, w, width, size, to_device(draws.flip, images.device))  # (B, S, W)
    narrow = source.reshape(b, height * 3, width).float() @ across.mT  # (B, H·3, S)
    planes = torch.empty(3, b, size, size, device=images.device)
    for plane, channel in zip(planes, narrow.view(b, height, 3, size).unbind(2), strict=True):
        torch.bmm(down, channel, out=plane)
    return planes.clamp_(0, 1).permute(1, 0, 2, 3)  # rounding may leave 1 + 1e-7


def _resampling(start: Tensor, length: Tensor, stored: int, size: int, flip: Tensor | None) -> Tensor:
    """Row i of (B, S, stored): the triangle filter that makes output pixel i of a crop. Shrinking widens the
    triangle (antialiasing); pixels outside the crop weigh nothing; rows sum to one."""
    scale = (length / size)[:, None, None]  # (B, 1, 1) input pixels per output pixel
    i = torch.arange(size, device=start.device) + 0.5
    i = i.expand(len(start), size) if flip is None else torch.where(flip[:, None], size - i, i)  # (B, S)
    j = torch.arange(stored, device=start.device)  # (stored,)
    centre = start[:, None, None] + i[:, :, None] * scale - 0.5
    weight = (1 - (j - centre).abs_().mul_(1 / scale.clamp_min(1))).clamp_min_(0)  # (B, S, stored)
    weight *= ((j >= start[:, None]) & (j < (start + length)[:, None]))[:, None, :]
    return weight.div_(weight.sum(-1, keepdim=True))


def colour_(views: Tensor, draws: Draws) -> Tensor:
    """Colour jitter in each image's own order, and greyscale: float (B, 3, S, S) in [0, 1], in place."""
    planes = views.permute(1, 0, 2, 3)  # (3, B, S, S): of `geometry`, three contiguous pieces of memory
    if not draws.policy.grey_first:
        _jitter_(planes, draws)
    at = to_device(draws.grey.nonzero()[:, 0], views.device)
    if len(at):
        grey = _grey(planes.index_select(1, at))
        planes.index_copy_(1, at, grey.expand(3, *grey.shape))
    if draws.policy.grey_first:
        _jitter_(planes, draws)
    return views


def _grey(planes: Tensor) -> Tensor:
    grey = planes[0] * LUMA[0]  # (b, S, S)
    return grey.add_(planes[1], alpha=LUMA[1]).add_(planes[2], alpha=LUMA[2])


def _jitter_(planes: Tensor, draws: Draws) -> None:
    at = draws.jitter.nonzero()[:, 0]  # (n,) the images that are jittered
    if not len(at):
        return
    # Sorted by how many operations come before hue, 0 … 3: the images whose hue turns next are then a slice.
    before_hue = (draws.order[at] == HUE).int().argmax(1)
    bounds = [0, *torch.bincount(before_hue, minlength=4).cumsum(0).tolist()]
    at = at[before_hue.argsort(stable=True)]
    order, factors = draws.order[at], draws.factors[at]  # (n, 4)
    others = order[order != HUE].view(-1, 3)  # brightness, contrast and saturation in their order
    factor = factors.gather(1, others)  # (n, 3)

    device = planes.device
    a = to_device(factor, device)[:, :, None, None]
    to_mean = to_device((1 - factor) * (others == CONTRAST), device)[:, :, None, None]
    to_grey = to_device((1 - factor) * (others == SATURATION), device)[:, :, None, None]
    turns = to_device(factors[:, HUE], device)[:, None, None]
    at = to_device(at, device)
    jittered = planes.index_select(1, at)  # (3, n, S, S)
    for step in range(4):
        turning = slice(bounds[step], bounds[step + 1])
        if draws.policy.jitter[HUE] and bounds[step] < bounds[step + 1]:
            _hue_(jittered[:, turning], turns[turning])
        if step < 3:  # brightness a·x, contrast a·x + (1 - a)·mean(grey), saturation a·x + (1 - a)·grey
            grey = _grey(jittered)  # (n, S, S)
            mean = grey.mean((1, 2), keepdim=True) * to_mean[:, step]
            grey.mul_(to_grey[:, step]).add_(mean)
            jittered.mul_(a[:, step]).add_(grey).clamp_(0, 1)
    planes.index_copy_(1, at, jittered)


def _hue_(planes: Tensor, turns: Tensor) -> None:
    """Turn the hue by `turns` (b, 1, 1), of which 1 is once around; value and saturation stay (HSV)."""
    r, g, b = planes
    value = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = value - low
    # in sixths of a turn from red, times chroma; red wins ties, then green, as in torchvision
    hue = torch.where(value == g, b - r + 2 * chroma, r - g + 4 * chroma)
    hue = torch.where(value == r, g - b, hue)
    hue = hue.div_(chroma.clamp_min(1e-12)).add_(6 * turns)  # grey pixels: 0 / 1e-12
    hue -= 6 * (hue / 6).floor_()  # [0, 6]
    # A colour is full within a sixth of its own hue and fades over the next: red |hue - 3| - 1 of the chroma,
    # green 2 - |hue - 2|, blue 2 - |hue - 4|.
    for plane, centre, sign, offset in ((r, 3, 1, -1), (g, 2, -1, 2), (b, 4, -1, 2)):
        ramp = (hue - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(low, chroma, ramp, out=plane)


def blur_radius(policy: Policy, size: int) -> int:
    """Taps on each side of the centre for a view of `size` pixels: half the kernel's width, or four sigma of
    the widest Gaussian; never more than a reflected border can give."""
    wide = math.ceil(4 * policy.blur_sigma[1])
    return min(size - 1, wide if policy.blur_kernel is None else int(policy.blur_kernel * size) // 2)


def blur_(views: Tensor, draws: Draws) -> Tensor:
    """Gaussian blur, borders reflected, of the images that drew it: float (B, 3, S, S), in place."""
    device, size = views.device, views.shape[-1]
    radius = blur_radius(draws.policy, size)
    at = draws.blur.nonzero()[:, 0]
    if not len(at) or not radius:
        return views
    distance = torch.arange(radius + 1)
    kernel = torch.exp(-0.5 * (distance / draws.sigma[at, None]) ** 2)  # (b, radius + 1): its right half
    kernel /= kernel[:, :1] + 2 * kernel[:, 1:].sum(1, keepdim=True)
    matrix = (to_device(kernel, device) @ _taps(size, radius, device)).view(-1, size, size)
    at = to_device(at, device)
    for plane in views.unbind(1):  # (B, S, S)
        plane.index_copy_(0, at, matrix @ plane.index_select(0, at) @ matrix.mT)
    return views


@lru_cache(maxsize=8)
def _taps(size: int, radius: int, device: torch.device) -> Tensor:
    """(radius + 1, S·S): entry t holds where the kernel's weight at distance t falls in an S x S blur matrix
    whose borders reflect (the edge pixel is not repeated)."""
    reflected = F.pad(torch.eye(size)[None], (radius, radius), mode="reflect")[0].T  # (S + 2·radius, S)
    at = [reflected[start : start + size] for start in range(2 * radius + 1)]  # pixels -radius … radius away
    pairs = zip(at[radius + 1 :], reversed(at[:radius]), strict=True)  # distance 1, 2, …
    return torch.stack([at[radius], *(one + other for one, other in pairs)]).flatten(1).to(device)


def solarize_(views: Tensor, draws: Draws) -> Tensor:
    """Invert the values at or above the threshold, in the images that drew it: (B, 3, S, S), in place."""
    at = to_device(draws.solarize.nonzero()[:, 0], views.device)
    if len(at):
        part = views.index_select(0, at)
        views.index_copy_(0, at, torch.where(part >= draws.policy.solarize_threshold, 1 - part, part))
    return views


def apply(images: Tensor, draws: Draws, size: int) -> Tensor:
    """The whole of a policy with these draws: uint8 (B, 3, H, W) -> normalised (B, 3, S, S), channels-last.
    There may be several draws for each image, K·B in all: draw i is for image i mod B, and the result is
    (K·B, 3, S, S). It is float32, under autocast too: bfloat16's steps above 0.5 are as wide as 1/255, and
    hue divides small differences. ValueError: other images, or draws that do not fit them."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} {shape}; give uint8 (B, 3, H, W)")
    if not len(images) or len(draws) % len(images) or draws.source_size != shape[2:]:
        raise ValueError(f"draws are for {len(draws)} images of {draws.source_size}, not {shape}; draw again")
    if size < 1:
        raise ValueError(f"size is {size}; give the side of a view in pixels, >= 1")
    device, source = images.device, images.permute(0, 2, 1, 3)  # (B, H, 3, W)
    scale = 1 / _constant(STD, device)
    shift = -_constant(MEAN, device) * scale
    with torch.inference_mode(False):  # the result is an ordinary tensor, wherever it is made
        out = torch.empty(len(draws), size, size, 3, device=device)
    # In pieces: on a CPU they stay in cache, and on a GPU the many views of lesson 04 do not fill its memory.
    length = max(1, (_CPU_PIXELS if device.type == "cpu" else _GPU_PIXELS) // size**2)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for start in range(0, len(draws), length):
            part = draws[start : start + length]
            rows = torch.arange(start, start + len(part), device=device) % len(images)
            piece = source.index_select(0, rows).permute(0, 2, 1, 3)  # (b, 3, H, W)
            views = geometry(piece, part, size)  # (b, 3, S, S)
            for step in (colour_, blur_, solarize_):
                step(views, part)
            views.mul_(scale).add_(shift)
            out[start : start + length] = views.permute(0, 2, 3, 1)
    return out.permute(0, 3, 1, 2)


def views(images: Tensor, policy: Policy, generator: torch.Generator | None = None, size: int = 64) -> Tensor:
    """One random view of every image: uint8 (B, 3, H, W) -> normalised float32 (B, 3, S, S), channels-last,
    on the images' device. The same state of the (CPU) generator gives the same draws on every device."""
    return several(images, [policy], generator, size)[0]


def several(
    images: Tensor, policies: Sequence[Policy], generator=None, size: int = 64, share=(0, 1)
) -> list[Tensor]:
    """`views` once for each of `policies`, with the same draws. Neighbours of one policy share a pass: the K
    views of relational reasoning cost one call, and no K copies of the images. `share` (i, n): the images
    are the i-th of n equal parts of a batch, and get that part of its draws."""
    result: list[Tensor] = []
    count, (i, n) = len(images), share
    for policy, neighbours in groupby(policies):
        batches = [draw(policy, n * count, *images.shape[-2:], generator) for _ in neighbours]
        draws = Draws.joined([batch[i * count : (i + 1) * count] for batch in batches])
        result += apply(images, draws, size).split(count)
    return result


def centre(images: Tensor, size: int) -> Tensor:
    """The view for evaluation: the whole image resized to S x S, the same normalisation, nothing random."""
    draws = draw(CROP_ONLY, len(images), *images.shape[-2:], torch.Generator())
    box = torch.tensor([0, 0, *images.shape[-2:]]).expand(len(images), 4)
    return apply(images, replace(draws, boxes=box, flip=torch.zeros_like(draws.flip)), size)


def normalize(views: Tensor) -> Tensor:
    """(…, 3, S, S) in [0, 1] -> zero mean and unit deviation over ImageNet."""
    return (views - _constant(MEAN, views.device, views.dtype)) / _constant(STD, views.device, views.dtype)


def unnormalize(views: Tensor) -> Tensor:
    """The inverse of `normalize`, clamped to [0, 1]; for figures."""
    mean, std = _constant(MEAN, views.device, views.dtype), _constant(STD, views.device, views.dtype)
    return (views * std + mean).clamp(0, 1)


def in_channels(views: Tensor, channels: int) -> Tensor:
    """(…, 3, S, S) as the network takes it: as it is, or for one channel its luma (…, 1, S, S)."""
    if channels == 3:
        return views
    return (views * _constant(LUMA, views.device, views.dtype)).sum(-3, keepdim=True)


@lru_cache(maxsize=16)
def _constant(values: tuple[float, ...], device: torch.device, dtype=torch.float32) -> Tensor:
    """One number for each colour channel, (3, 1, 1); kept, because sending it makes a host wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype).view(3, 1, 1)
