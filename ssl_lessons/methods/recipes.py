"""The five methods' published settings, and ours for lessons: one dataclass a method.

Each recipe names its source. Apart from the methods' files, so that those hold the objective alone.
"""

from dataclasses import dataclass, replace
from typing import Literal

from ssl_lessons import views as v
from ssl_lessons.methods.base import Recipe
from ssl_lessons.views import Policy

# lightly's recipes: 256 images, cosine without warm-up
_SGD = {"lr": 0.06, "weight_decay": 5e-4, "batch_size": 256}
_LIGHTLY = "lightly's Imagenette benchmark, ResNet-18 at 128 px (github.com/lightly-ai/lightly, benchmarks)"
# LARS as SimCLR and BYOL use it: trust coefficient 1e-3, ten epochs of warm-up
_LARS = {"optimizer": "lars", "weight_decay": 1e-6, "plain_norms": True, "warmup": 10.0, "batch_size": 4096}
# Runs of minutes: AdamW needs no tuning of the rate, and one epoch of warm-up is enough.
_ADAMW = {"optimizer": "adamw", "lr": 1e-3, "lr_batch": None, "weight_decay": 1e-4, "warmup": 1.0}
_MINUTES = {**_ADAMW, "batch_size": 128, "epochs": 20}
# Runs of some hundred thousand images on the slim network (resnet10_half), chosen by trials on a held-out
# fifth of Imagenette's training images (data/results/TRIALS.md). Tried were rates, batch, temperature, queue,
# momentum, blur, colours, heads, the predictor's rate and decay.
_SHORT = {**_MINUTES, "name": "short", "source": "ours, for runs of minutes: data/results/TRIALS.md"}

# A blur with σ of up to 2 pixels leaves little of a 32-pixel view: SimCLR and MoCo's demonstration leave it
# out on CIFAR-10 too.
_NO_BLUR = replace(v.MOCO_V2, name="moco_v2_no_blur", blur_p=0.0)

# Half of that colour strength and no greyscale: without negatives a short run loses colour before it finds
# anything else (TRIALS.md, BYOL).
_GENTLE = replace(_NO_BLUR, name="gentle", jitter=(0.2, 0.2, 0.2, 0.05), grey_p=0.0)


def _named(*recipes):
    return {recipe.name: recipe for recipe in recipes}


@dataclass(frozen=True)
class SimCLRRecipe(Recipe):
    """SimCLR's own numbers on top of the optimiser's."""

    policy: Policy = v.SIMCLR
    head: tuple[int | None, ...] = (None, 128)  # v1's projector; v2's has three layers
    head_norm: bool = True  # BatchNorm in the projector, as in the official code of both versions
    temperature: float = 0.1  # τ


# SimCLR B.9: half the colour strength and no blur for small images; lightly halves the strength too.
_HALF = replace(v.SIMCLR, name="simclr_half", jitter=(0.4, 0.4, 0.4, 0.1))

SIMCLR: dict[str, SimCLRRecipe] = _named(
    SimCLRRecipe(
        "paper", "arXiv:2002.05709, section 2.2 and appendix B.6; github.com/google-research/simclr",
        lr=0.3, epochs=1000, **_LARS),
    SimCLRRecipe(
        "v2", "arXiv:2006.10029, section 2; github.com/google-research/simclr, 3 layers",
        head=(None, None, 128), lr=0.3, epochs=800, **_LARS),
    SimCLRRecipe("small_data", _LIGHTLY, policy=_HALF, temperature=0.5, **_SGD),
    SimCLRRecipe(policy=_NO_BLUR, head=(512, 128), head_norm=False, temperature=0.1, **_SHORT),
)  # fmt: skip


@dataclass(frozen=True)
class MoCoRecipe(Recipe):
    """MoCo's own numbers on top of the optimiser's; symbols as in the paper."""

    policy: Policy = v.MOCO_V2
    # hidden widths and embedding size D; None is the encoder's own width, (128,) one linear layer, () no head
    head: tuple[int | None, ...] = (None, 128)
    queue: int = 65536  # K
    momentum: float = 0.999  # m
    temperature: float = 0.2  # τ
    symmetric: bool = False  # each view serves once as query and once as key; the two losses are summed
    splits: int = 1  # parts of a process' batch that BatchNorm sees apart; > 1 also shuffles the keys


# The CIFAR demonstration crops as torchvision does by default and does not blur 32-pixel images.
_DEMO = "github.com/facebookresearch/moco, branch colab-notebook (CIFAR-10 on one GPU)"
_CIFAR = replace(v.MOCO_V2, name="moco_cifar", source=_DEMO, crop_scale=(0.08, 1.0), blur_p=0.0)

