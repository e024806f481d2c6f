"""Collapse and geometry: how the embeddings of a method lie on their sphere, and what is expected of them.

A method without negatives can make its loss splendid by mapping all images to one point or few directions.
The loss cannot tell; the figures here can. They bring rows z of D numbers to length 1, as the losses do.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lessons.images import ImageStore
from ssl_lessons.methods.base import Method, embedding_std, unit
from ssl_lessons.networks import eval_mode
from ssl_lessons.parameters import Parameter, fit
from ssl_lessons.processes import alone
from ssl_lessons.training import COLLAPSED

VERDICTS = ("healthy", "suspect", "collapsed")


class Band(NamedTuple):
    """What is expected of one figure: at `collapsed` or beyond it is, at `healthy` or beyond it is that, and
    between the two "suspect". `collapsed` < `healthy` says that more is better, else less is."""

    collapsed: float
    healthy: float

    def verdict(self, value: float) -> str:
        """ "healthy", "suspect" or "collapsed"; a value that is not a number is collapsed."""
        sign = 1 if self.healthy > self.collapsed else -1
        if sign * value >= sign * self.healthy:
            return "healthy"
        return "suspect" if sign * value > sign * self.collapsed else "collapsed"


BANDS: dict[str, Band] = {
    "embedding_std": Band(collapsed=COLLAPSED, healthy=0.5),
    "effective_rank": Band(collapsed=5.0, healthy=10.0),
    "uniformity": Band(collapsed=-0.05, healthy=-1.5),
}


def _unit(z: Tensor) -> Tensor:
    """Rows of length 1, in float64; a row of zeros stays one."""
    if z.dim() != 2 or len(z) < 2:
        raise ValueError(f"embeddings of shape {tuple(z.shape)}; expected (N, D) with at least 2 rows")
    if z.is_complex() or not z.isfinite().all():
        raise ValueError("embeddings are complex, or NaN or infinite: the run that made them has failed")
    return unit(z.detach().double())


def effective_rank(z: Tensor) -> float:
    """How many directions the embeddings (N, D) use: exp(entropy) of the singular values' shares, in
    [1, min(N, D)]: 1 when all rows lie on one line, near D when N ≫ D rows lie evenly on the sphere, 0 when
    every row is zero. Compare only figures of the same N.
    Roy and Vetterli 2007, "The effective rank", definition 1: with pₖ = σₖ / Σσ, exp(−Σ pₖ log pₖ). Rows are
    NOT centred, as in RankMe (Garrido et al. 2023, arXiv:2210.02885): a collapse to one point has rank 1,
    where centring would leave rounding noise, whose rank is anything."""
    values = torch.linalg.svdvals(_unit(z))
    if not values.any():
        return 0.0
    shares = values / values.sum()  # pₖ
    return torch.special.entr(shares).sum().exp().item()  # entr(p) = −p log p, and 0 at 0


def alignment(z1: Tensor, z2: Tensor) -> float:
    """How far apart the two views of an image lie: the mean of ‖z₁ − z₂‖² over images, in [0, 4]. Row i of
    both (N, D) is from image i. Wang and Isola 2020 (arXiv:2005.10242), section 4.1, with α = 2.
    0 when the views agree, as they also do when everything has collapsed; 2 for unrelated directions."""
    if z1.shape != z2.shape:
        raise ValueError(f"views of shapes {tuple(z1.shape)} and {tuple(z2.shape)}; expected the same")
    return (_unit(z1) - _unit(z2)).square().sum(dim=1).mean().item()


def uniformity(z: Tensor, t: float = 2.0) -> float:
    """How evenly the images fill the sphere: log of the mean over the N(N − 1)/2 pairs of different rows of
    exp(−t·‖zᵢ − zⱼ‖²), in [−4t, 0]. Wang and Isola 2020 (arXiv:2005.10242), section 4.1, whose t is 2.
    0 when all are one point; less is more even: −2t where any two directions are at right angles."""
    if not 0 < t < math.inf:
        raise ValueError(f"t {t} must be above 0; the paper uses 2")
    # Distances, not 2 − 2·cosine: near a collapse the difference of two near-equal numbers says nothing.
    squared = F.pdist(_unit(z)).square()  # (N(N − 1)/2,)
    return (torch.logsumexp(-t * squared, dim=0) - math.log(len(squared))).item()


def geometry(z1: Tensor, z2: Tensor) -> dict[str, float]:
    """All figures of the embeddings (N, D) of two views of N images; of the first where one is enough."""
    return {
        "embedding_std": embedding_std(_unit(z1)).item(),
        "effective_rank": effective_rank(z1),
        "alignment": alignment(z1, z2),
        "uniformity": uniformity(z1),
    }


@torch.no_grad()
def measure(
    method: Method, store: ImageStore, generator: torch.Generator | None = None, images=1000, batch=250
) -> dict[str, float]:
    """The `geometry` of a method's projections: two views of at most `images` images of a store, `batch` a
    pass, in eval mode; figures of different numbers do not compare. The method is put back as it was.
    generator: on the CPU; chooses images and views. None: seed 0, the same for every method."""
    images, batch = (fit(name, n, Parameter(int, 1)) for name, n in (("images", images), ("batch", batch)))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    device, first, second = next(method.parameters()).device, [], []
    with eval_mode(method), alone():  # one process' figures, wherever it is called
        for rows in torch.randperm(len(store), generator=generator)[:images].split(batch):
            views = method.augment(store.batch(rows, device), generator)
            first.append(method.projector(method.encoder(views[0])).float().cpu())
            second.append(method.projector(method.encoder(views[1 % len(views)])).float().cpu())
    return geometry(torch.cat(first), torch.cat(second))


def verdict(measures: dict[str, float]) -> str:
    """What the bands say of figures from `measure` or a row of a run's history: "collapsed" if one is,
    "healthy" if all are, or "suspect". Others are passed over; ValueError where none has a band."""
    verdicts = [band.verdict(measures[name]) for name, band in BANDS.items() if name in measures]
    if not verdicts:
        raise ValueError(f"none of {', '.join(measures)} has a band; the bands: {', '.join(BANDS)}")
    return max(verdicts, key=VERDICTS.index)
