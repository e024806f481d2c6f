"""What the papers leave to chance: one `Policy` a paper, and `draw()`, which decides it for a batch.

views.py applies what is drawn here. Letters: B images of H x W stored pixels, S the side of a view.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ssl_lessons.parameters import RANGES, SHARE, Parameter, fit

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the jitter's operations, numbered as in torchvision

# What `fit` takes for a policy's fields, each number of them: all that float32 and its logarithm can hold
RANGES |= dict.fromkeys(("flip_p", "jitter_p", "grey_p", "blur_p", "solarize_p", "solarize_threshold"), SHARE)
RANGES |= dict.fromkeys(("crop_scale", "blur_kernel"), (1e-6, 1, " above 0 and at most 1"))
RANGES |= dict.fromkeys(("crop_ratio", "blur_sigma"), (1e-6, 1e6, " above 0 and at most a million"))
RANGES |= {"jitter": (0, 1e6, " from 0 to a million")}


@dataclass(frozen=True)
class Policy:
    """One paper's augmentation, with its source. A name that ends in `_p` is a probability.

    crop_scale, crop_ratio: share of the area, and width / height, as torchvision's `RandomResizedCrop` takes
    them; jitter: (brightness, contrast, saturation, hue) as `ColorJitter` does; grey_first: greyscale comes
    before the jitter (MoCo v1); blur_sigma: pixels of the view; blur_kernel: the kernel's width as a share of
    the view's side, made odd, or None for a Gaussian that is not cut short (PIL's); solarize_threshold: of
    values in [0, 1]. ValueError: a value that does not fit its annotation, or out of its range."""

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
        for field in fields(self):
            fitted = fit(field.name, getattr(self, field.name), Parameter(field.type, field.default))
            object.__setattr__(self, field.name, fitted)  # text as what it stands for
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"policy {self.name!r}: {name} is {low, high}; give the lower number first")
        if self.jitter[HUE] > 0.5:
            raise ValueError(f"policy {self.name!r}: jitter is {self.jitter}; give hue <= 0.5")

    def blur_for(self, size: int, published: int = 224) -> "Policy":
        """The same policy with the blur's sigma, in pixels of a view of `published`, made pixels of a view of
        `size`: the picture is blurred alike at 32, 64 and 224. (`blur_kernel` is a share already.)"""
        low, high = self.blur_sigma
        return replace(self, blur_sigma=(low * size / published, high * size / published))


_JITTER = {"jitter_p": 0.8, "grey_p": 0.2}  # all papers but MoCo v1
_WIDE = {"crop_scale": (0.08, 1.0), **_JITTER}
_MOCO = "facebookresearch/moco, main_moco.py"
_BYOL = "google-deepmind/deepmind-research, byol/utils/augmentations.py"

# fmt: off
MOCO_V1 = Policy("moco_v1", f"He et al. 2020; {_MOCO} without --aug-plus: greyscale first, jitter always",
                 jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, grey_p=0.2, grey_first=True)
MOCO_V2 = Policy("moco_v2", f"Chen et al. 2020, arXiv:2003.04297; {_MOCO} --aug-plus; the blur is PIL's",
                 jitter=(0.4, 0.4, 0.4, 0.1), blur_p=0.5, **_JITTER)
SIMSIAM = replace(MOCO_V2, name="simsiam", source="Chen & He 2021; facebookresearch/simsiam, main_simsiam.py")
SIMCLR = Policy("simclr", "Chen et al. 2020, appendix A; google-research/simclr, data_util.py, strength 1",
                jitter=(0.8, 0.8, 0.8, 0.2), blur_p=0.5, blur_kernel=0.1, **_WIDE)
BYOL_T = Policy("byol_t", f"Grill et al. 2020, appendix B, T; {_BYOL}, view1",
                jitter=(0.4, 0.4, 0.2, 0.1), blur_p=1.0, blur_kernel=0.1, **_WIDE)
BYOL_T_PRIME = replace(BYOL_T, name="byol_t_prime", blur_p=0.1, solarize_p=0.2,
                       source=f"Grill et al. 2020, appendix B, T'; {_BYOL}, view2")
RELATIONAL = Policy("relational", "Patacchiola & Storkey 2020; their self-supervised-relational-reasoning, "
                    "datamanager.py", jitter=(0.8, 0.8, 0.8, 0.2), **_WIDE)
CROP_ONLY = Policy("crop_only", "MoCo v2's crop and flip, nothing else: the ablation of SimCLR's section 3")
_ALL = (MOCO_V1, MOCO_V2, SIMCLR, BYOL_T, BYOL_T_PRIME, SIMSIAM, RELATIONAL, CROP_ONLY)
POLICIES = {policy.name: policy for policy in _ALL}
# fmt: on


@dataclass(frozen=True, eq=False)
class Draws:
    """What chance decided for B images: CPU tensors, so that a seed means the same on every device."""

    boxes: Tensor  # int64 (B, 4): top, left, height, width of the crop in stored pixels
    flip: Tensor  # bool (B,), as jitter, grey, blur and solarize below
    jitter: Tensor
    factors: Tensor  # float32 (B, 4): brightness, contrast, saturation, hue (a shift in turns)
    order: Tensor  # int64 (B, 4): which of these four comes 1st … 4th
    grey: Tensor
    blur: Tensor
    sigma: Tensor  # float32 (B,), in pixels of the view
    solarize: Tensor
    policy: Policy
    source_size: tuple[int, int]  # H, W of the images that the boxes were drawn for

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows) -> "Draws":
        """The draws of some images: a slice, or indices of them."""
        return replace(self, **{name: tensor[rows] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @staticmethod
    def joined(several: Sequence["Draws"]) -> "Draws":
        """The draws of one policy for one batch, several times over, as one: (B, …) each -> (K·B, …)."""
        joined = {}
        for name in several[0].tensors():
            joined[name] = torch.cat([getattr(draws, name) for draws in several])
        return replace(several[0], **joined)


def draw(
    policy: Policy, count: int, height: int, width: int, generator: torch.Generator | None = None
) -> Draws:
    """Draw a policy's parameters for `count` images of height x width pixels, from a CPU generator (None: the
    global one). The same numbers are consumed whatever the policy, so a probability can be changed alone.
    ValueError: a generator on another device, a count or side below 1."""
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"generator is on {generator.device}; give a torch.Generator of the CPU")
    if min(count, height, width) < 1:
        raise ValueError(f"cannot draw for {count} images of {height} x {width} pixels; give numbers >= 1")

    def uniform(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    def chance(p):
        return uniform(count) < p

    # The crop, as torchvision's RandomResizedCrop.get_params: ten attempts, the first that fits is taken.
    scale_low, scale_high = policy.crop_scale
    ratio_low, ratio_high = policy.crop_ratio
    area = uniform(count, 10, low=scale_low, high=scale_high) * (height * width)  # (B, 10)
    aspect = uniform(count, 10, low=math.log(ratio_low), high=math.log(ratio_high)).exp()
    w = (area * aspect).sqrt().round().long()
    h = (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)  # 0 where none fits, replaced below
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    top = (uniform(count) * (height - h + 1)).floor().long()
    left = (uniform(count) * (width - w + 1)).floor().long()
    boxes = torch.stack([top, left, h, w], 1)
    # None fits: the largest central crop whose aspect is allowed.
    whole_w = min(width, max(1, round(height * ratio_high)))
    whole_h = min(height, max(1, round(width / ratio_low)))
    central = torch.tensor([(height - whole_h) // 2, (width - whole_w) // 2, whole_h, whole_w])

    strength = torch.tensor(policy.jitter, dtype=torch.float64)
    low, high = (1 - strength).clamp_min(0), 1 + strength  # of a factor that multiplies
    low[HUE], high[HUE] = -strength[HUE], strength[HUE]  # of a shift
    return Draws(
        boxes=torch.where(fits.any(1, keepdim=True), boxes, central),
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
