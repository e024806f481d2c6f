"""Views: what augmentation does to a batch of images, every image with its own random draw.

`views()` draws from a paper's `Policy` (policies.py) and applies it, in the order in which MoCo v2's official
code composes torchvision's transforms: crop and resize -> colour jitter -> greyscale -> blur -> solarize
(BYOL) -> flip -> normalise. Letters: B images, H x W stored size, S side of a view.

Two facts make a batched engine possible without one Python call per image:

* Crop, antialiased resize and flip are separable linear maps. Per image they fold into a row matrix
  R (S x H) and a column matrix C (S x W): `out = R @ image @ C.T`, two batched matrix products. The flip may
  be folded in here although the papers flip elsewhere: it moves pixels, and every later step treats a pixel
  by its value, its image's mean or a symmetric neighbourhood.
* Brightness, contrast and saturation are all `clamp(a * x + b * grey(x) + c)` with a, b, c per image (a 3 x 4
  colour map), so one pass serves a batch in which every image has its own order. They are NOT multiplied
  into one map: each clamps its result. Hue is a true HSV rotation.

Blur is linear too, but it follows the colours, which are not. Folding it into R and C, before them, was
measured on 512 Imagenette photographs (MoCo v2's policy, 64 px): of the views that blur, 8 % of the values
moved by more than 1/255, the worst by 71/255. So it keeps the official place: two small products of its own,
on the images that drew it. Colour arithmetic is torchvision's on floats; the TensorFlow and JAX originals of
SimCLR and BYOL differ a little (contrast per channel, saturation in HSV), as all PyTorch versions do.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from ssl_lessons.images import sent
from ssl_lessons.policies import (  # noqa: F401  to a reader of a lesson there is one module, views
    BYOL_T,
    BYOL_T_PRIME,
    CONTRAST,
    CROP_ONLY,
    HUE,
    MOCO_V1,
    MOCO_V2,
    POLICIES,
    RELATIONAL,
    SATURATION,
    SIMCLR,
    SIMSIAM,
    Draws,
    Policy,
    draw,
)  # fmt: skip

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, of values in [0, 1]; used by all the official codes
STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision's rgb_to_grayscale
_GPU_PIXELS = 1024 * 96 * 96  # a GPU's piece, mostly the whole batch: about 110 MB for each float copy of it
_PIECE_PIXELS = 48 * 64 * 64  # a CPU's piece: long enough to hide the cost of a call, short enough for cache


def geometry(images: Tensor, draws: Draws, size: int) -> Tensor:
    """Crop, resize with antialiasing and flip: uint8 (B, 3, H, W) -> float32 (B, 3, S, S) in [0, 1].

    Equal to torchvision's `resized_crop(..., antialias=True)` on floats to 1e-5. Fastest where `images` is a
    permuted view of memory laid out (B, H, 3, W), as an ImageStore's batches are."""
    _check(images, draws, size)
    return _geometry(images.permute(0, 2, 1, 3), draws, size).permute(1, 0, 2, 3)


def colour(views: Tensor, draws: Draws) -> Tensor:
    """Colour jitter in each image's own order, and greyscale: float (B, 3, S, S) in [0, 1] -> the same."""
    index = _by_hue(draws)
    planes = _on_planes(_colour_, views[sent(index, views.device)], draws[index])
    return planes[sent(index.argsort(), views.device)]


def blur(views: Tensor, draws: Draws) -> Tensor:
    """Gaussian blur, borders reflected, of the images that drew it: float (B, 3, S, S) -> the same."""
    return _on_planes(_blur_, views, draws)


def solarize(views: Tensor, draws: Draws) -> Tensor:
    """Invert the values at or above the threshold, in the images that drew it: (B, 3, S, S) -> the same."""
    return _on_planes(_solarize_, views, draws)


