"""Exercise 08.2, mean distance: its solution, cases, and known mistakes."""

import torch
import torch.nn.functional as F


def mean_distance_solution(z):
    return 1 - (every_pair(z) - len(z)) / (len(z) * (len(z) - 1))


def every_pair(z):
    return z.sum(dim=0).square().sum()  # Σᵢⱼ zᵢ·zⱼ


mean_distance_mistakes = {
    "the pairs of a row with itself are in the mean; take B from the sum and from the number of pairs": (
        lambda z: 1 - every_pair(z) / len(z) ** 2
    ),
    "the B pairs i = j are still in the sum; each of them is 1": (
        lambda z: 1 - every_pair(z) / (len(z) * (len(z) - 1))
    ),
    "the B pairs i = j were taken from the sum, and not from the number of pairs: B (B − 1)": (
        lambda z: 1 - (every_pair(z) - len(z)) / len(z) ** 2
    ),
    "this is the mean cosine; the distance is 1 minus it": (
        lambda z: (every_pair(z) - len(z)) / (len(z) * (len(z) - 1))
    ),
    "the length of the sum was not squared": (
        lambda z: 1 - (z.sum(dim=0).norm() - len(z)) / (len(z) * (len(z) - 1))
    ),
    "the sum over i ≠ j counts each pair twice, so divide by B (B − 1), not by half of it": (
        lambda z: 1 - (every_pair(z) - len(z)) / (len(z) * (len(z) - 1) / 2)
    ),
    "the sum ran over the numbers of a row (dim=1); add up the rows (dim=0)": (
        lambda z: 1 - (z.sum(dim=1).square().sum() - len(z)) / (len(z) * (len(z) - 1))
    ),
}


def mean_distance_case(seed):
    return (F.normalize(torch.randn(12, 8, dtype=torch.float64) + 0.5, dim=1),)


EXERCISE = {
    "solution": mean_distance_solution,
    "case": mean_distance_case,
    "mistakes": mean_distance_mistakes,
}
