"""Exercise 02.2: its solution, cases, and known mistakes."""

from functools import partial

import torch
import torch.nn.functional as F


def loss_of(z1, z2, t, unit=True, power=-1, mask=-torch.inf, shift=None, asking=2, end=lambda x: x, scale=1):
    z, B = torch.cat([z1, z2]), len(z1)
    z = F.normalize(z, dim=1) if unit else z
    logits = z @ z.T * t**power
    logits = logits if mask is None else logits.fill_diagonal_(mask)
    partner = torch.arange(2 * B, device=z.device).roll(B if shift is None else shift)
    return scale * F.cross_entropy(end(logits)[: asking * B], partner[: asking * B])


first = partial(torch.masked_fill, mask=torch.arange(24) < 12, value=-torch.inf)
changes = {
    "the diagonal is not masked: each view competes with itself, whose cosine is 1": {"mask": None},
    "the diagonal is 0, and exp(0) = 1 stays in the sum: mask with −∞": {"mask": 0.0},
    "row i's right answer is its partner, not itself, which is masked": {"shift": 0},
    "softmax before cross_entropy, which applies a softmax itself": {"end": partial(torch.softmax, dim=1)},
    "not normalised: sim is the cosine, so a longer vector must change nothing": {"unit": False},
    "multiplied by the temperature: the formula divides by it": {"power": 1},
    "the temperature is not used": {"power": 0},
    "only the first views ask: the mean goes over all 2B views": {"asking": 1},
    "the sum over the 2B views: the loss is their mean": {"scale": 24},
    "only z1 @ z2.T: the other first views are negatives, too": {"asking": 1, "end": first},
}
mistakes = {text: partial(loss_of, **change) for text, change in changes.items()}


EXERCISE = {
    "solution": loss_of,
    "case": lambda k: (*torch.randn(2, 12, 6), (1 + k) / 5),
    "mistakes": mistakes,
}
