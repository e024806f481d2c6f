"""Relational reasoning: Patacchiola & Storkey 2020 (arXiv:2006.05849).

"The same image or not?": a small network, the relation head, looks at two features and answers. Views of one
image are the positives, views of two images the negatives; the metric is learnt instead of chosen.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lessons.methods.base import Method, Objective, checked, embedding_std, unit
from ssl_lessons.methods.recipes import RELATIONAL as RECIPES
from ssl_lessons.methods.recipes import RelationalRecipe
from ssl_lessons.parameters import Parameter, fit
from ssl_lessons.processes import gathered, rank_and_size
from ssl_lessons.views import Policy


def relation_index(views: int, batch: int, device="cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Which of the K·B stacked features meet: K views of B images, view after view.

    For each pair of views i < j, B positives (view i and view j of the same image), then B negatives: view j
    is rolled along the batch. The roll's shift grows by one from pair to pair and returns to 1 before it
    reaches B, where every image would meet itself (the official code's order). ValueError below 2 of either.

    Returns first, second: int64 (P,), rows of the stacked features; targets: float32 (P,), 1 for the same
    image. P = K·(K − 1)·B."""
    if views < 2 or batch < 2:
        raise ValueError(f"{views} views of {batch} images make no positives and negatives; give 2 of each")
    i, j = torch.triu_indices(views, views, 1, device=device)  # (pairs,), in the order of two nested loops
    shift = torch.arange(len(i), device=device) % (batch - 1) + 1  # (pairs,)
    row = torch.arange(batch, device=device)
    rolled = (row - shift[:, None]) % batch  # (pairs, B)
    first = (i * batch)[:, None, None] + row.expand(2, batch)  # (pairs, 2, B): positives, negatives
    second = (j * batch)[:, None, None] + torch.stack([row.expand_as(rolled), rolled], dim=1)
    targets = torch.arange(1.0, -1.0, -1.0, device=device)[:, None].expand_as(second)  # 1, 0
    return first.flatten(), second.flatten(), targets.flatten()


class RelationHead(nn.Module):
    """r(·, ·): two features (2D together) -> hidden layer, BatchNorm, LeakyReLU -> one score, a logit."""

    def __init__(self, width: int, hidden: int = 256):
        super().__init__()
        self.joined = nn.Linear(2 * width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Scores (P,) of concatenated pairs (P, 2D)."""
        return self.last(F.leaky_relu(self.norm(self.joined(pairs))))[:, 0]

    def score(self, features: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Scores (P,) of the pairs of rows `first`, `second` (P,) of features (N, D).

        W[a; b] = W₁a + W₂b, so each feature is multiplied once, however many pairs it is in: with 32 views of
        64 images 2,048 rows instead of 63,488, and no tensor of pairs."""
        left, right = self.joined.weight.chunk(2, dim=1)  # W₁, W₂ (hidden, D)
        hidden = F.linear(features, left, self.joined.bias)[first] + F.linear(features, right)[second]
        return self.last(F.leaky_relu(self.norm(hidden)))[:, 0]


@checked
def focal_bce(scores: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float = 0.5) -> Tensor:
    """The official full code's focal loss (Lin et al. 2017, arXiv:1708.02002, equation 5), mean over pairs.

    Each pair's binary cross-entropy is weighted by α_t · (1 − p_t)^γ, p_t being the probability given to the
    right answer: the easy pairs fade. Gradients flow through the weights too.

    scores: float (P,), logits. targets: float (P,), 1 for positives. gamma: from 0, which leaves the weights
    even. alpha: in [0, 1], the weight of the positives, 1 − alpha that of the negatives.
    Returns a scalar; with gamma 0 and alpha 0.5 half the binary cross-entropy."""
    gamma = fit("gamma", gamma, Parameter(float, 2.0))
    alpha = fit("alpha", alpha, Parameter(float, 0.5))
    wrong = F.logsigmoid((1 - 2 * targets) * scores)  # log(1 − p_t), whose gradient is finite at any score
    share = alpha * targets + (1 - alpha) * (1 - targets)  # α_t
    losses = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return (share * (gamma * wrong).exp() * losses).mean()


class Relational(Method):
    """Relational reasoning around any network. It has no projector: the head looks at the features.

    Of two augmentations of one's own, `augment` and `augment2` take turns over the K views. See `Method`."""

    recipes = RECIPES

    def build(self, r: RelationalRecipe) -> tuple[Policy, ...]:
        self.projector = nn.Identity()
        self.head = RelationHead(self.encoder.width, r.hidden)  # r
        return (r.policy,) * r.views

    def forward(self, views: list[Tensor]) -> Objective:
        count, own = len(views), len(views[0])
        features = self.encoder(torch.cat(views))  # (K·B, D), all views in one pass
        # Negatives come from the whole batch. Of several processes each takes the pairs that its own images
        # come first in: of every B pairs in a row, those of its images.
        rank, size = rank_and_size()
        everyone = gathered(features.unflatten(0, (count, own)), dim=1).flatten(0, 1)  # (K·W·B, D)
        index = relation_index(count, size * own, features.device)
        mine = slice(rank * own, (rank + 1) * own)
        first, second, targets = (part.view(-1, size * own)[:, mine].flatten() for part in index)
        scores = self.head.score(everyone, first, second)  # (P,)
        if self.recipe.focal:
            loss = focal_bce(scores, targets, self.recipe.gamma, self.recipe.alpha)
        else:
            loss = F.binary_cross_entropy_with_logits(scores.float(), targets)
        with torch.no_grad():
            right = ((scores > 0) == (targets > 0)).float()
            half = targets.sum()  # as many positives as negatives
            watch = {
                "accuracy_positive": (right * targets).sum() / half,
                "accuracy_negative": (right * (1 - targets)).sum() / half,
                "embedding_std": embedding_std(unit(features[:own].float())),
            }
        return Objective(loss, watch)
