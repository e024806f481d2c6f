"""Exercise 03.1, InfoNCE: its solution, cases, and known mistakes."""

from functools import partial

import torch
import torch.nn.functional as F


def answer(q, k, queue, τ, rule=lambda n: n.max(1).values, label=0, factor=1, skip=0):
    positive, negative = (q * k).sum(dim=1), q @ queue.T
    logits = factor * torch.cat([positive[:, None], negative], dim=1) / τ
    loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device) + label)
    loss = loss if not skip else (logits[:, 1:].logsumexp(dim=1) - logits[:, 0]).mean()
    return loss, (positive > rule(negative)).float().mean()


def unit_vectors(seed):
    q = F.normalize(torch.randn(6, 8), dim=1)
    return q, F.normalize(q + 0.9 * torch.randn(6, 8), dim=1), F.normalize(torch.randn(12, 8), dim=1), 0.2


mistakes = {
    "won: compared with the mean of the negatives; one better key is enough to lose": lambda n: n.mean(1),
    "won: compared with the least similar negative; the most similar one decides": lambda n: n.min(1).values,
    "won: compared with the largest of the whole table; each query has its own row": lambda n: n.max(),
    "won: the negatives are ignored; a cosine above 0 is no win": lambda n: 0.0,
}
mistakes = {text: partial(answer, rule=rule) for text, rule in mistakes.items()}
mistakes["loss: the labels 0, 1, 2 … are SimCLR's; here 0 is right"] = partial(answer, label=torch.arange(6))
mistakes["loss: the similarities are not divided by τ"] = partial(answer, factor=0.2)
mistakes["loss: the positive key is missing below the fraction bar"] = partial(answer, skip=1)


EXERCISE = {
    "solution": answer,
    "case": unit_vectors,
    "mistakes": mistakes,
}
