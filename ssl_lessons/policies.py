"""What the papers leave to chance: one `Policy` a paper, and `draw()`, which decides it for a batch.

views.py applies what is drawn here. Two files, because the numbers of eight papers and the engine that obeys
them are read on different days. Everything is drawn on the CPU, so a seed means the same on every device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the jitter's operations, numbered as in torchvision


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
        for name, value in vars(self).items():
            low, high = value if name in ("crop_scale", "crop_ratio", "blur_sigma") else (1, 1)
            if not 0 < low <= high or (name.endswith("_p") and not 0 <= value <= 1):
                raise ValueError(
                    f"policy {self.name!r}: {name} is {value}; "
                    "probabilities lie in [0, 1], ranges are 0 < low <= high"
                )
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[HUE] > 0.5:
            raise ValueError(
                f"policy {self.name!r}: jitter is {self.jitter}; give four numbers >= 0, hue <= 0.5"
            )


_JITTER = {"jitter_p": 0.8, "grey_p": 0.2}  # all papers but MoCo v1
_WIDE = {"crop_scale": (0.08, 1.0), **_JITTER}
_MOCO = "facebookresearch/moco, main_moco.py"
_BYOL = "google-deepmind/deepmind-research, byol/utils/augmentations.py"

MOCO_V1 = Policy(
    "moco_v1", f"He et al. 2020; {_MOCO} without --aug-plus: greyscale first, jitter always",
    jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, grey_p=0.2, grey_first=True,
)  # fmt: skip
MOCO_V2 = Policy(
    "moco_v2", f"Chen et al. 2020, arXiv:2003.04297; {_MOCO} --aug-plus; the blur is PIL's",
    jitter=(0.4, 0.4, 0.4, 0.1), blur_p=0.5, **_JITTER,
)  # fmt: skip
SIMSIAM = replace(MOCO_V2, name="simsiam", source="Chen & He 2021; facebookresearch/simsiam, main_simsiam.py")
SIMCLR = Policy(
    "simclr", "Chen et al. 2020, appendix A; google-research/simclr, data_util.py, strength 1",
    jitter=(0.8, 0.8, 0.8, 0.2), blur_p=0.5, blur_kernel=0.1, **_WIDE,
)  # fmt: skip
BYOL_T = Policy(
    "byol_t", f"Grill et al. 2020, appendix B, T; {_BYOL}, view1",
    jitter=(0.4, 0.4, 0.2, 0.1), blur_p=1.0, blur_kernel=0.1, **_WIDE,
)  # fmt: skip
BYOL_T_PRIME = replace(
    BYOL_T, name="byol_t_prime", source=f"Grill et al. 2020, appendix B, T'; {_BYOL}, view2",
    blur_p=0.1, solarize_p=0.2,
)  # fmt: skip
RELATIONAL = Policy(
    "relational", "Patacchiola & Storkey 2020; their self-supervised-relational-reasoning, datamanager.py",
    jitter=(0.8, 0.8, 0.8, 0.2), **_WIDE,
)  # fmt: skip
CROP_ONLY = Policy("crop_only", "MoCo v2's crop and flip, nothing else: the ablation of SimCLR's section 3")
POLICIES = {
    policy.name: policy
    for policy in (MOCO_V1, MOCO_V2, SIMCLR, BYOL_T, BYOL_T_PRIME, SIMSIAM, RELATIONAL, CROP_ONLY)
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

    @staticmethod
    def joined(several: Sequence["Draws"]) -> "Draws":
        """The draws of one policy for one batch, several times over, as one: (B, …) each -> (K·B, …)."""
        first = several[0]
        names = [f.name for f in fields(first) if f.name not in ("policy", "source_size")]
        return replace(first, **{name: torch.cat([getattr(d, name) for d in several]) for name in names})


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
