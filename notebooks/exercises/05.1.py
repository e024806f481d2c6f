"""Exercise 05.1, byol_loss: its solution, cases, and known mistakes."""

from functools import partial

import torch
import torch.nn.functional as F


def found(
    p1, p2, t1, t2, *, cut=torch.detach, same=False, ways=2, scale=1.0, unit=True, over="mean", plus=0.0
):
    total = 0.0
    for p, t in ((p1, t1 if same else t2), (p2, t2 if same else t1))[:ways]:
        p, t = (F.normalize(p, dim=1), F.normalize(cut(t), dim=1)) if unit else (p, cut(t))
        error = (p - t).square()  # (B, D)
        total = total + (error.mean() if over == "entries" else getattr(error.sum(dim=1), over)())
    return scale * total + plus


def value_and_slopes(loss, *vectors):
    slopes = [None] * 4
    if getattr(loss, "requires_grad", False):
        slopes = torch.autograd.grad(loss.sum(), vectors, allow_unused=True)
    return [loss, *(torch.zeros(6, 16) if slope is None else slope for slope in slopes)]


changes = {
    "the value is right, but a gradient reaches the targets: detach t1 and t2": {"cut": lambda t: t},
    "p1 is compared with the target of its own view: it belongs to t2, and p2 to t1": {"same": True},
    "half of the loss: BYOL sums the two directions, it does not average them": {"scale": 0.5},
    "one direction alone: p2 predicts t1 as well": {"ways": 1},
    "a mean over the D entries, as in F.mse_loss: sum over dim=1, then average": {"over": "entries"},
    "summed over the images: take the mean over the batch": {"over": "sum"},
    "the vectors are compared as they are: divide each by its length": {"unit": False},
    "the gradient is right, but 0 must mean agreement: write 2 − 2 · cosine": {"plus": -4.0},
    "the sign is wrong: this loss grows as the vectors agree": {"scale": -1.0},
}
mistakes = {text: partial(found, **change) for text, change in changes.items()}
mistakes["the predictions are detached, so nothing learns: detach the targets"] = lambda p1, p2, t1, t2: (
    found(t1, t2, p1, p2)
)


EXERCISE = {
    "solution": found,
    "case": lambda seed: torch.randn(4, 6, 16, requires_grad=True).unbind(),
    "mistakes": mistakes,
    "observe": value_and_slopes,
}
