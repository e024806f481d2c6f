"""Exercise 11.1, faster where it matters: its solution, cases, and known mistakes."""

import torch

speed_mistakes = {
    "that is the new time of the step; old time over new time is wanted": lambda p, k: (1 - p) + p / k,
    "the rest of the step was forgotten: it still takes 1 − p": lambda p, k: k / p,
    "p and 1 − p are swapped: the share p gets faster": lambda p, k: 1 / (p + (1 - p) / k),
    "speeds were averaged; times add up, speeds do not": lambda p, k: (1 - p) + p * k,
    "that is the time that was saved, as a share of the step": lambda p, k: p - p / k,
    "a part that is k times faster takes the k-th part of its time, not k times it": (
        lambda p, k: 1 / ((1 - p) + p * k)
    ),
}


def speed_case(seed):
    p, k = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    return 0.1 + 0.3 * p, 2 + 8 * k  # a share, a factor


EXERCISE = {
    "solution": lambda p, k: 1 / ((1 - p) + p / k),
    "case": speed_case,
    "mistakes": speed_mistakes,
}
