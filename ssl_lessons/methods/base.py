"""The contract of a method: views in, a loss and named diagnostics out; and the recipe that sets it up."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ssl_lessons.networks import at_rest, tap
from ssl_lessons.views import Policy, centre, in_channels, normalise, several

R = TypeVar("R", bound="Recipe")
Augmentation = Callable[[Tensor], Tensor]  # float (B, C, H, W) in [0, 1] -> float (B, C, S, S) in [0, 1]


class Representation(NamedTuple):
    """What a network makes of a batch: the kept encoder's features (B, D), and what is compared (B, P)."""

    embedding: Tensor
    projection: Tensor


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
    optimizer: str = "sgd"  # "sgd" and "lars" (both with `sgd_momentum`), "adam" or "adamw"
    lr: float = 0.03
    lr_batch: int | None = 256
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    predictor_lr: float = 1.0  # the predictor's rate, as a multiple of the others'
    predictor_weight_decay: float | None = None  # the predictor's; None: that of the others
    plain_norms: bool = (
        False  # biases and normalisation layers: no weight decay, and no layer-wise rate (LARS)
    )
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
    """The recipe meant by a name (or a recipe itself), with fields overridden.

    `projection_size` and `projection_hidden_size` stand for the last and for the other widths of `head`.
    """
    if isinstance(recipe, str):
        if recipe not in recipes:
            raise ValueError(f"recipe {recipe!r} is not known; choose one of: {', '.join(recipes)}")
        recipe = recipes[recipe]
    size, hidden = (overrides.pop(f"projection_{name}", None) for name in ("size", "hidden_size"))
    if size or hidden:
        if not (head := overrides.get("head", getattr(recipe, "head", ()))):
            raise ValueError(f"recipe {recipe.name!r} has no projector; leave projection_size out")
        overrides["head"] = (*(hidden or width for width in head[:-1]), size or head[-1])
    return recipe.override(**overrides)


