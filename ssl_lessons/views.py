"""Views: what augmentation does to a batch of images, every image with its own random draw.

A `Policy` holds one paper's numbers. `views()` draws from it and applies it, in the order in which MoCo v2's
official code composes torchvision's transforms: crop and resize -> colour jitter -> greyscale -> blur ->
solarize -> flip -> normalise. Letters: B images, H x W stored size, S side of a view.

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
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, of values in [0, 1]; used by all the official codes
STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision's rgb_to_grayscale
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class Policy:
    """One paper's augmentation. Probabilities in [0, 1]; `jitter` is (brightness, contrast, saturation, hue)
    as torchvision's `ColorJitter` takes them; `blur_sigma` in pixels of the view; `blur_kernel` the kernel's
    width as a fraction of the view's side, made odd, or None for a Gaussian that is not cut short (PIL's).
    `grey_first`: greyscale comes before the jitter (MoCo v1)."""

    name: str
    source: str
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    grey_p: float = 0.0
    grey_first: bool = False
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: float | None = None
    solarize_p: float = 0.0
    solarize_threshold: float = 0.5

    def __post_init__(self):
        for name in ("flip_p", "jitter_p", "grey_p", "blur_p", "solarize_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"policy {self.name!r}: {name} is {getattr(self, name)}; give a number in [0, 1]"
                )
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"policy {self.name!r}: {name} is {(low, high)}; give 0 < low <= high")
        if min(self.jitter) < 0 or self.jitter[HUE] > 0.5:
            raise ValueError(
                f"policy {self.name!r}: jitter is {self.jitter}; give strengths >= 0 and a hue <= 0.5"
            )


MOCO_V1 = Policy(
    "moco_v1",
    "He et al. 2020; facebookresearch/moco, main_moco.py without --aug-plus (greyscale first, jitter always)",
    jitter=(0.4, 0.4, 0.4, 0.4),
    jitter_p=1.0,
    grey_p=0.2,
    grey_first=True,
)
MOCO_V2 = Policy(
    "moco_v2",
    "Chen et al. 2020, arXiv:2003.04297; facebookresearch/moco, main_moco.py --aug-plus; blur is PIL's",
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_p=0.8,
    grey_p=0.2,
    blur_p=0.5,
)
SIMSIAM = replace(
    MOCO_V2, name="simsiam", source="Chen & He 2021; facebookresearch/simsiam, main_simsiam.py (MoCo v2's)"
)
SIMCLR = Policy(
    "simclr",
    "Chen et al. 2020, appendix A; google-research/simclr, data_util.py (strength 1; no blur for CIFAR-10)",
    crop_scale=(0.08, 1.0),
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_p=0.8,
    grey_p=0.2,
    blur_p=0.5,
    blur_kernel=0.1,
)
BYOL_T = Policy(
    "byol_t",
    "Grill et al. 2020, table 6, T; google-deepmind/deepmind-research, byol/utils/augmentations.py view1",
    crop_scale=(0.08, 1.0),
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_p=0.8,
    grey_p=0.2,
    blur_p=1.0,
    blur_kernel=0.1,
)
BYOL_T_PRIME = replace(
    BYOL_T,
    name="byol_t_prime",
    source="Grill et al. 2020, table 6, T'; byol/utils/augmentations.py view2",
    blur_p=0.1,
    solarize_p=0.2,
)
RELATIONAL = Policy(
    "relational",
    "Patacchiola & Storkey 2020; mpatacchiola/self-supervised-relational-reasoning, datamanager.py",
    crop_scale=(0.08, 1.0),
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_p=0.8,
    grey_p=0.2,
)
CROP_ONLY = Policy("crop_only", "MoCo v2's crop and flip and nothing else: the ablation of SimCLR's figure 5")
POLICIES = {
    p.name: p for p in (MOCO_V1, MOCO_V2, SIMCLR, BYOL_T, BYOL_T_PRIME, SIMSIAM, RELATIONAL, CROP_ONLY)
}


@dataclass(frozen=True, eq=False)
class Draws:
    """What chance decided for B images: CPU tensors, so that a seed means the same on every device.

    boxes int64 (B, 4): top, left, height, width in pixels; factors float32 (B, 4): brightness, contrast,
    saturation, hue (a shift in turns); order int64 (B, 4): which of those four comes 1st … 4th; sigma float32
    (B,) in pixels of the view; flip, jitter, grey, blur, solarize bool (B,). `draws[index]` is a subset.
    """

    boxes: Tensor
    flip: Tensor
    jitter: Tensor
    factors: Tensor
    order: Tensor
    grey: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor
    policy: Policy
    source_size: tuple[int, int]  # H, W of the images the boxes were drawn for

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index) -> "Draws":
        tensors = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("policy", "source_size")
        }
        return replace(self, **{name: value[index] for name, value in tensors.items()})


def draw(
    policy: Policy, count: int, height: int, width: int, generator: torch.Generator | None = None
) -> Draws:
    """Draw a policy's parameters for `count` images of height x width pixels, from a CPU generator (None: the
    global one). Crops follow torchvision's `RandomResizedCrop.get_params`, its ten attempts and its fallback
    included. The same numbers are consumed whatever the policy, so a probability can be changed alone."""
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator is on {generator.device}; give a CPU torch.Generator: draws are device-free"
        )
    if min(count, height, width) < 1:
        raise ValueError(f"cannot draw for {count} images of {height} x {width} pixels; give numbers >= 1")

    def uniform(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    def chance(p):
        return uniform(count) < p

    # area ~ U(scale) of the image, log(aspect) ~ U(log ratio); the first of ten that fits (B, 10)
    ratio_low, ratio_high = policy.crop_ratio
    area = uniform(count, 10, low=policy.crop_scale[0], high=policy.crop_scale[1]) * (height * width)
    aspect = uniform(count, 10, low=math.log(ratio_low), high=math.log(ratio_high)).exp()
    w = (area * aspect).sqrt().round().long()
    h = (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)  # 0 where none fits, replaced below
    w, h, any_fits = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0], fits.any(1)
    top = (uniform(count) * (height - h + 1)).floor().long()
    left = (uniform(count) * (width - w + 1)).floor().long()
    # none fits: the largest central crop whose aspect is allowed
    whole_w = min(width, max(1, round(height * ratio_high)))
    whole_h = min(height, max(1, round(width / ratio_low)))
    central = torch.tensor([(height - whole_h) // 2, (width - whole_w) // 2, whole_h, whole_w])
    boxes = torch.where(any_fits[:, None], torch.stack([top, left, h, w], 1), central)

    strength = torch.tensor(policy.jitter, dtype=torch.float64)
    low, high = (1 - strength).clamp_min(0), 1 + strength
    low[HUE], high[HUE] = -strength[HUE], strength[HUE]
    return Draws(
        boxes=boxes,
        flip=chance(policy.flip_p),
        jitter=chance(policy.jitter_p),
        factors=(low + (high - low) * uniform(count, 4)).float(),
        order=uniform(count, 4).argsort(1),  # a uniform permutation
        grey=chance(policy.grey_p),
        blur=chance(policy.blur_p),
        sigma=uniform(count, low=policy.blur_sigma[0], high=policy.blur_sigma[1]).float(),
        solarize=chance(policy.solarize_p),
        policy=policy,
        source_size=(height, width),
    )


def geometry(images: Tensor, draws: Draws, size: int) -> Tensor:
    """Crop, resize with antialiasing and flip: uint8 (B, 3, H, W) -> float32 (B, 3, S, S) in [0, 1].

    Equal to torchvision's `resized_crop(..., antialias=True)` on floats to 1e-5. Fastest where `images` is a
    permuted view of memory laid out (B, H, 3, W), as an ImageStore's batches are."""
    _check(images, draws, size)
    return _geometry(_rows_first(images), draws, size).permute(1, 0, 2, 3)


