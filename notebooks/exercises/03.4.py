"""Exercise 03.4, symmetric step: its solution, cases, and known mistakes."""

from functools import partial

import torch
import torch.nn.functional as F

from ssl_lessons.methods import moco


def does(plan, factor, q1, q2, k1, k2, contrast, enqueue):
    of = {"q1": q1, "q2": q2, "k1": k1, "k2": k2}
    calls = [[of[name] for name in call.split(",")] for call in plan.split()]  # two names: a loss
    return factor * sum(contrast(*n) if len(n) == 2 else enqueue(*n) or 0 for n in calls)


def a_step(seed):
    lines = [F.normalize(torch.randn(12, 16), dim=1)]  # the queue: the last twelve keys
    q1, q2, k1, k2 = F.normalize(torch.randn(4, 6, 16), dim=2)
    return q1, q2, k1, k2, lambda q, k: moco.info_nce(q, k, torch.cat(lines)[-12:], 0.2), lines.append


plans = {
    "q1,k2 k2 q2,k1 k1": "k2 was enqueued before q2 asked: q2 met its own photograph as a negative",
    "k1 k2 q1,k2 q2,k1": "keys were enqueued before the losses: queries met their own as negatives",
    "q1,k2 q2,k1 k1 k1": "k1 was enqueued twice, and k2 is missing",
    "q1,k2 k1 k2": "one direction only; view 2 must ask too",
    "q1,k1 q2,k2 k1 k2": "q1 looked for k1, the same view: nothing is asked; cross them",
}
mistakes = {text: partial(does, plan, 1) for plan, text in plans.items()}
right, half = (partial(does, "q1,k2 q2,k1 k2 k1", factor) for factor in (1, 0.5))
mistakes["the mean of both losses; return the sum"] = half
seen = dict(observe=lambda loss, *given: [loss, torch.cat(given[-1].__self__).sum(dim=1).sort().values])


EXERCISE = {
    "solution": right,
    "case": a_step,
    "mistakes": mistakes,
    **seen,
}
