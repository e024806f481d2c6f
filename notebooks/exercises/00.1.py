"""Exercise 00.1, the vote: its solution, cases, and known mistakes."""

import torch


def vote_with(weight, largest=True, last=None):
    def voted(cosines, labels, classes, k=20, t=0.07):
        nearest = cosines.topk(last or k, dim=1, largest=largest)
        votes = torch.zeros(len(cosines), classes)
        votes.scatter_add_(1, labels[nearest.indices], weight(nearest.values, t))
        return votes.argmax(dim=1)

    return voted


def vote_case(seed):
    make = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(200, 60, generator=make) - 1, torch.arange(60) % 5, 5, 9, 0.3


by_rule = vote_with(lambda s, t: (s / t).exp())
vote_mistakes = {
    "each neighbour has one vote: weigh it by exp(s / t)": vote_with(lambda s, t: torch.ones_like(s)),
    "the weight is exp(s · t): divide by t, or all weights are nearly equal": vote_with(
        lambda s, t: (s * t).exp()
    ),
    "the weight is the cosine itself: the rule says exp(s / t)": vote_with(lambda s, t: s),
    "t is missing: exp(s) hardly tells near from far": vote_with(lambda s, t: s.exp()),
    "the least alike vote: a large cosine means alike": vote_with(lambda s, t: (s / t).exp(), False),
    "only the nearest one votes: k of them should": vote_with(lambda s, t: (s / t).exp(), last=1),
    "all training images vote: only the k nearest should": vote_with(lambda s, t: (s / t).exp(), last=60),
    "a row number of the training images, not a class: look it up in labels": (
        lambda c, y, n, k=20, t=0.07: c.argmax(dim=1)
    ),
}


EXERCISE = {
    "solution": by_rule,
    "case": vote_case,
    "mistakes": vote_mistakes,
}
