"""Exercise 01.2, partners found: its solution, cases, and known mistakes."""

import torch


def right_rows(similarity):
    return similarity.argmax(dim=1) == torch.arange(len(similarity))


def match_case(seed):
    make = torch.Generator().manual_seed(seed)
    return (torch.rand(41 + seed, 41 + seed, generator=make) + 0.6 * torch.eye(41 + seed),)


match_mistakes = {
    "the largest of each column: the first view asks, so go along the rows, dim=1": (
        lambda x: right_rows(x.T).float().mean().item()
    ),
    "a number of rows, not a share: divide by N": lambda x: right_rows(x).sum().item(),
    "the mean similarity of the partners: we ask how often they are the largest": lambda x: x.diag().mean(),
    "the smallest entry was taken: a large similarity means alike": (
        lambda x: right_rows(-x).float().mean().item()
    ),
    "the share of errors: return that of the right answers": (
        lambda x: 1 - right_rows(x).float().mean().item()
    ),
    "divided by all N² entries: there are N questions": lambda x: right_rows(x).sum().item() / x.numel(),
    "the diagonal was compared with the mean of its row: it must be the largest": (
        lambda x: (x.diag() > x.mean(dim=1)).float().mean().item()
    ),
}


EXERCISE = {
    "solution": lambda x: right_rows(x).float().mean().item(),
    "case": match_case,
    "mistakes": match_mistakes,
}
