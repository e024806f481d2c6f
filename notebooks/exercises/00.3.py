"""Exercise 00.3, the error: its solution, cases, and known mistakes."""

import math

import torch


def error_case(seed):
    make = torch.Generator().manual_seed(seed)
    return 0.1 + 0.8 * torch.rand((), generator=make).item(), 50 + 400 * seed


error_mistakes = {
    "the root is missing: this is the variance": lambda p, n: p * (1 - p) / n,
    "the number of images is missing: this is the spread of one coin": lambda p, n: math.sqrt(p * (1 - p)),
    "the number of images stands outside the root: four times the images halve the error": (
        lambda p, n: math.sqrt(p * (1 - p)) / n
    ),
    "1 − p is missing: an accuracy of 1 has no scatter": lambda p, n: math.sqrt(p / n),
    "p is missing: an accuracy of 0 has no scatter": lambda p, n: math.sqrt((1 - p) / n),
    "this does not depend on the accuracy: p (1 − p) belongs under the root": lambda p, n: 1 / math.sqrt(n),
    "in per cent: the accuracy is in [0, 1], and so is its error": (
        lambda p, n: 100 * math.sqrt(p * (1 - p) / n)
    ),
    "two errors: return one, the comparison below takes two": lambda p, n: 2 * math.sqrt(p * (1 - p) / n),
}


EXERCISE = {
    "solution": lambda p, n: math.sqrt(p * (1 - p) / n),
    "case": error_case,
    "mistakes": error_mistakes,
    "atol": 1e-6,
}
