"""Exercise 11.3, two devices as one: its solution, cases, and known mistakes."""

import torch


def weighted(gradients, weights):
    return sum(weight * gradient for weight, gradient in zip(weights, gradients, strict=True))


def combined(gradients, counts):
    return weighted(gradients, counts) / sum(counts)


def inverse(counts):
    return [1 / count for count in counts]


combine_mistakes = {
    "a plain mean: a device with few images counts as much as one with many": lambda g, n: sum(g) / len(g),
    "the gradients were summed: the step grows with the number of devices": lambda g, n: sum(g),
    "weighted, but not divided by the number of all images": weighted,
    "weighted, but divided by the number of devices instead of images": (
        lambda g, n: weighted(g, n) / len(n)
    ),
    "divided by the counts: the gradients are means already, so multiply to get back the sums": (
        lambda g, n: weighted(g, inverse(n)) / sum(inverse(n))
    ),
    "only the first device's gradient was used: the others computed for nothing": lambda g, n: g[0],
}


def combine_case(seed):
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(6, generator=make) for _ in range(3)], [5 + seed, 3, 8]


EXERCISE = {
    "solution": combined,
    "case": combine_case,
    "mistakes": combine_mistakes,
}
