"""What tests of several methods compare with: sums in Python floats, finite differences, copies in float64,
and functions from whose source a part has been taken."""

import copy
import inspect
import math
import runpy
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

EXERCISES = Path(__file__).resolve().parent.parent / "notebooks" / "exercises"
# The pairs of relational reasoning themselves: features (K·B, D), view after view, and K -> (P, 2D), (P,)
relation_pairs = runpy.run_path(str(EXERCISES / "04.1.py"))["relation_pairs"]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def slopes(f: Callable[[Tensor], float], x: Tensor, step: float = 1e-5) -> Tensor:
    """df/dx by central differences, one number of x (any shape, float64) after the other."""
    gradient, x = torch.zeros_like(x), x.clone()
    for i in range(x.numel()):
        here, ends = x.view(-1)[i].item(), []
        for sign in (1, -1):
            x.view(-1)[i] = here + sign * step
            ends.append(f(x))
        x.view(-1)[i] = here
        gradient.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def twins(*modules: nn.Module) -> list[nn.Module]:
    """Copies in float64."""
    return [copy.deepcopy(module).double() for module in modules]


def parameters(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters()]


def descend(loss: Tensor, moved: list[nn.Parameter], lr: float = 0.1) -> None:
    """A step of plain gradient descent."""
    gradients = torch.autograd.grad(loss, moved)
    with torch.no_grad():
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter -= lr * gradient


def faulty(function: Callable, old: str, new: str) -> Callable:
    """The function with a piece of its source replaced: a fault planted where nothing else could reach."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    if old not in source:  # no AssertionError: that is what a planted fault must raise
        raise LookupError(f"{function.__name__} has no {old!r} any more; plant the fault anew")
    names = dict(function.__globals__)
    exec(source.replace(old, new), names)
    return names[function.__name__]
