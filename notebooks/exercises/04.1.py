"""Exercise 04.1, the pairs: its solution, cases, and known mistakes."""

import torch

from ssl_lessons.methods import relational


def relation_pairs(features, K):
    first, second, targets = relational.relation_index(K, len(features) // K, features.device)
    return torch.cat([features[first], features[second]], dim=1), targets


def pairs_with(features, K, shift_of, pairs_of=None, flip=False, dims=0):
    """All pairs, with another rule for the shift (of pair of views n in a batch of B)."""
    B, rows, targets = len(features) // K, [], []
    of_view = features.split(B)
    order = pairs_of(K) if pairs_of else [(i, j) for i in range(K) for j in range(i + 1, K)]
    for n, (i, j) in enumerate(order):
        other = of_view[j].roll(shift_of(n, B), dims=dims)
        rows += [torch.cat([of_view[i], of_view[j]], 1), torch.cat([of_view[i], other], 1)]
        targets += [torch.full((B,), float(not flip)), torch.full((B,), float(flip))]
    return torch.cat(rows), torch.cat(targets)


right = lambda n, B: 1 + n % (B - 1)  # noqa: E731
pair_mistakes = {
    "the shift stays at 1: each image meets one neighbour only; let it grow with each pair of views": (
        lambda f, K: pairs_with(f, K, lambda n, B: 1)
    ),
    "the shift starts at 0: in the first pair of views every image meets itself as a negative": (
        lambda f, K: pairs_with(f, K, lambda n, B: n % B)
    ),
    "the shift reaches the batch size: there every image meets itself; return to 1 one step earlier": (
        lambda f, K: pairs_with(f, K, lambda n, B: 1 + n % B)
    ),
    "the targets are the wrong way round: 1 means the same image": (
        lambda f, K: pairs_with(f, K, right, flip=True)
    ),
    "the features were rolled along dims=1, inside a vector; images lie along dims=0": (
        lambda f, K: pairs_with(f, K, right, dims=1)
    ),
    "only the first view is paired with the others; every pair i < j is wanted": (
        lambda f, K: pairs_with(f, K, right, lambda K: [(0, j) for j in range(1, K)])
    ),
    "a view is paired with itself too (j = i); start j at i + 1": (
        lambda f, K: pairs_with(f, K, right, lambda K: [(i, j) for i in range(K) for j in range(i, K)])
    ),
}


def pair_case(seed):
    K, B = ((3, 5), (4, 3), (5, 4))[seed]
    return torch.randn(K * B, 3, generator=torch.Generator().manual_seed(seed)), K


EXERCISE = {
    "solution": relation_pairs,
    "case": pair_case,
    "mistakes": pair_mistakes,
}
