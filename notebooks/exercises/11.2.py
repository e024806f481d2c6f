"""Exercise 11.2, whose images: its solution, cases, and known mistakes."""

import torch


def part(batch, rank, size):
    return batch.chunk(size)[rank]


part_mistakes = {
    "that is the whole batch: each process would do the work of all": lambda b, r, n: b,
    "every process got the first part: the other images are never seen": lambda b, r, n: part(b, 0, n),
    "ranks count from 0: you gave a process the part of the one before it": lambda b, r, n: part(b, r - 1, n),
    "every size-th image: none is lost, but joined by rank the parts are not the batch in its order": (
        lambda b, r, n: b[r::n]
    ),
    "a part has B / size images, yours has `size`": lambda b, r, n: b[r * n : (r + 1) * n],
    "those are places in the batch, not the images that stand there": (
        lambda b, r, n: part(torch.arange(len(b)), r, n)
    ),
    "the images were sorted first: then a process always gets the same ones": (
        lambda b, r, n: part(b.sort().values, r, n)
    ),
    "the ranks run backwards: rank 0 takes the first part": lambda b, r, n: part(b, n - 1 - r, n),
}


def part_case(seed):
    order = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
    rank, size = ((1, 2), (0, 3), (1, 4))[seed % 3]
    return order[:24], rank, size


EXERCISE = {
    "solution": part,
    "case": part_case,
    "mistakes": part_mistakes,
}
