"""Exercise 05.2, tau_at: its solution, cases, and known mistakes."""

import math


def found(base, done, *, turn=math.pi, half=2, away=None, sign=1):
    return 1 - (1 - base if away is None else away(base)) * (sign * math.cos(turn * done) + 1) / half


def case(seed):
    return 0.9 + 0.03 * seed, (0.2, 0.35, 0.8)[seed]


mistakes = {
    "a cosine of `done` without π: the angle is π · done": lambda base, done: found(base, done, turn=1),
    "math.cos takes radians: π is half a turn, not 180": lambda base, done: found(base, done, turn=180),
    "a whole turn: τ would be back at the base in the end; the angle is π · done": (
        lambda base, done: found(base, done, turn=2 * math.pi)
    ),
    "(cos + 1) runs from 2 to 0: divide it by 2": lambda base, done: found(base, done, half=1),
    "`base` stands in place of 1 − `base`": lambda base, done: found(base, done, away=lambda base: base),
    "τ falls from 1 to the base: it should rise to 1": lambda base, done: found(base, done, sign=-1),
    "this is 1 − τ: τ itself rises from the base to 1": lambda base, done: 1 - found(base, done),
    "a straight line from the base to 1: the paper's curve is half a cosine": (
        lambda base, done: base + (1 - base) * done
    ),
    "τ stays at the base: `done` is not used": lambda base, done: base,
}


EXERCISE = {
    "solution": found,
    "case": case,
    "mistakes": mistakes,
}
