"""Exercise 04.2, the loss: its solution, cases, and known mistakes."""

import torch
import torch.nn.functional as F


def literal_bce(scores, targets, clamp=0.0):
    y = torch.sigmoid(scores).clamp(clamp, 1 - clamp)
    return -(targets * torch.log(y) + (1 - targets) * torch.log(1 - y)).mean()


def loss_case(seed):
    make = torch.Generator().manual_seed(seed)
    some = 3 * torch.randn(8, generator=make)
    answers = (torch.rand(11, generator=make) > 0.5).float()
    return torch.cat([some, torch.tensor([100.0, -100.0, 100.0])]), answers


stable_bce = F.binary_cross_entropy_with_logits
loss_mistakes = {
    "the literal formula breaks at a score of 100: start from the score, not the probability": literal_bce,
    "the probability was clamped: a sure and wrong answer costs too little": (
        lambda s, t: literal_bce(s, t, clamp=1e-7)
    ),
    "the pairs were summed; average them, or the loss grows with K": (
        lambda s, t: stable_bce(s, t, reduction="sum")
    ),
    "the targets are the wrong way round: a score above 0 means the same image": (
        lambda s, t: stable_bce(s, 1 - t)
    ),
    "a sigmoid was applied before: the function gets scores and needs no sigmoid": (
        lambda s, t: stable_bce(s.sigmoid(), t)
    ),
    "only the positives count: the term (1 − t) log(1 − y) is missing": (
        lambda s, t: (stable_bce(s, torch.ones_like(s), reduction="none") * t).mean()
    ),
    "log(1 + e⁻ˢ) without the absolute value: for negative scores max(s, 0) then counts twice": (
        lambda s, t: (s.clamp(min=0) - s * t + F.softplus(-s)).mean()
    ),
}


EXERCISE = {
    "solution": stable_bce,
    "case": loss_case,
    "mistakes": loss_mistakes,
    "atol": 1e-4,
}
