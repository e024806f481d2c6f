"""Exercise 07.1, how much is noise: its solution, cases, and known mistakes."""

import math


def apart_solution(p1, p2, M):
    e1, e2 = math.sqrt(p1 * (1 - p1) / M), math.sqrt(p2 * (1 - p2) / M)
    return abs(p1 - p2) / math.hypot(e1, e2)


def variance(p, M=1):
    return p * (1 - p) / M


apart_mistakes = {
    "the sign is left in: a distance is never negative; take abs of the difference": (
        lambda p, q, M: (p - q) / math.sqrt(variance(p, M) + variance(q, M))
    ),
    "divided by the variance: the root is missing, a standard error is √(p(1 − p)/M)": (
        lambda p, q, M: abs(p - q) / (variance(p, M) + variance(q, M))
    ),
    "e₁ and e₂ were added: independent errors partly cancel, so their squares are added": (
        lambda p, q, M: abs(p - q) / (math.sqrt(variance(p, M)) + math.sqrt(variance(q, M)))
    ),
    "only the first accuracy has an error here: the second is measured too": (
        lambda p, q, M: abs(p - q) / math.sqrt(variance(p, M))
    ),
    "the squares were subtracted: errors add up also when the accuracies are subtracted": (
        lambda p, q, M: abs(p - q) / math.sqrt(abs(variance(p, M) - variance(q, M)))
    ),
    "M is missing: √(p(1 − p)) is the spread of one answer, not of the mean of M answers": (
        lambda p, q, M: abs(p - q) / math.sqrt(variance(p) + variance(q))
    ),
    "the factor 1 − p is missing: an accuracy near 1 has a small error too": (
        lambda p, q, M: abs(p - q) / math.sqrt(p / M + q / M)
    ),
    "this is the standard error of the difference: divide the difference by it": (
        lambda p, q, M: math.sqrt(variance(p, M) + variance(q, M))
    ),
}


def apart_case(seed):
    return ((0.41, 0.345, 3925), (0.3, 0.45, 500), (0.9, 0.92, 1000))[seed]


EXERCISE = {
    "solution": apart_solution,
    "case": apart_case,
    "mistakes": apart_mistakes,
}
