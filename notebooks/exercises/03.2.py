"""Exercise 03.2, enqueue: its solution, cases, and known mistakes."""

from functools import partial

import torch


def write(queue, pointer, keys, first=None, wrap=True, back=lambda p, B, K: (p + B) % K):
    K, B = len(queue), len(keys)
    places = (pointer if first is None else first(pointer, B, K)) + torch.arange(B, device=keys.device)
    inside = (places < K) | wrap
    queue[places[inside] % K] = keys[inside]
    return back(pointer, B, K)


def a_queue(seed):
    return torch.randn(10, 3), (8, 3, 9)[seed], torch.randn(4, 3)


mistakes = {
    "the pointer leaves the queue; count modulo K": dict(back=lambda p, B, K: p + B),
    "the pointer did not move; the next batch would overwrite this one": dict(back=lambda p, B, K: p),
    "every batch is written to the beginning; start at the pointer": dict(first=lambda p, B, K: 0),
    "the keys behind the end are lost; they go to the beginning": dict(wrap=False),
    "a batch that does not fit starts at 0; fill the end": dict(first=lambda p, B, K: p if p + B <= K else 0),
    "the newest keys were overwritten; the oldest lie at the pointer": dict(first=lambda p, B, K: p - B),
}
mistakes = {text: partial(write, **change) for text, change in mistakes.items()}
mistakes["nothing was written: change the queue in place"] = lambda Q, p, keys: (p + len(keys)) % len(Q)
seen = dict(observe=lambda place, *given: [place, given[0]])


EXERCISE = {
    "solution": write,
    "case": a_queue,
    "mistakes": mistakes,
    **seen,
}