def apply(images: Tensor, draws: Draws, size: int, dtype: torch.dtype | None = None) -> Tensor:
    """The whole of a policy with these draws: uint8 (B, 3, H, W) -> normalised (B, 3, S, S), channels-last.

    There may be several draws for each image, K·B in all: draw i is for image i mod B, and the result is
    (K·B, 3, S, S). `dtype` (None: float32) is the result's. Inside it is float32 everywhere, under autocast
    too: bfloat16's steps above 0.5 are as wide as 1/255 and hue divides small differences, so half precision
    is safe for the last copy only. A batch goes through in pieces: on a CPU they stay in cache, and on a GPU
    the many views of lesson 04 do not fill its memory."""
    _check(images, draws, size, len(draws) // max(1, len(images)))
    device, source = images.device, images.permute(0, 2, 1, 3)  # (B, H, 3, W)
    scale = 1 / _constant(STD, device)[..., None]
    shift = -_constant(MEAN, device)[..., None] * scale
    with torch.inference_mode(False):  # the result is an ordinary tensor, wherever it is made
        out = torch.empty(len(draws), size, size, 3, dtype=dtype or torch.float32, device=device)

    length = max(1, (_PIECE_PIXELS if device.type == "cpu" else _GPU_PIXELS) // size**2)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for index in _by_hue(draws).split(length):
            part, where = draws[index], sent(index, device)
            planes = _geometry(source.index_select(0, where % len(images)), part, size)  # (3, b, S, S)
            _colour_(planes, part)
            _blur_(planes, part)
            _solarize_(planes, part)
            planes.mul_(scale).add_(shift)
            last = torch.empty(len(index), size, size, 3, dtype=out.dtype, device=device)
            out.index_copy_(0, where, last.copy_(planes.permute(1, 2, 3, 0)))
    return out.permute(0, 3, 1, 2)


def views(
    images: Tensor,
    policy: Policy,
    generator: torch.Generator | None = None,
    size: int = 64,
    dtype: torch.dtype | None = torch.float32,
) -> Tensor:
    """One random view of every image: uint8 (B, 3, H, W) -> normalised `dtype` (B, 3, S, S), channels-last,
    on the images' device. The same generator state gives the same draws on every device."""
    return apply(images, draw(policy, len(images), *images.shape[-2:], generator), size, dtype)


def several(
    images: Tensor,
    policies: Sequence[Policy],
    generator: torch.Generator | None = None,
    size: int = 64,
    dtype: torch.dtype | None = torch.float32,
    share: tuple[int, int] = (0, 1),
) -> list[Tensor]:
    """`views` once for each of `policies`, with the same draws, and neighbours of one policy in one pass of
    the engine: K views of relational reasoning cost one call, and no K copies of the images.

    `share` (i, n): the images are the i-th of n equal parts of a batch, and get that part of its draws."""
    made: list[Tensor] = []
    count, (i, n) = len(images), share
    for policy, group in groupby(policies):
        whole = [draw(policy, n * count, *images.shape[-2:], generator) for _ in group]
        drawn = Draws.joined([draws[i * count : (i + 1) * count] for draws in whole])
        made.extend(apply(images, drawn, size, dtype).split(count))
    return made


def in_channels(views: Tensor, channels: int) -> Tensor:
    """(…, 3, S, S) as the network takes it: as it is, or for one channel its luma (…, 1, S, S)."""
    if channels == 3:
        return views
    return (views * _constant(LUMA, views.device).to(views.dtype)).sum(-3, keepdim=True)


def centre(images: Tensor, size: int, dtype: torch.dtype | None = torch.float32) -> Tensor:
    """The view for evaluation: the whole image resized to S x S, the same normalisation, nothing random."""
    draws = draw(CROP_ONLY, len(images), *images.shape[-2:], torch.Generator())
    box = torch.tensor([0, 0, *images.shape[-2:]]).expand(len(images), 4)
    return apply(images, replace(draws, boxes=box, flip=torch.zeros_like(draws.flip)), size, dtype)


def normalise(views: Tensor) -> Tensor:
    """(…, 3, S, S) in [0, 1] -> zero mean and unit deviation over ImageNet."""
    mean, std = (_constant(values, views.device).to(views.dtype) for values in (MEAN, STD))
    return (views - mean) / std


def unnormalise(views: Tensor) -> Tensor:
    """The inverse of `normalise`, clamped to [0, 1]; for figures."""
    mean, std = (_constant(values, views.device).to(views.dtype) for values in (MEAN, STD))
    return (views * std + mean).clamp(0, 1)


@lru_cache(maxsize=16)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One number for each colour channel, (3, 1, 1) float32; kept: sending it makes a host wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(3, 1, 1)


def _check(images: Tensor, draws: Draws, size: int, times: int = 1) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; give uint8 (B, 3, H, W)")
    if len(draws) != times * len(images) or draws.source_size != tuple(images.shape[-2:]):
        raise ValueError(
            f"draws are for {len(draws)} images of {draws.source_size} pixels, but images are "
            f"{tuple(images.shape)}; draw again for this batch"
        )
    if size < 1:
        raise ValueError(f"size is {size}; give the side of a view in pixels, >= 1")


def _on_planes(change: Callable[[Tensor, Draws], None], views: Tensor, draws: Draws) -> Tensor:
    planes = views.permute(1, 0, 2, 3).clone(memory_format=torch.contiguous_format)  # (3, B, S, S)
    change(planes, draws)
    return planes.permute(1, 0, 2, 3)


def _by_hue(draws: Draws) -> Tensor:
    """Image indices in the order of where hue comes in the jitter, unjittered last: groups become slices."""
    position = (draws.order == HUE).int().argmax(1)
    return torch.where(draws.jitter, position, 4).argsort(stable=True)


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


def _geometry(source: Tensor, draws: Draws, size: int) -> Tensor:
    """uint8 (B, H, 3, W) -> float32 planes (3, B, S, S): colours first, so that later steps run on whole
    contiguous planes."""
    b, height, _, width = source.shape
    top, left, h, w = sent(draws.boxes, source.device).float().unbind(1)
    rows = _resampling(top, h, height, size, None) / 255  # (B, S, H)
    columns = _resampling(left, w, width, size, sent(draws.flip, source.device))  # (B, S, W)
    narrow = source.reshape(b, height * 3, width).float() @ columns.mT  # (B, H·3, S)
    narrow = narrow.view(b, height, 3, size)
    planes = torch.empty(3, b, size, size, device=source.device)
    for channel in range(3):
        torch.bmm(rows, narrow[:, :, channel], out=planes[channel])
    return planes.clamp_(0, 1)  # rounding may leave 1 + 1e-7


def _grey(planes: Tensor) -> Tensor:
    grey = planes[0] * LUMA[0]  # (B, S, S)
    return grey.add_(planes[1], alpha=LUMA[1]).add_(planes[2], alpha=LUMA[2])


def _colour_(planes: Tensor, draws: Draws) -> None:
    """In place on (3, B, S, S); the images sorted by `_by_hue`."""
    device = planes.device
    grey_at = sent(draws.grey.nonzero()[:, 0], device)
    if draws.policy.grey_first and len(grey_at):
        planes[:, grey_at] = _grey(planes[:, grey_at])
    n = int(draws.jitter.sum())  # the jittered images are the first n
    if n:
        order, factors = draws.order[:n], draws.factors[:n]
        others = order[order != HUE].view(n, 3)  # brightness, contrast, saturation in their order
        before = (order == HUE).int().argmax(1)  # how many of them come before hue
        bounds = [0, *torch.bincount(before, minlength=4).cumsum(0).tolist()]
        factor = factors.gather(1, others)
        a = sent(factor, device)[:, :, None, None]
        to_mean = sent((1 - factor) * (others == CONTRAST), device)[:, :, None, None]
        to_grey = sent((1 - factor) * (others == SATURATION), device)[:, :, None, None]
        shift = sent(factors[:, HUE], device)[:, None, None]
        for step in range(4):
            group = slice(bounds[step], bounds[step + 1])
            if group.start < group.stop and draws.policy.jitter[HUE]:
                _hue_(planes[:, group], shift[group])
            if step < 3:
                grey = _grey(planes[:, :n])  # (n, S, S)
                mean = grey.mean((1, 2), keepdim=True) * to_mean[:, step]
                grey.mul_(to_grey[:, step]).add_(mean)
                planes[:, :n].mul_(a[:, step]).add_(grey).clamp_(0, 1)
    if not draws.policy.grey_first and len(grey_at):
        planes[:, grey_at] = _grey(planes[:, grey_at])


def _hue_(planes: Tensor, shift: Tensor) -> None:
    """Turn the hue of (3, b, S, S) by `shift` turns (b, 1, 1), value and saturation kept (HSV), in place."""
    r, g, b = planes
    value = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = value - low
    # in sixths of a turn from red, times chroma; red wins ties, then green, as in torchvision
    hue = torch.where(value == g, b - r + 2 * chroma, r - g + 4 * chroma)
    hue = torch.where(value == r, g - b, hue)
    hue = hue.div_(chroma.clamp_min(1e-12)).add_(6 * shift)  # grey pixels: 0 / 1e-12
    hue -= 6 * (hue / 6).floor_()  # [0, 6]
    for plane, centre, sign in ((r, 3, 1), (g, 2, -1), (b, 4, -1)):
        # a colour is full within one sixth of its own hue and fades over the next
        ramp = (hue - centre).abs_().mul_(sign).add_(-sign if sign > 0 else 2).clamp_(0, 1)
        torch.addcmul(low, chroma, ramp, out=plane)


@lru_cache(maxsize=8)
def _taps(size: int, radius: int, device: str) -> Tensor:
    """(radius + 1, S·S): entry t holds where the kernel's weight at distance t falls in an S x S blur matrix
    whose borders reflect (the edge pixel is not repeated)."""
    taps = torch.zeros(radius + 1, size, size)
    i = torch.arange(size)
    for offset in range(-radius, radius + 1):
        j = (i + offset).abs()
        j = (size - 1) - ((size - 1) - j).abs()
        taps[abs(offset)].index_put_((i, j), torch.ones(size), accumulate=True)
    return taps.view(radius + 1, -1).to(device)


def blur_radius(policy: Policy, size: int) -> int:
    """Taps on each side of the centre for a view of `size` pixels: half the kernel's width, or four sigma of
    the widest Gaussian; never more than a reflected border can give."""
    if policy.blur_kernel is None:
        radius = math.ceil(4 * policy.blur_sigma[1])
    else:
        radius = int(policy.blur_kernel * size) // 2
    return min(radius, size - 1)


def _blur_(planes: Tensor, draws: Draws) -> None:
    size, radius = planes.shape[-1], blur_radius(draws.policy, planes.shape[-1])
    at = draws.blur.nonzero()[:, 0]
    if not len(at) or not radius:
        return
    distance = torch.arange(radius + 1)
    kernel = torch.exp(-0.5 * (distance / draws.sigma[at, None]) ** 2)  # (b, radius + 1)
    kernel /= kernel[:, :1] + 2 * kernel[:, 1:].sum(1, keepdim=True)
    at = sent(at, planes.device)
    matrix = (sent(kernel, planes.device) @ _taps(size, radius, str(planes.device))).view(-1, size, size)
    for plane in planes:
        plane.index_copy_(0, at, matrix @ plane[at] @ matrix.mT)


def _solarize_(planes: Tensor, draws: Draws) -> None:
    at = sent(draws.solarize.nonzero()[:, 0], planes.device)
    if len(at):
        part = planes[:, at]
        planes[:, at] = torch.where(part >= draws.policy.solarize_threshold, 1 - part, part)
