"""SimCLR: Chen et al. 2020 (arXiv:2002.05709, v1; arXiv:2006.10029, v2).

Two views of one image attract, and every view of the other images in the batch repels. Nothing is kept from
step to step: the batch is the dictionary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lessons.methods.base import Method, Objective, check_temperature, checked, embedding_std, unit
from ssl_lessons.methods.recipes import SIMCLR as RECIPES
from ssl_lessons.methods.recipes import SimCLRRecipe
from ssl_lessons.networks import mlp
from ssl_lessons.processes import gathered, rank_and_size
from ssl_lessons.views import Policy


@checked
def cosines(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities of this process' 2B views with all 2WB views, −∞ for a view with itself; the positives:
    float (2B, 2WB), the cosine s_ik, and int64 (2B,), the column of each row's other view."""
    z1, z2 = unit(z1), unit(z2)
    all1, all2 = gathered(z1), gathered(z2)
    similarity = torch.cat([z1, z2]) @ torch.cat([all1, all2]).T  # (2B, D), (2WB, D) -> (2B, 2WB)
    own = rank_and_size()[0] * len(z1) + torch.arange(len(z1), device=z1.device)  # our rows among all
    itself, other = torch.cat([own, own + len(all1)]), torch.cat([own + len(all1), own])
    return similarity.scatter(1, itself[:, None], -torch.inf), other


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR's equation 1: −log [ exp(s_ij/τ) / Σ_{k≠i} exp(s_ik/τ) ], averaged over all 2B views i.

    s is the cosine, j the other view of i's image, k every other view of the batch: 2B − 2 negatives.
    Computed as a cross-entropy whose right answer is j. With several processes the negatives come from all of
    them, and each takes the loss of its own rows (see processes.py).

    z1, z2: float (B, D), row i of each a view of image i; of any length. Gradients flow into both.
    temperature: τ > 0; else, for a batch without negatives, or see `checked`, ValueError.
    Returns a scalar, in nats; log(2B − 1) when all similarities are equal."""
    return _cross_entropy(*cosines(z1, z2), temperature)


def _cross_entropy(similarity: Tensor, other: Tensor, temperature: float) -> Tensor:
    check_temperature(temperature, "SimCLR uses 0.1, or 0.5 on CIFAR-10")
    if similarity.shape[1] < 4:
        raise ValueError("a batch of one image has no negatives; SimCLR needs at least 2 images")
    return F.cross_entropy(similarity / temperature, other)


class SimCLR(Method):
    """SimCLR around any network; v1 or v2 is the recipe's matter (the projector's depth). See `Method`."""

    recipes = RECIPES

    def build(self, r: SimCLRRecipe) -> tuple[Policy, ...]:
        self.projector = mlp([self.encoder.width, *r.head], r.head_norm, r.head_norm)  # g
        return r.policy, r.policy

    def embed(self, images: Tensor) -> Tensor:
        """Unit-length embeddings z (B, D) of float views (B, C, S, S), in float32."""
        return unit(self.projector(self.encoder(images)).float())

    def forward(self, views: list[Tensor]) -> Objective:
        batch = len(views[0])
        z1, z2 = self.embed(torch.cat(views)).split(batch)  # one pass for both, as in the official code
        similarity, other = cosines(z1, z2)  # (2B, 2WB)
        loss = _cross_entropy(similarity, other, self.recipe.temperature)
        with torch.no_grad():
            positive = similarity.gather(1, other[:, None])[:, 0]  # (2B,)
            negative = similarity.scatter(1, other[:, None], -torch.inf)  # -inf for itself and the positive
            count = negative.shape[1] - 2
            watch = {
                "positive_similarity": positive.mean(),
                "negative_similarity": negative.masked_fill(negative.isinf(), 0).sum(dim=1).mean() / count,
                "accuracy": (positive > negative.max(dim=1).values).float().mean(),
                "embedding_std": embedding_std(z1),
            }
        return Objective(loss, watch)
