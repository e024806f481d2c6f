"""The contract of a method: views in, a loss and named diagnostics out; and the recipe that sets it up."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ssl_lessons.views import Policy

R = TypeVar("R", bound="Recipe")


class Objective(NamedTuple):
    """What one batch says: a scalar loss to minimise, and detached scalars to watch (left on the device)."""

    loss: Tensor
    diagnostics: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a method is optimised: published values under a name, each recipe with its source.

    `lr` belongs to batches of `lr_batch` images and scales linearly with the batch; with `lr_batch` None it
    is used as it stands. `warmup` is in epochs. `final_lr` is the fraction of the peak that a cosine ends at.
    """

    name: str
    source: str
    optimizer: str = "sgd"  # "sgd" (with `sgd_momentum`), "adam" or "adamw"
    lr: float = 0.03
    lr_batch: int | None = 256
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"  # "cosine", "step" (a tenth at 60 % and again at 80 %) or "constant"
    warmup: float = 0.0
    final_lr: float = 0.0
    batch_size: int = 256
    epochs: int = 200

    def override(self: R, **fields) -> R:
        """A copy with some fields replaced by name; an unknown name is answered with the known ones."""
        known = [field.name for field in dataclasses.fields(self)]
        for field in fields:
            if field not in known:
                listed = ", ".join(known)
                raise ValueError(f"recipe {self.name!r} has no field {field!r}; choose from: {listed}")
        return dataclasses.replace(self, **fields)


def choose(recipes: dict[str, R], recipe: str | R, **overrides) -> R:
    """The recipe meant by a name (or a recipe itself), with fields overridden."""
    if isinstance(recipe, str):
        if recipe not in recipes:
            raise ValueError(f"recipe {recipe!r} is not known; choose one of: {', '.join(recipes)}")
        recipe = recipes[recipe]
    return recipe.override(**overrides)


class Method(nn.Module):
    """A self-supervised objective around an encoder.

    Subclasses set, in `__init__`:
        encoder: the module that is kept when training ends, float (B, C, S, S) -> (B, D).
        policies: one augmentation policy for each view that `forward` expects.
        recipe: the `Recipe` it was made from.
        image_size: the side S of its views in pixels.
    Queues, pointers and averaged networks are buffers or submodules, so that `state_dict` is complete.
    """

    encoder: nn.Module
    policies: tuple[Policy, ...]
    recipe: Recipe
    image_size: int
    supervised: bool = False  # a baseline that asks for the batch's labels, `forward(views, labels=…)`

    def forward(self, views: Sequence[Tensor]) -> Objective:
        """The loss of one batch of float views (B, C, S, S). Called in train mode, under autocast or not."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """What follows an optimiser step (moving averages, queues). `progress` in [0, 1] of the whole run."""


@torch.no_grad()
def embedding_std(z: Tensor) -> Tensor:
    """How widely the unit vectors z (B, D) spread: 1 evenly over the sphere, 0 when all are the same point.

    The standard deviation over the batch, averaged over dimensions, times √D: the collapse indicator of
    SimSiam (arXiv:2011.10566, section 4.1) without its 1/√D.
    """
    return z.float().std(dim=0).mean() * z.shape[1] ** 0.5
