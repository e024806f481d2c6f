"""Exercise 06.2, Effective rank: its solution, cases, and known mistakes."""

import torch
import torch.nn.functional as F


def solution(z):
    sigma = torch.linalg.svdvals(z)
    return torch.special.entr(sigma / sigma.sum()).sum().exp()


def case(seed):
    widths = torch.linspace(2.0, 0.2 + 0.3 * seed, 12)
    return (F.normalize(torch.randn(40 + 10 * seed, 12, dtype=torch.float64) * widths + 0.5, dim=1),)


def of_shares(values, base=1.0):
    return torch.special.entr(values / values.sum()).sum() * base


def svd(z):
    return torch.linalg.svdvals(z)


mistakes = {
    "the squares σ² are shared out (a covariance has those); the formula takes σ": (
        lambda z: of_shares(svd(z).square()).exp()
    ),
    "this is the entropy itself, in nats (natural logarithm); its exponential is a number of directions": (
        lambda z: of_shares(svd(z))
    ),
    "a logarithm to base 2 and the exponential of base e: use the same base twice": (
        lambda z: of_shares(svd(z), 1.4426950408889634).exp()
    ),
    "the values above 0 are counted; a direction that is hardly used counts as much as the first": (
        lambda z: (svd(z) > 1e-9).double().sum()
    ),
    "the mean was subtracted first; one single point would then have a rank of rounding errors": (
        lambda z: of_shares(svd(z - z.mean(dim=0))).exp()
    ),
    "the singular values were not divided by their sum: shares add up to 1": (
        lambda z: torch.special.entr(svd(z)).sum().exp()
    ),
    "the minus sign of the entropy is missing: this is 1 / erank": (lambda z: (-of_shares(svd(z))).exp()),
    "this is the participation ratio (Σσ)² / Σσ², a relative of the effective rank": (
        lambda z: svd(z).sum().square() / svd(z).square().sum()
    ),
}


EXERCISE = {
    "solution": solution,
    "case": case,
    "mistakes": mistakes,
}
