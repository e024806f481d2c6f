"""Exercise 05.3, best_linear_prediction: its solution, cases, and known mistakes."""

from functools import partial

import torch
import torch.nn.functional as F


def rule_and_noise(seed):
    z, z_new = torch.randn(40, 4) + 1, torch.randn(9, 4) - 1
    return z, z @ torch.randn(4, 3) + torch.randn(3) + 0.3 * torch.randn(40, 3), z_new


def found(z, t, z_new, *, one=1.0, one_new=1.0, own=False, weights=False):
    fit = torch.linalg.lstsq(F.pad(z, (0, 1), value=one), t, driver="gelsd").solution  # (P + 1, D)
    return fit if weights else F.pad(z if own else z_new, (0, 1), value=one_new) @ fit


changes = {
    "there is no bias: append a column of ones to z and to z_new": {"one": 0.0, "one_new": 0.0},
    "z_new has no column of ones: append it there too": {"one_new": 0.0},
    "these are predictions for z, the rows of the fit: predict for z_new": {"own": True},
    "this is the fit itself, W and b: multiply z_new by it": {"weights": True},
}
mistakes = {text: partial(found, **change) for text, change in changes.items()}
mistakes |= {
    "every row is the mean of t, as a constant z would give: use z": (
        lambda z, t, z_new: t.mean(dim=0).expand(len(z_new), -1)
    ),
    "z_new is centred by its own mean: subtract the mean of z": (
        lambda z, t, z_new: found(z - z.mean(dim=0), t, z_new - z_new.mean(dim=0))
    ),
    "zᵀt is no fit: the columns of z have sizes and overlap; use lstsq": lambda z, t, z_new: (
        z_new @ (z.T @ t)
    ),
}


EXERCISE = {
    "solution": found,
    "case": rule_and_noise,
    "mistakes": mistakes,
    "atol": 1e-3,
}
