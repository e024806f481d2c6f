"""Exercise 02.3: its solution, cases, and known mistakes."""

from functools import partial

import torch
import torch.nn.functional as F


def gradient_of(similar, t, mask=-torch.inf, shift=None, pull=1, inner=True, mean=2, dim=1, sign=1):
    rows = len(similar)
    itself = torch.eye(rows, dtype=torch.bool)
    logits = similar / t
    logits = logits if mask is None else logits.masked_fill(itself, mask)
    right = torch.eye(rows).roll(rows // 2 if shift is None else shift, dims=1)
    gradient = sign * (F.softmax(logits, dim=dim) - pull * right)
    return gradient / (t if inner else 1) / (1 if mean is None else mean * rows / 2)


changes = {
    "the inner derivative is missing: the logits are similar / τ": {"inner": False},
    "the mean over the 2B rows is missing: divide by 2B": {"mean": None},
    "divided by B: there are 2B rows": {"mean": 1},
    "the sign is the other way round: softmax − one-hot": {"sign": -1},
    "the diagonal is not masked: an entry that is left out has weight and gradient 0": {"mask": None},
    "the one-hot has its 1 on the diagonal: it belongs in the partner's column": {"shift": 0},
    "the pull towards the partner is missing: subtract the one-hot": {"pull": 0},
    "softmax over the columns (dim=0): each row is a question of its own, dim=1": {"dim": 0},
}
mistakes = {text: partial(gradient_of, **change) for text, change in changes.items()}


EXERCISE = {
    "solution": gradient_of,
    "case": lambda k: (2 * torch.rand(10, 10) - 1, (1 + k) / 5),
    "mistakes": mistakes,
}
