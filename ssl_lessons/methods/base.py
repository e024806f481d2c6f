"""The contract of a method: views in, a loss and named diagnostics out; and the recipe that sets it up."""

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lessons.networks import eval_mode, tap
from ssl_lessons.parameters import Parameter, Unknown, fit, known
from ssl_lessons.processes import draws_kept, rank_and_size
from ssl_lessons.views import Policy, centre, in_channels, normalize, several

R = TypeVar("R", bound="Recipe")
NAMES = ("loss", "epoch", "lr", "seconds", "peak_memory")  # of a history's columns, which are pretrain's
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
    """How a method is optimised: published values under a name, each recipe with its source; `Unknown`, a
    ValueError, for a value that does not fit its annotation or is out of its range."""

    name: str
    source: str
    optimizer: Literal["sgd", "lars", "adam", "adamw"] = "sgd"  # the first two with `sgd_momentum`
    lr: float = 0.03  # at `lr_batch` images a batch; it scales linearly with the batch
    lr_batch: int | None = 256  # None: `lr` as it stands
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    predictor_lr: float = 1.0  # the predictor's rate, as a multiple of the others'
    predictor_weight_decay: float | None = None  # the predictor's; None: that of the others
    # biases and normalisation layers: no weight decay, and no layer-wise rate (LARS)
    plain_norms: bool = False
    schedule: Literal["cosine", "step", "constant"] = "cosine"  # step: a tenth at 60 % and again at 80 %
    warmup: float = 0.0  # epochs
    final_lr: float = 0.0  # what a cosine ends at, as a share of the peak
    batch_size: int = 256
    epochs: int = 200

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is Policy and not callable(value) and not isinstance(value, Policy):
                raise Unknown(f"{field.name} is {value!r}; it must be a Policy, such as views.SIMCLR")
            fitted = fit(field.name, value, Parameter(field.type, field.default))
            object.__setattr__(self, field.name, fitted)  # text as what it stands for

    def override(self: R, **fields) -> R:
        """A copy with some fields replaced; ValueError for an unknown name or a value that does not fit.
        `projection_size` and `projection_hidden_size` are the last and the other widths of `head`."""
        size, hidden = fields.pop("projection_size", None), fields.pop("projection_hidden_size", None)
        if size is not None or hidden is not None:
            head = fields.get("head", getattr(self, "head", ()))
            if not head:
                raise Unknown(f"recipe {self.name!r} has no projector; leave projection_size out")
            widths = head[:-1] if hidden is None else [hidden] * (len(head) - 1)
            fields["head"] = (*widths, head[-1] if size is None else size)
        names = [field.name for field in dataclasses.fields(self)]
        for name in fields.keys() - names:
            raise Unknown(f"recipe {self.name!r} has no field {name!r}; choose from: {', '.join(names)}")
        return dataclasses.replace(self, **fields)


def choose(recipes: dict[str, R], recipe: str | R, **overrides) -> R:
    """The recipe meant by a name (or a recipe itself), with fields overridden."""
    if isinstance(recipe, str):
        recipe = recipes[known("recipe", recipe, recipes)]
    kind = type(next(iter(recipes.values())))
    if not isinstance(recipe, kind):
        raise ValueError(f"recipe is {recipe!r}; give a name or a {kind.__name__}")
    return recipe.override(**overrides)


_in_a_method = ContextVar("in_a_method", default=False)


def checked(loss: Callable) -> Callable:
    """A decorator of losses: they compute in float32, whatever the inputs and autocast are, or in float64
    where an input is that.
    ValueError for tensors that are empty, not (N, D), or (N,) where there are targets, or of unlike shapes
    (the second's is the first's, others share its last axis), and for values that are not finite. In a
    method's own pass values go unread, since reading makes a GPU wait: the loss is then NaN, and `pretrain`
    says so."""
    signature = inspect.signature(loss)
    vectors = "targets" in signature.parameters
    expected = "(N,), alike" if vectors else "(N, D), D the same and the first two alike"

    @functools.wraps(loss)
    def wrapper(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs).arguments
        names = [name for name in arguments if signature.parameters[name].annotation is Tensor]
        tensors = {name: torch.as_tensor(arguments[name]) for name in names}
        shapes = [tuple(tensor.shape) for tensor in tensors.values()]
        whole = all(len(shape) == (1 if vectors else 2) and 0 not in shape for shape in shapes)
        if not whole or shapes[0] != shapes[1] or any(shape[-1] != shapes[0][-1] for shape in shapes):
            given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            raise ValueError(f"{loss.__name__} has {given}; expected {expected}, and nothing empty")
        double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
        for name, tensor in tensors.items():
            if tensor.is_complex() or not _in_a_method.get() and not tensor.isfinite().all():
                raise ValueError(f"{loss.__name__}: {name} has values that are NaN or infinite, or complex")
            if name == "targets" and not _in_a_method.get() and (tensor != tensor.clamp(0, 1)).any():
                raise ValueError(f"{loss.__name__}: targets lie outside of [0, 1]; 1 is a positive")
            arguments[name] = tensor.double() if double else tensor.float()
        with torch.autocast(tensor.device.type, enabled=False):
            return loss(**arguments)

    return wrapper