class Method(nn.Module):
    """A self-supervised objective around an encoder.

    Subclasses set, in `__init__` (most of it by `wrap`):
        encoder: the module that is kept when training ends, float (B, C, S, S) -> (B, D).
        projector: what stands between it and the loss, (B, D) -> (B, P).
        policies: for each view that `forward` expects, a `Policy` or an augmentation of the user's own.
        recipe: the `Recipe` it was made from.
        image_size: the side S of its views in pixels. channels: 3, or 1 for a network on grey images.
    Queues, pointers and averaged networks are buffers or submodules, so that `state_dict` is complete.

    A method is called in two ways. `method([view, view])` is the objective, as `forward` says. And
    `method(images)`, with one tensor of images, makes the views itself and returns the loss alone: what a
    training loop of one's own needs.
    """

    encoder: nn.Module
    projector: nn.Module
    policies: tuple[Policy | Augmentation, ...]
    recipe: Recipe
    image_size: int
    channels: int = 3
    supervised: bool = False  # a baseline that asks for the batch's labels, `forward(views, labels=…)`
    constant_lr: tuple[str, ...] = ()  # submodules whose learning rate stays at its peak
    run_steps: int | None = None  # optimiser steps of the whole run; `pretrain` sets it

    def wrap(
        self,
        network: nn.Module,
        layer: str | int | None,
        image_size: int,
        recipe: Recipe,
        policies: Sequence[Policy],
        channels: int = 3,
        augment: Augmentation | None = None,
        augment2: Augmentation | None = None,
    ) -> None:
        """Set what all methods have. `augment` replaces the recipe's policy for every view, `augment2` for
        every second one."""
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; images have 3 (colour) or 1 (grey)")
        self.recipe, self.image_size, self.channels = recipe, image_size, channels
        own = (augment, augment2 or augment)
        self.policies = tuple(own[i % 2] or policy for i, policy in enumerate(policies))
        self.encoder = tap(network, layer, image_size, channels)

    def __call__(self, batch: Tensor | Sequence[Tensor], **extra):
        alone = isinstance(batch, Tensor)
        try:
            objective = super().__call__(self.augment(batch) if alone else batch, **extra)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "a batch of one image leaves BatchNorm no variance to divide by; give at least 2 images, or "
                "a network and a recipe without BatchNorm"
            ) from error
        return objective.loss if alone else objective

    def forward(self, views: Sequence[Tensor]) -> Objective:
        """The loss of one batch of float views (B, C, S, S). Called in train mode, under autocast or not."""
        raise NotImplementedError

    def after_step(self, progress: float = 0.0) -> None:
        """What follows an optimiser step (moving averages, queues). `progress` in [0, 1] of the whole run."""

    @torch.no_grad()
    def augment(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """One view for each of `policies`, normalised float (B, C, S, S).

        Args:
            images: uint8, or float in [0, 1], (B, 3 or 1, H, W); floats are rounded to 8 bits first.
            generator: of the draws, on the CPU; None is the global one. A user's own augmentation draws as it
                likes, mostly from the global generator of its device.
        Raises:
            ValueError: other images; a user's augmentation that returns something else than (B, C, S, S)
                floats in [0, 1].
        """
        images = _bytes(images)
        made: dict[int, Tensor] = {}
        ours = [i for i, policy in enumerate(self.policies) if isinstance(policy, Policy)]
        if ours:  # all in one pass of the engine, however many views there are
            every = several(images, [self.policies[i] for i in ours], generator, self.image_size)
            made.update(zip(ours, (in_channels(view, self.channels) for view in every), strict=True))
        pixels = in_channels(images.float() / 255, self.channels) if len(ours) < len(self.policies) else None
        for i, policy in enumerate(self.policies):
            if i not in made:
                made[i] = in_channels(normalise(self._own(policy, pixels)), self.channels)
        return [made[i] for i in range(len(self.policies))]

    def _own(self, augmentation: Augmentation, pixels: Tensor) -> Tensor:
        """A view (B, 3, S, S) in [0, 1] by the user's augmentation, checked."""
        name = getattr(augmentation, "__name__", type(augmentation).__name__)
        view = augmentation(pixels)
        wanted = (len(pixels), self.channels, self.image_size, self.image_size)
        if not isinstance(view, Tensor) or tuple(view.shape) != wanted:
            found = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(
                f"the augmentation {name} returned {found}, not {wanted}; let it end with a crop or resize "
                f"to {self.image_size} pixels, or build the method with another image_size"
            )
        low, high = view.aminmax()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN is refused too
            raise ValueError(
                f"the augmentation {name} returned values from {low:.3g} to {high:.3g}; return values in "
                "[0, 1] and leave normalisation out: it is done afterwards, as for judging"
            )
        return view.float().expand(-1, 3, -1, -1)

    @torch.no_grad()
    def represent(self, images: Tensor) -> Representation:
        """Embeddings and projections of whole images (not of augmented views): see `Representation`.

        Args:
            images: uint8, or float in [0, 1], (B, 3 or 1, H, W), resized to S. The pass runs in eval mode and
                leaves modes and statistics as they were.
        """
        with at_rest(self):
            view = in_channels(centre(_bytes(images), self.image_size), self.channels)
            embedding = self.encoder(view)
            return Representation(embedding, self.projector(embedding))


def _bytes(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) of uint8 or float images with 3 channels or 1."""
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images are {tuple(images.shape)}; give (B, 3, H, W), or (B, 1, H, W) for grey ones"
        )
    if images.dtype != torch.uint8:
        low, high = images.aminmax() if images.is_floating_point() else (torch.tensor(-1), torch.tensor(-1))
        if low < 0 or high > 1:
            raise ValueError(
                f"images are {images.dtype} from {low:.3g} to {high:.3g}; give uint8, or floats in [0, 1], "
                "not normalised yet"
            )
        images = (images * 255).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1)


@torch.no_grad()
def embedding_std(z: Tensor) -> Tensor:
    """How widely the unit vectors z (B, D) spread: 1 evenly over the sphere, 0 when all are the same point.

    The standard deviation over the batch, averaged over dimensions, times √D: the collapse indicator of
    SimSiam (arXiv:2011.10566, section 4.1) without its 1/√D.
    """
    if len(z) < 2:
        return z.new_zeros(())
    return z.float().std(dim=0).mean() * z.shape[1] ** 0.5
