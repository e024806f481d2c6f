"""Exercise 09.2, VICReg: its solution, cases, and known mistakes."""

import torch
import torch.nn.functional as F


def vicreg(z1, z2, weights=(25, 25, 1), root=True, dim=0, diagonal=False, centred=True, both=(0, 1), half=2):
    n, d = z1.shape
    variance = covariance = 0.0
    for z in [(z1, z2)[i] for i in both]:
        spread = z.var(dim=dim) + 1e-4
        variance = variance + F.relu(1 - (spread.sqrt() if root else spread)).mean() / half
        z = z - z.mean(dim=0) if centred else z
        c = z.T @ z / (n - 1)
        covariance = covariance + (c if diagonal else c - torch.diag(c.diagonal())).square().sum() / d
    parts = (F.mse_loss(z1, z2), variance, covariance)
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))


def vicreg_case(seed):
    make = torch.Generator().manual_seed(seed)
    return tuple(0.6 * torch.randn(2, 16, 5, generator=make) + 0.4)


vicreg_mistakes = {
    "the weights 25, 25 and 1 are missing": lambda a, b: vicreg(a, b, weights=(1, 1, 1)),
    "the hinge sees the variance; it wants its square root": lambda a, b: vicreg(a, b, root=False),
    "the spread is taken along dim=1; take it over the batch": lambda a, b: vicreg(a, b, dim=1),
    "the diagonal is in the covariance term: it would push the variances to 0": (
        lambda a, b: vicreg(a, b, diagonal=True)
    ),
    "the columns are not centred before the covariance": lambda a, b: vicreg(a, b, centred=False),
    "only the first view has a variance and a covariance term": lambda a, b: vicreg(a, b, both=(0,)),
    "each view's variance term is halved; yours is twice as large": lambda a, b: vicreg(a, b, half=1),
}


EXERCISE = {
    "solution": vicreg,
    "case": vicreg_case,
    "mistakes": vicreg_mistakes,
    "atol": 1e-4,
}
