"""Exercise 03.3, EMA: its solution, cases, and known mistakes."""

from functools import partial

import torch
from torch import nn


def move(slow, fast, m, keep=None, take=None, most=None):
    pairs = list(zip(slow.parameters(), fast.parameters(), strict=True))
    for theta_k, theta_q in pairs[:most]:
        theta_k.mul_(m if keep is None else keep(m)).add_(theta_q, alpha=take(m) if take else 1 - m)


def two_networks(seed):
    return nn.Linear(3, 2).requires_grad_(False), nn.Linear(3, 2), (0.9, 0.99, 0.7)[seed]


right = torch.no_grad()(move)
mistakes = {
    "m and 1 − m are exchanged": partial(right, keep=lambda m: 1 - m, take=lambda m: m),
    "the wrong network moved: the keys follow the queries": torch.no_grad()(lambda a, b, m: move(b, a, m)),
    "a plain copy: m has no effect": partial(right, keep=lambda m: 0, take=lambda m: 1),
    "the factor 1 − m is missing: the weights grow": partial(right, take=lambda m: 1),
    "the old weights are added whole, without the factor m": partial(right, keep=lambda m: 1),
    "only the first parameter moved; a network has many": partial(right, most=1),
    "nothing moved: change the weights in place, with mul_ and add_": lambda a, b, m: None,
    "the copy now carries a gradient: `torch.no_grad()` is missing": move,
}
seen = dict(observe=lambda _, a, b, m: [*a.parameters(), *b.parameters(), a.weight.requires_grad])


EXERCISE = {
    "solution": right,
    "case": two_networks,
    "mistakes": mistakes,
    **seen,
}
