"""What moves the weights: the recipe's optimiser, its groups of parameters, and the rate of a moment."""

import math
import warnings

import torch

from ssl_lessons.devices import TrainingError
from ssl_lessons.methods.base import Method, Recipe
from ssl_lessons.parameters import Parameter, fit


def peak_rate(recipe: Recipe, batch_size: int) -> float:
    """The highest rate of a run: the recipe's, scaled linearly to the batch unless it says otherwise."""
    return recipe.lr if recipe.lr_batch is None else recipe.lr * batch_size / recipe.lr_batch


def learning_rate(recipe: Recipe, batch_size: int, epoch: float, epochs: int) -> float:
    """The rate at a moment of the run, `epoch` in [0, epochs] and fractional within an epoch: linear warm-up
    over `recipe.warmup` epochs, then cosine (SGDR eq. 5 without restarts), steps or nothing. ValueError:
    a moment outside of the run."""
    epoch, epochs = (fit(name, n, Parameter(float, 1)) for name, n in (("epoch", epoch), ("epochs", epochs)))
    if not 0 <= epoch <= epochs + 1e-6 or not epochs:  # a sum of shares may be rounded up
        raise ValueError(f"epoch {epoch} of {epochs}; give the epochs that are done, from 0 to all of them")
    peak = peak_rate(recipe, batch_size)
    warmup = min(recipe.warmup, epochs / 2)  # a short run must not be all warm-up
    if epoch < warmup:
        return peak * epoch / warmup
    progress = (epoch - warmup) / (epochs - warmup)
    if recipe.schedule == "cosine":
        return peak * (recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * progress)) / 2)
    if recipe.schedule == "step":
        return peak * (0.1 if epoch >= 0.6 * epochs else 1) * (0.1 if epoch >= 0.8 * epochs else 1)
    return peak


def set_learning_rate(
    optimizer: torch.optim.Optimizer, recipe: Recipe, batch_size: int, epoch: float, epochs: int
) -> None:
    """Give each group of `optimizer` its rate of this moment, see `learning_rate`."""
    rate = learning_rate(recipe, batch_size, epoch, epochs)
    for group in optimizer.param_groups:
        constant = group.get("constant", False)  # an optimiser of one's own does not say
        group["lr"] = group.get("scale", 1) * (peak_rate(recipe, batch_size) if constant else rate)


def check_run(method: Method, images: int, batch_size: int, epochs: int) -> None:
    """A warning for what a run cannot learn by: rates that are all 0 (its only step is the foot of its
    warm-up), a queue of MoCo's that is longer than the data."""
    recipe, queue = method.recipe, getattr(method.recipe, "queue", 0)
    if epochs * (images // batch_size) == 1 and learning_rate(recipe, batch_size, 0, epochs) == 0:
        text = "this run has one step, at a rate of 0, and learns nothing: take more epochs, or warmup=0"
        warnings.warn(text, stacklevel=3)
    if queue > images:
        text = f"queue {queue} is longer than the data, {images} images: an image's older keys are negatives"
        warnings.warn(f"{text}; take queue={max(1, images // 2)} or less", stacklevel=3)


def build_optimizer(method: Method) -> torch.optim.Optimizer:
    """The recipe's optimiser over every parameter of the method that takes gradients.

    Parameters that are treated apart form groups of their own: biases and normalisation layers where the
    recipe says `plain_norms` (those of one dimension, as in the official codes), the method's `constant_lr`
    submodules (`constant`), and a predictor with a rate or decay of its own. A group's rate is multiplied by
    its `scale`. `TrainingError` where nothing could learn, or `constant_lr` is no tuple of names of
    submodules.
    """
    recipe, weights = method.recipe, list(method.encoder.parameters())
    parts, constant_lr = [name for name, _ in method.named_children()], method.constant_lr
    if isinstance(constant_lr, str) or not set(constant_lr) <= set(parts):
        raise TrainingError(f"constant_lr is {constant_lr!r}; give a tuple of names among {', '.join(parts)}")
    if not torch.is_grad_enabled():
        raise TrainingError("gradients are switched off; call it outside of no_grad and inference_mode")
    if weights and not any(weight.requires_grad for weight in weights):
        raise TrainingError("every weight of the encoder is frozen; call requires_grad_(True) on some")
    groups: dict[tuple, dict] = {}
    own_decay = recipe.predictor_weight_decay is not None
    apart = recipe.predictor_lr != 1 or own_decay
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        part = name.split(".")[0]
        plain = recipe.plain_norms and parameter.ndim <= 1
        constant = part in constant_lr
        predictor = apart and part == "predictor"
        scale = recipe.predictor_lr if predictor else 1.0
        decay = recipe.predictor_weight_decay if predictor and own_decay else recipe.weight_decay
        group = {"params": [], "constant": constant, "scale": scale, "weight_decay": 0.0 if plain else decay}
        groups.setdefault((plain, constant, predictor), group)["params"].append(parameter)
    parameters, settings = list(groups.values()), {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    # one kernel for all weights, where there is one, instead of a loop over them
    fused = next(method.parameters()).device.type in ("cpu", "cuda") or None
    if recipe.optimizer == "lars":
        try:
            from timm.optim import Lars  # here, so that nothing else needs timm
        except ImportError:
            raise TrainingError("optimizer 'lars' is timm's: pip install timm, or choose another") from None
        # Groups without weight decay keep the plain rate, as both official codes do.
        return Lars(parameters, momentum=recipe.sgd_momentum, trust_coeff=1e-3, **settings)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.sgd_momentum, fused=fused, **settings)
    adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return adam(parameters, fused=fused, **settings)