def check_temperature(temperature: float, usual: str) -> None:
    """ValueError for all but one number, or a tensor of one, by which float32 can divide a cosine."""
    number = isinstance(temperature, int | float) or getattr(temperature, "shape", None) == ()
    if not number or not 1e-30 <= temperature <= 1e30:
        raise ValueError(f"temperature {temperature!r} must be a number above 0 (1e-30 to 1e30); {usual}")


def size_of(z: Tensor, dim: int = 1) -> Tensor:
    """The power of two at or below the largest magnitude along `dim`, which is kept; 1 where all are zero.
    z: float32 or float64. Dividing by it is exact; then no square overflows, none that counts vanishes."""
    largest = z.detach().abs().amax(dim, keepdim=True)
    bits, exponent = (torch.int64, 0x7FF << 52) if z.dtype == torch.float64 else (torch.int32, 0xFF << 23)
    power = (largest.view(bits) & exponent).view(z.dtype)  # its sign and fraction are struck out
    return power.masked_fill(power == 0, 1)


def unit(z: Tensor) -> Tensor:
    """Rows (N, D) of any size brought to length 1; one of zeros stays that, with a gradient of its size."""
    return F.normalize(z / size_of(z), dim=1, eps=0.5)  # no row but one of zeros is shorter than 1