def colour(views: Tensor, draws: Draws) -> Tensor:
    """Colour jitter in each image's own order, and greyscale: (B, 3, S, S) in [0, 1] -> the same."""
    index = _by_hue(draws)
    planes = views[index.to(views.device)].permute(1, 0, 2, 3).contiguous()  # (3, B, S, S)
    _colour_(planes, draws[index])
    return planes.permute(1, 0, 2, 3)[index.argsort().to(views.device)]


def blur(views: Tensor, draws: Draws) -> Tensor:
    """Gaussian blur of the images that drew it, borders reflected: (B, 3, S, S) -> the same."""
    planes = views.permute(1, 0, 2, 3).clone(memory_format=torch.contiguous_format)
    _blur_(planes, draws)
    return planes.permute(1, 0, 2, 3)


def solarize(views: Tensor, draws: Draws) -> Tensor:
    """Invert the values at or above the threshold, in the images that drew it: (B, 3, S, S) -> the same."""
    planes = views.permute(1, 0, 2, 3).clone(memory_format=torch.contiguous_format)
    _solarize_(planes, draws)
    return planes.permute(1, 0, 2, 3)


def apply(images: Tensor, draws: Draws, size: int, dtype: torch.dtype | None = None) -> Tensor:
    """The whole of a policy with these draws: uint8 (B, 3, H, W) -> normalised (B, 3, S, S), channels-last.

    `dtype` (float32 if None) is the result's. Inside, float32 everywhere: 1/255 is finer than bfloat16's
    steps above 0.5, and hue divides small differences; half precision saves only the last copy."""
    _check(images, draws, size)
    source = _rows_first(images)
    out = torch.empty(len(images), size, size, 3, dtype=dtype or torch.float32, device=images.device)
    # A GPU takes the batch at once; a CPU takes what stays in its second-level cache.
    chunk = len(images) if images.is_cuda else max(1, _CHUNK_PIXELS // size**2)
    scale = torch.tensor(STD, device=images.device).reciprocal().view(3, 1, 1, 1)
    shift = -torch.tensor(MEAN, device=images.device).view(3, 1, 1, 1) * scale
    for index in _by_hue(draws).split(chunk):
        part, where = draws[index], index.to(images.device)
        planes = _geometry(source.index_select(0, where), part, size)  # (3, b, S, S)
        _colour_(planes, part)
        _blur_(planes, part)
        _solarize_(planes, part)
        planes.mul_(scale).add_(shift)
        out.index_copy_(0, where, planes.permute(1, 2, 3, 0).to(out.dtype))
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
    height, width = images.shape[-2:]
    return apply(images, draw(policy, len(images), height, width, generator), size, dtype)


def centre(images: Tensor, size: int, dtype: torch.dtype | None = torch.float32) -> Tensor:
    """The view for evaluation: the whole image resized to S x S, the same normalisation, nothing random."""
    whole = Policy("centre", "the whole image", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_p=0.0)
    height, width = images.shape[-2:]
    draws = draw(whole, len(images), height, width, torch.Generator())
    box = torch.tensor([0, 0, height, width]).expand(len(images), 4)
    return apply(images, replace(draws, boxes=box), size, dtype)


def normalise(views: Tensor) -> Tensor:
    """(…, 3, S, S) in [0, 1] -> zero mean and unit deviation over ImageNet."""
    mean, std = (torch.tensor(v, dtype=views.dtype, device=views.device).view(3, 1, 1) for v in (MEAN, STD))
    return (views - mean) / std


def unnormalise(views: Tensor) -> Tensor:
    """The inverse of `normalise`, clamped to [0, 1]; for figures."""
    mean, std = (torch.tensor(v, dtype=views.dtype, device=views.device).view(3, 1, 1) for v in (MEAN, STD))
    return (views * std + mean).clamp(0, 1)


_CHUNK_PIXELS = 8 * 64 * 64


def _check(images: Tensor, draws: Draws, size: int) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; give uint8 (B, 3, H, W)")
    if len(draws) != len(images) or draws.source_size != tuple(images.shape[-2:]):
        raise ValueError(
            f"draws are for {len(draws)} images of {draws.source_size} pixels, but images are "
            f"{tuple(images.shape)}; draw again for this batch"
        )
    if size < 1:
        raise ValueError(f"size is {size}; give the side of a view in pixels, >= 1")


def _rows_first(images: Tensor) -> Tensor:
    return images.permute(0, 2, 1, 3)  # (B, H, 3, W); a copy is made per chunk by index_select or matmul


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
    top, left, h, w = draws.boxes.to(source.device).float().unbind(1)
    rows = _resampling(top, h, height, size, None) / 255  # (B, S, H)
    columns = _resampling(left, w, width, size, draws.flip.to(source.device))  # (B, S, W)
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
    grey_at = draws.grey.nonzero()[:, 0].to(device)
    if draws.policy.grey_first and len(grey_at):
        planes[:, grey_at] = _grey(planes[:, grey_at])
    n = int(draws.jitter.sum())  # the jittered images are the first n
    if n:
        order, factors = draws.order[:n], draws.factors[:n]
        others = order[order != HUE].view(n, 3)  # brightness, contrast, saturation in their order
        before = (order == HUE).int().argmax(1)  # how many of them come before hue
        bounds = [0, *torch.bincount(before, minlength=4).cumsum(0).tolist()]
        factor = factors.gather(1, others)
        a = factor.to(device)[:, :, None, None]
        to_mean = ((1 - factor) * (others == CONTRAST)).to(device)[:, :, None, None]
        to_grey = ((1 - factor) * (others == SATURATION)).to(device)[:, :, None, None]
        shift = factors[:, HUE].to(device)[:, None, None]
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
    at = at.to(planes.device)
    matrix = (kernel.to(planes.device) @ _taps(size, radius, str(planes.device))).view(-1, size, size)
    for plane in planes:
        plane.index_copy_(0, at, matrix @ plane[at] @ matrix.mT)


def _solarize_(planes: Tensor, draws: Draws) -> None:
    at = draws.solarize.nonzero()[:, 0].to(planes.device)
    if len(at):
        part = planes[:, at]
        planes[:, at] = torch.where(part >= draws.policy.solarize_threshold, 1 - part, part)