MOCO: dict[str, MoCoRecipe] = _named(
    MoCoRecipe(
        "moco_v1", "arXiv:1911.05722, section 3.3; github.com/facebookresearch/moco, defaults",
        policy=v.MOCO_V1, head=(128,), temperature=0.07, schedule="step"),
    MoCoRecipe(
        "moco_v2", "arXiv:2003.04297; github.com/facebookresearch/moco, --mlp --moco-t 0.2 --aug-plus --cos"),
    MoCoRecipe(
        "small_data", _DEMO, policy=_CIFAR, head=(128,), queue=4096, momentum=0.99, temperature=0.1,
        splits=8, lr=0.06, lr_batch=512, weight_decay=5e-4, batch_size=512),
    MoCoRecipe(
        "tutorial",
        "the published single-GPU tutorial of MoCo v2 on Imagenette (its optimiser: Adam assumed)",
        head=(100, 50, 25), queue=8192, temperature=0.05, optimizer="adam", lr=1e-3, lr_batch=None,
        final_lr=0.01, weight_decay=1e-6),
    MoCoRecipe(  # a short queue and a quick key encoder keep the keys fresh
        policy=_NO_BLUR, head=(512, 128), queue=2048, momentum=0.99, temperature=0.1,
        symmetric=True, **_SHORT),
)  # fmt: skip


@dataclass(frozen=True)
class RelationalRecipe(Recipe):
    """Relational reasoning's own numbers on top of the optimiser's."""

    policy: Policy = v.RELATIONAL
    views: int = 32  # K, of each image
    hidden: int = 256  # width of the relation head's hidden layer
    focal: bool = False  # weigh pairs by how wrong they are, as the official full code does
    gamma: float = 2.0  # focal weighting: exponent …
    alpha: float = 0.5  # … and share of the positives

    def override(self, **fields):
        hidden = fields.pop("projection_hidden_size", None)  # the head's, where others have a projector's
        if hidden:
            fields["hidden"] = hidden
        return super().override(**fields)


_RELATIONAL = "github.com/mpatacchiola/self-supervised-relational-reasoning"
_ADAM = {"optimizer": "adam", "lr": 1e-3, "lr_batch": None, "weight_decay": 0.0, "schedule": "constant"}

RELATIONAL: dict[str, RelationalRecipe] = _named(
    RelationalRecipe(
        "paper", f"arXiv:2006.05849, section 4; {_RELATIONAL}, full code",
        focal=True, batch_size=64, **_ADAM),
    RelationalRecipe(
        "small_data", f"{_RELATIONAL}, the short script (plain cross-entropy), with fewer views",
        views=8, batch_size=64, **_ADAM),
    RelationalRecipe(policy=_NO_BLUR, views=4, **{**_SHORT, "batch_size": 64}),
)  # fmt: skip


@dataclass(frozen=True)
class BYOLRecipe(Recipe):
    """BYOL's own numbers on top of the optimiser's; symbols as in the paper."""

    policy: Policy = v.BYOL_T  # T
    policy_prime: Policy = v.BYOL_T_PRIME  # T′
    head: tuple[int | None, ...] = (4096, 256)
    predictor_hidden: int = 4096
    momentum: float | None = 0.996  # τ at the start; None: no target, the online network with stop-gradient
    # the target's memory 1 / (1 − τ) as a share of the run's steps, for runs of any length; None: `momentum`
    lag: float | None = None
    momentum_schedule: Literal["cosine", "constant"] = "cosine"  # to 1 at the end
    normalisation: Literal["batch", "group", "none"] = "batch"  # in every part; group: weights standardised

    def override(self, **fields):
        if "momentum" in fields:
            fields = {"lag": None, **fields}  # whoever names τ means it, whatever the recipe's lag
        return super().override(**fields)


_BYOL = "arXiv:2006.07733, section 3.3; github.com/google-deepmind/deepmind-research, byol"

BYOL: dict[str, BYOLRecipe] = _named(
    BYOLRecipe("paper", f"{_BYOL}, 1000 epochs", lr=0.2, epochs=1000, **{**_LARS, "weight_decay": 1.5e-6}),
    BYOLRecipe("paper_100", f"{_BYOL}, 100 epochs", lr=0.45, momentum=0.99, epochs=100, **_LARS),
    BYOLRecipe("small_data", _LIGHTLY, momentum=0.99, momentum_schedule="constant", **_SGD),
    # Ten times the rate for the predictor, so that it follows what it predicts (the paper's appendix does
    # so in a run without target network). A memory between 0.7 and 14 % of the run made no difference.
    BYOLRecipe(
        policy=_GENTLE, policy_prime=_GENTLE, head=(512, 128), predictor_hidden=512, predictor_lr=10.0,
        lag=0.02, **{**_SHORT, "weight_decay": 0.3, "epochs": 60}),
)  # fmt: skip


@dataclass(frozen=True)
class SimSiamRecipe(Recipe):
    """SimSiam's own numbers on top of the optimiser's."""

    policy: Policy = v.SIMSIAM
    head: tuple[int | None, ...] = (2048, 2048, 2048)
    predictor_hidden: int = 512


SIMSIAM: dict[str, SimSiamRecipe] = _named(
    SimSiamRecipe(
        "paper", "arXiv:2011.10566, section 3; github.com/facebookresearch/simsiam",
        lr=0.05, batch_size=512, epochs=100),
    SimSiamRecipe("small_data", _LIGHTLY, head=(2048, 2048), **_SGD),
    SimSiamRecipe(
        "short", _SHORT["source"], policy=_GENTLE, head=(512, 512, 512), predictor_hidden=128,
        predictor_lr=10.0, lr=0.2, weight_decay=5e-4, warmup=1.0, batch_size=128, epochs=60),
)  # fmt: skip
