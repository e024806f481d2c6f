"""Exercise 09.3, paired bootstrap: its solution, cases, and known mistakes."""

import torch


def paired(right_a, right_b, index):
    return (right_a[index] - right_b[index]).mean(dim=1)


def bootstrap_case(seed):
    make = torch.Generator().manual_seed(seed)
    answers = (torch.rand(2, 12, generator=make) > 0.4).double()
    return answers[0], answers[1], torch.randint(12, (12, 12), generator=make)


bootstrap_mistakes = {
    "the two encoders get different draws: take the same images for both": (
        lambda a, b, index: a[index].mean(dim=1) - b[index.flip(0)].mean(dim=1)
    ),
    "b − a: the first minus the second is asked": lambda a, b, index: paired(b, a, index),
    "averaged over the draws (dim=0); a difference for each draw is asked": (
        lambda a, b, index: (a[index] - b[index]).mean(dim=0)
    ),
    "summed over the images; an accuracy is a mean": lambda a, b, index: (a[index] - b[index]).sum(dim=1),
    "the draws are not used: the same difference each time": (
        lambda a, b, index: (a - b).mean().expand(len(index))
    ),
    "only how often they disagree: keep the sign": lambda a, b, i: (a[i] - b[i]).abs().mean(dim=1),
}


EXERCISE = {
    "solution": paired,
    "case": bootstrap_case,
    "mistakes": bootstrap_mistakes,
}
