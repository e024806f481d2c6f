"""Exercise 11.2, the largest batch: its solution, cases, and known mistakes."""

import math

import torch


def line(small, large):
    """(MiB for each image, MiB whatever the batch)"""
    slope = (large[1] - small[1]) / (large[0] - small[0])
    return slope, small[1] - slope * small[0]


def fits(memory, small, large, rounding=math.floor, sign=-1):
    slope, constant = line(small, large)
    return rounding((memory + sign * constant) / slope)


batch_mistakes = {
    "the line was drawn through 0: the weights take memory whatever the batch": (
        lambda memory, a, b: math.floor(memory / (b[1] / b[0]))
    ),
    "the constant part was forgotten: only what it leaves free is shared by the images": (
        lambda memory, a, b: fits(memory, a, b, sign=0)
    ),
    "the constant part was added: it makes the free memory smaller": (
        lambda memory, a, b: fits(memory, a, b, sign=1)
    ),
    "rounded up: one image more than fits": lambda memory, a, b: fits(memory, a, b, math.ceil),
    "not rounded: a batch is a whole number of images": lambda memory, a, b: fits(memory, a, b, float),
    "multiplied by the MiB for each image instead of divided": (
        lambda memory, a, b: math.floor((memory - line(a, b)[1]) * line(a, b)[0])
    ),
}


def batch_case(seed):
    make = torch.Generator().manual_seed(seed)
    slope, constant, free = torch.rand(3, generator=make, dtype=torch.float64).tolist()
    slope, constant = 1.2 + slope, 50 + 100 * constant  # MiB for each image, MiB of the weights
    return 2000 + 5000 * free, (32, constant + 32 * slope), (128, constant + 128 * slope)


EXERCISE = {
    "solution": fits,
    "case": batch_case,
    "mistakes": batch_mistakes,
}
