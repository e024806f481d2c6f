"""Exercise 10.1, near-duplicates: its solution, cases, and known mistakes."""

import torch
import torch.nn.functional as F


def pairs_by(similarity_of, keep):
    return lambda features, threshold: keep(similarity_of(features), threshold).nonzero()


def cosines(features):
    x = F.normalize(features, dim=1)
    return x @ x.T


def distances(features):
    x = F.normalize(features, dim=1)
    return (x[:, None] - x[None]).norm(dim=2)


def above(similarity, threshold):
    return (similarity >= threshold).triu(1)


duplicate_mistakes = {
    "the rows were not normalised: a product of long vectors is large whatever their angle": (
        pairs_by(lambda f: f @ f.T, above)
    ),
    "each row is paired with itself; leave the diagonal out, .triu(1)": (
        pairs_by(cosines, lambda c, t: (c >= t).triu(0))
    ),
    "each pair comes twice, as (i, j) and as (j, i); keep i < j": (
        pairs_by(cosines, lambda c, t: (c >= t) & ~torch.eye(len(c), dtype=torch.bool))
    ),
    "these are the pairs with i > j: .tril(-1) keeps what is below the diagonal, .triu(1) what is above": (
        pairs_by(cosines, lambda c, t: (c >= t).tril(-1))
    ),
    "the features were normalised along dim=0, each feature over the photographs; a row is dim=1": (
        pairs_by(lambda f: F.normalize(f, dim=0) @ F.normalize(f, dim=0).T, above)
    ),
    "a small distance was asked for with >=: these are the pairs that are far apart": (
        pairs_by(distances, above)
    ),
    "the comparison is the wrong way round: a cosine near 1 means alike": (
        pairs_by(cosines, lambda c, t: (c < t).triu(1))
    ),
    "only the nearest neighbour of each row is looked at: three copies make three pairs": (
        lambda f, t: torch.tensor(
            [
                [i, i + 1 + int(row[i + 1 :].argmax())]
                for i, row in enumerate(cosines(f)[:-1])
                if row[i + 1 :].max() >= t
            ]
        )
    ),
}


def duplicate_case(seed):
    make = torch.Generator().manual_seed(seed)
    rows = torch.randn(12, 4, generator=make) * torch.tensor([0.2, 1, 3]).repeat(4)[:, None]
    rows[[3, 7]] = 2.5 * rows[1] + 0.01 * torch.randn(2, 4, generator=make)
    return rows, 0.6


def find_pairs(features, threshold):
    x = F.normalize(features, dim=1)
    return (x @ x.T >= threshold).triu(1).nonzero()


EXERCISE = {
    "solution": find_pairs,
    "case": duplicate_case,
    "mistakes": duplicate_mistakes,
}