class Method(nn.Module):
    """A self-supervised objective around an encoder. A subclass fills in `recipes`, `build` and `forward`.
    network: any `nn.Module` on (B, C, S, S), trained in place. (None is for a subclass with a constructor of
        its own, which sets `encoder`, `policies`, `recipe` and `image_size`, as the lessons' do.)
    layer: where the representation is read, see `networks.tap`; None for a ResNet's `avgpool`.
    image_size: the side S of the views, pixels. channels: 3, or 1 for a network on grey images.
    recipe: a name in `recipes` (None: `default_recipe`), or a `Recipe`; `overrides` are its fields.
    augment, augment2: an `Augmentation` in place of the recipe's policy, of every (second) view.
    ValueError: an unknown recipe, field or layer (the message lists the known ones), a bad value.

    `method(views)` is the objective; `method(images)`, with one tensor of images, makes the views itself and
    returns the loss alone. Queues, pointers and averaged networks are in the `state_dict`."""

    recipes: dict[str, Recipe]
    default_recipe = "small_data"
    supervised = False  # a baseline that asks for the batch's labels, `forward(views, labels=…)`
    constant_lr: tuple[str, ...] = ()  # submodules whose learning rate stays at its peak
    needs_after_step = False  # a loop that never calls `after_step` is told
    run_steps: int | None = None  # optimiser steps of the whole run; `pretrain` sets it
    encoder: nn.Module  # what is kept when training ends, float (B, C, S, S) -> (B, D)
    projector: nn.Module  # what stands between it and the loss, (B, D) -> (B, P)
    policies: tuple[Policy | Augmentation, ...]  # one for each view that `forward` expects
    channels = 3

    def __init__(
        self,
        network: nn.Module | None = None,
        layer: str | int | None = None,
        image_size: int = 64,
        recipe: str | Recipe | None = None,
        *,
        channels: int = 3,
        augment: Augmentation | None = None,
        augment2: Augmentation | None = None,
        **overrides,
    ):
        super().__init__()
        self._weights: Tensor | None = None  # their sum at the last pass; None since `after_step`
        self._tried: list[Augmentation] = []
        if network is None and type(self).__init__ is not Method.__init__:
            return
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; images have 3 (colour) or 1 (grey)")
        self.recipe = choose(self.recipes, recipe or self.default_recipe, **overrides)
        self.image_size, self.channels = image_size, channels
        self.encoder = tap(network, layer, image_size, channels)  # f
        policies = self.build(self.recipe)
        own = (augment, augment2 or augment)
        self.policies = tuple(own[i % 2] or policy for i, policy in enumerate(policies))
        self.to(next(self.encoder.parameters(), torch.empty(0)).device)  # the heads follow the network

    def build(self, r: Recipe) -> Sequence[Policy]:
        """Add heads, queues and averaged networks; return a policy for each view that `forward` expects."""
        raise NotImplementedError

    def forward(self, views: Sequence[Tensor]) -> Objective:
        """The loss of one batch of float views (B, C, S, S). Called in train mode, under autocast or not."""
        raise NotImplementedError

    def after_step(self, progress: float = 0.0) -> None:
        """What follows an optimiser step (moving averages, queues). `progress` in [0, 1] of the whole run."""

    def loss(self, images: Tensor) -> Tensor:
        """The scalar loss of images as `augment` takes them."""
        return self(images)

    def to(self, *args, memory_format: torch.memory_format | None = None, **kwargs):
        """As `nn.Module.to`; a layout is given to weights of four dimensions and asked of no other."""
        super().to(*args, **kwargs)
        plain = [part for part in self.modules() if getattr(part, "plain_layout", False)]
        kept = {id(weight) for part in plain for weight in part.parameters()}
        for parameter in self.parameters():
            if memory_format is not None and parameter.dim() == 4 and id(parameter) not in kept:
                parameter.data = parameter.data.to(memory_format=memory_format)
        return self

    def __call__(self, batch: Tensor | Sequence[Tensor], **extra):
        alone = isinstance(batch, Tensor)
        views = self.augment(batch) if alone else batch
        kinds, count = [(getattr(view, "dtype", None), *view.shape) for view in views], len(self.policies)
        alike = len(kinds) == count and len(set(kinds)) == 1 and len(kinds[0]) == 5 and len(views[0])
        if not alike or kinds[0][2] != self.channels or not getattr(kinds[0][0], "is_floating_point", False):
            wanted = f"{count} of one shape (B, {self.channels}, S, S), floats"
            raise ValueError(f"views are {kinds}; give {wanted}, or a single tensor of images")
        if self.needs_after_step and self.training and torch.is_grad_enabled() and self.run_steps is None:
            self._expect_after_step()
        token = _in_a_method.set(True)
        try:
            objective = self._objective(super().__call__(views, **extra))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError("a batch of one has no variance for BatchNorm; give at least 2") from error
        finally:
            _in_a_method.reset(token)
        return objective.loss if alone else objective

    def _objective(self, returned) -> Objective:
        """What `forward` returned, if it is a loss to learn from and numbers to watch."""
        name, learns = f"{type(self).__name__}.forward", self.training and torch.is_grad_enabled()
        if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], dict):
            raise ValueError(f"{name} returned {returned!r:.80}; return Objective(loss, {{name: number}})")
        loss, diagnostics = returned
        if not isinstance(loss, Tensor) or loss.dim() or (learns and not loss.requires_grad):
            raise ValueError(f"{name}: the loss is {loss!r:.80}; return one number, with its gradient")
        for watched, value in diagnostics.items():
            if watched in NAMES or getattr(value, "numel", lambda: 1)() != 1:
                fault = f"{name}: the diagnostic {watched!r} is {value!r:.80}"
                raise ValueError(f"{fault}; give one number, under another name than {', '.join(NAMES)}")
        return Objective(loss, diagnostics)

    @torch.no_grad()
    def _expect_after_step(self) -> None:
        """Warn, once, where the weights have moved since the last pass (passes whose gradients add up move
        none) and `after_step` was not called since; in a loop of one's own, as `pretrain` forgets nothing."""
        weights = sum(parameter.double().sum() for parameter in self.parameters() if parameter.requires_grad)
        if self._weights is not None and weights != self._weights:
            self.needs_after_step = False
            way_out = "call method.after_step() after each optimizer.step()"
            warnings.warn(f"{type(self).__name__}'s averaged network has not moved; {way_out}", stacklevel=3)
        self._weights = weights

    @torch.no_grad()
    def augment(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """One view for each of `policies`, normalised float (B, C, S, S), of images uint8 or float in [0, 1],
        (B, 3 or 1, H, W). `generator` on the CPU draws; None: the global one. ValueError for other images,
        and for an augmentation of one's own that returns anything but (B, C, S, S) floats in [0, 1]."""
        images = as_bytes(images)
        papers = [policy for policy in self.policies if isinstance(policy, Policy)]
        # all in one pass of the engine; of several processes with one generator, each draws for all and takes
        # its part, so that a batch's views are the same however it is divided
        drawn = iter(several(images, papers, generator, self.image_size, share=rank_and_size()))
        views = []
        for policy in self.policies:
            view = next(drawn) if isinstance(policy, Policy) else normalize(self._own(policy, images))
            views.append(in_channels(view, self.channels))
        return views

    def _own(self, augmentation: Augmentation, images: Tensor) -> Tensor:
        """A view (B, 3, S, S) in [0, 1] by the user's augmentation, checked."""
        view = augmentation(in_channels(images.float() / 255, self.channels))
        name = f"the augmentation {getattr(augmentation, '__name__', type(augmentation).__name__)}"
        expected = (len(images), self.channels, self.image_size, self.image_size)
        shape = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
        if shape != expected:
            raise ValueError(f"{name} returned {shape}, not {expected}; crop or resize to {self.image_size}")
        low, high = view.aminmax()
        if not (low >= -0.5 and high <= 1.5):  # bicubic goes a little beyond; NaN is refused too
            fault = f"{name} returned values from {low:.3g} to {high:.3g}; return values in [0, 1] and "
            raise ValueError(f"{fault}leave normalisation out: it is done afterwards, as for judging")
        if not any(one is augmentation for one in self._tried):
            self._tried.append(augmentation)
            self._try(augmentation, in_channels(images[:1].float() / 255, self.channels), name)
        return view.float().clamp(0, 1).expand(-1, 3, -1, -1)

    def _try(self, augmentation: Augmentation, image: Tensor, name: str) -> None:
        """Warn of one draw for a whole batch: eight equal images stay equal, and come out otherwise the next
        time."""
        try:
            with draws_kept(image.device):
                views = [augmentation(image.repeat(8, 1, 1, 1)).float() for _ in range(8)]
        except Exception:  # one that is made for batches of one length
            return
        equal = all(torch.allclose(view, view[:1].expand_as(view), atol=1e-5) for view in views)
        if equal and not all(torch.allclose(view, views[0], atol=1e-5) for view in views):
            warnings.warn(f"{name} draws once for the whole batch; draw for each image", stacklevel=4)

    @torch.no_grad()
    def represent(self, images: Tensor) -> Representation:
        """The `Representation` of whole images (not of augmented views), as `augment` takes them, resized to
        S. The pass runs in eval mode and leaves modes and statistics as they were."""
        with eval_mode(self):
            whole = centre(as_bytes(images), self.image_size)
            embedding = self.encoder(in_channels(whole, self.channels))
            return Representation(embedding, self.projector(embedding))


def as_bytes(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) of uint8 images, or of floats in [0, 1], with 3 channels or 1."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"images are {shape}; give (B, 3, H, W), or (B, 1, H, W) for grey ones")
    if images.dtype != torch.uint8:
        low, high = (float(value) for value in images.aminmax())
        if not images.is_floating_point() or not (low >= 0 and high <= 1):  # NaN is refused too
            kind = f"{images.dtype} from {low:.3g} to {high:.3g}"
            raise ValueError(f"images are {kind}; give uint8, or floats in [0, 1], not normalised yet")
        images = (images * 255).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1)


def views_of(method: Method) -> list[str]:
    """The names of what makes a method's views: of its policies, or of the user's own augmentations."""
    return [getattr(p, "name", getattr(p, "__qualname__", type(p).__name__)) for p in method.policies]


@torch.no_grad()
def embedding_std(z: Tensor) -> Tensor:
    """How widely the unit vectors z (B, D) spread: 1 evenly over the sphere, 0 when all are the same point.
    The standard deviation over the batch, averaged over dimensions, times √D (SimSiam, section 4.1)."""
    if len(z) < 2:
        return z.new_zeros(())
    return z.float().std(dim=0).mean() * z.shape[1] ** 0.5
