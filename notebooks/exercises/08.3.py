"""Exercise 08.3, a sanity check: its solution, cases, and known mistakes."""

import torch
import torch.nn.functional as F


def centred_rows(x):
    return x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True)  # (N, H·W)


agreement_mistakes = {
    "no mean was subtracted: this is the cosine, and brightness counts in it": (
        lambda a, b: F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).mean()
    ),
    "one mean was subtracted from all maps; each map has its own": (
        lambda a, b: F.cosine_similarity((a - a.mean()).flatten(1), (b - b.mean()).flatten(1), dim=1).mean()
    ),
    "all images were put into one row; correlate each image, then take the mean": (
        lambda a, b: torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
    ),
    "this is the covariance; divide by the lengths of both rows": (
        lambda a, b: (centred_rows(a) * centred_rows(b)).mean()
    ),
    "each line of a map was correlated alone; flatten the map first": (
        lambda a, b: F.cosine_similarity(
            a - a.mean(dim=2, keepdim=True), b - b.mean(dim=2, keepdim=True), dim=2
        ).mean()
    ),
    "the sign was lost: a map and its negative agree with −1, not 1": (
        lambda a, b: F.cosine_similarity(centred_rows(a), centred_rows(b), dim=1).abs().mean()
    ),
    "the correlation ran over the images (dim=0); it runs over the pixels (dim=1)": (
        lambda a, b: F.cosine_similarity(centred_rows(a), centred_rows(b), dim=0).mean()
    ),
}


def agreement_case(seed):
    a = torch.rand(5, 6, 6, dtype=torch.float64) + torch.rand(5, 1, 1)
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])[:, None, None]
    return a, sign * a + 0.3 * torch.rand(5, 6, 6) + 2


EXERCISE = {
    "solution": lambda a, b: F.cosine_similarity(centred_rows(a), centred_rows(b), dim=1).mean(),
    "case": agreement_case,
    "mistakes": agreement_mistakes,
}
