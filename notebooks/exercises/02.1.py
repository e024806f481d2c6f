"""Exercise 02.1: its solution, cases, and known mistakes."""

from functools import partial

import torch
import torch.nn.functional as F


def found(z1, z2, norm=1, itself=-1.0, right=None, asking=2, scale=1):
    z, B = torch.cat([z1, z2]), len(z1)
    z = F.normalize(z, dim=norm) if norm is not None else z
    similar = z @ z.T if itself is None else (z @ z.T).fill_diagonal_(itself)
    partner = torch.arange(2 * B, device=z.device).roll(B) if right is None else right
    return scale * (similar.argmax(dim=1) == partner)[: asking * B].float().mean()


rows = torch.arange(80)  # of a case
changes = {
    "each view finds itself, since its cosine with itself is 1: put −1 on the diagonal": {"itself": None},
    "row i's right answer is its partner, not row i itself": {"itself": None, "right": rows},
    "a long vector wins: bring each row to length 1 first": {"norm": None, "itself": -torch.inf},
    "normalised along the batch (dim=0): it is each row that must have length 1": {"norm": 0},
    "only the first views ask: the B second views ask, too": {"asking": 1},
    "the number of views: divide by 2B to have their share": {"scale": 80},
    "in per cent, where a share between 0 and 1 is asked for": {"scale": 100},
    "row i's partner is not a neighbouring row, but B rows away": {"right": rows ^ 1},
}
mistakes = {text: partial(found, **change) for text, change in changes.items()}


EXERCISE = {
    "solution": found,
    "case": lambda seed: torch.randn(2, 40, 6).cumsum(0),
    "mistakes": mistakes,
}
