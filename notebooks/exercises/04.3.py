"""Exercise 04.3, two accuracies: its solution, cases, and known mistakes."""

import torch


def two_accuracies(scores, targets, edge=0.0):
    return (scores[targets == 1] > edge).float().mean(), (scores[targets == 0] <= edge).float().mean()


def halves(scores, targets):
    right = ((scores > 0) == (targets == 1)).float()
    return right[: len(right) // 2].mean(), right[len(right) // 2 :].mean()


accuracy_mistakes = {
    "first and second half of the rows, as the official log does: but blocks alternate": halves,
    "one accuracy over all pairs, twice: a head that always says no would look half right": (
        lambda s, t: (((s > 0) == (t == 1)).float().mean(),) * 2
    ),
    "the threshold is 0.5: that is one for probabilities; a score is compared with 0": (
        lambda s, t: two_accuracies(s, t, 0.5)
    ),
    "positives and negatives are swapped": lambda s, t: two_accuracies(s, t)[::-1],
    "divided by all pairs: a share of the positives is wanted, of the negatives alike": (
        lambda s, t: (((s > 0) & (t == 1)).float().mean(), ((s <= 0) & (t == 0)).float().mean())
    ),
    "the second is the share of negatives that are called the same: that is its error": (
        lambda s, t: (two_accuracies(s, t)[0], 1 - two_accuracies(s, t)[1])
    ),
}


def accuracy_case(seed):
    make = torch.Generator().manual_seed(seed)
    answers = torch.tensor([1.0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0])
    return torch.randn(12, generator=make) + 0.3, answers


EXERCISE = {
    "solution": two_accuracies,
    "case": accuracy_case,
    "mistakes": accuracy_mistakes,
}
