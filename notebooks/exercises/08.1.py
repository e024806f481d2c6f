"""Exercise 08.1, overlap: its solution, cases, and known mistakes."""

import torch


def overlap_solution(a, b):
    return pairs_equal(a, b).any(dim=2).float().mean().item()


def pairs_equal(a, b):
    return a[:, :, None] == b[:, None, :]  # (M, k, k)


overlap_mistakes = {
    "entries were compared place by place; the order of the neighbours does not count": (
        lambda a, b: (a == b).float().mean().item()
    ),
    "an entry was looked for in all rows of b; only the row of the same photograph counts": (
        lambda a, b: torch.isin(a, b).float().mean().item()
    ),
    "the mean was taken over (M, k, k), which divides by k twice; ask `any` over the entries of b first": (
        lambda a, b: pairs_equal(a, b).float().mean().item()
    ),
    "this is how many entries are common; divide by k to have a share": (
        lambda a, b: pairs_equal(a, b).any(dim=2).float().sum(dim=1).mean().item()
    ),
    "the common entries were divided by all that either names; divide by k": (
        lambda a, b: (
            (pairs_equal(a, b).sum(dim=(1, 2)) / (2 * a.shape[1] - pairs_equal(a, b).sum(dim=(1, 2))))
            .mean()
            .item()
        )
    ),
    "`all` asks that an entry equals every entry of b; `any` asks for one": (
        lambda a, b: pairs_equal(a, b).all(dim=2).float().mean().item()
    ),
}


def overlap_case(seed):
    rows = [torch.stack([torch.randperm(15)[:6] for _ in range(8)]) for _ in range(2)]
    return tuple(rows)


EXERCISE = {
    "solution": overlap_solution,
    "case": overlap_case,
    "mistakes": overlap_mistakes,
}
