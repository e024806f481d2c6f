"""Exercise 00.4, leave one out: its solution, cases, and known mistakes."""

import torch
import torch.nn.functional as F


def left_out(x, y, k, diagonal=-torch.inf, unit=True, largest=True, only=None, some=False):
    x = F.normalize(x, dim=1) if unit else x
    cosines = x @ x.T
    if diagonal is not None:
        cosines.fill_diagonal_(diagonal)
    nearest = cosines.topk(only or k, dim=1, largest=largest).indices
    if some:
        return (y[nearest] == y[:, None]).any(dim=1).float().mean().item()
    votes = F.one_hot(y[nearest], int(y.max()) + 1).sum(dim=1)
    return (votes.argmax(dim=1) == y).float().mean().item()


def few_case(seed):
    make = torch.Generator().manual_seed(seed)
    x, y = torch.randn(90, 4, generator=make), torch.arange(90) % 3
    x[:, 0] += y - 1
    return x * (0.2 + torch.rand(90, 1, generator=make)), y, 45


alone_mistakes = {
    "each image asks itself too: take the diagonal out": lambda x, y, k: left_out(x, y, k, diagonal=None),
    "the diagonal is 0, which is more than a negative cosine: use minus infinity": (
        lambda x, y, k: left_out(x, y, k, diagonal=0.0)
    ),
    "no cosine: give the vectors length 1 first": lambda x, y, k: left_out(x, y, k, unit=False),
    "the farthest vote: a large cosine means near": (
        lambda x, y, k: left_out(x, y, k, diagonal=torch.inf, largest=False)
    ),
    "only the nearest votes: k of them should": lambda x, y, k: left_out(x, y, k, only=1),
    "right if any of the k is right: the vote of all k must be": lambda x, y, k: left_out(x, y, k, some=True),
    "the number of right answers: divide by the number of images": (
        lambda x, y, k: left_out(x, y, k) * len(y)
    ),
}


EXERCISE = {
    "solution": left_out,
    "case": few_case,
    "mistakes": alone_mistakes,
}
