"""SimSiam: Chen & He 2021 (arXiv:2011.10566).

BYOL without its second network: both views pass through the same weights, a predictor on one side tries to
say what the other side is, and the gradient stops on that other side. Nothing else keeps it from collapse.
"""

from torch import Tensor

from ssl_lessons.methods.base import Method, Objective, checked, embedding_std, unit
from ssl_lessons.methods.recipes import SIMSIAM as RECIPES
from ssl_lessons.methods.recipes import SimSiamRecipe
from ssl_lessons.networks import mlp
from ssl_lessons.views import Policy


@checked
def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """SimSiam's equations 1 and 3: D(p, stopgrad(z)) = −(p / ‖p‖) · (z / ‖z‖), averaged over the batch.

    prediction: float (B, D), p; gradients flow here. target: float (B, D), z; no gradient. See `checked`.
    Returns a scalar in [−1, 1]; −1 when all pairs point the same way."""
    return -(unit(prediction) * unit(target.detach())).sum(dim=1).mean()


class SimSiam(Method):
    """SimSiam around any network. See `Method`."""

    recipes = RECIPES
    constant_lr = ("predictor",)  # section 4.2: it should always follow the latest representations

    def build(self, r: SimSiamRecipe) -> tuple[Policy, ...]:
        widths = [self.encoder.width, *r.head]
        # the last BatchNorm has no scale and shift of its own (official code)
        self.projector = mlp(widths, batch_norm=True, last_batch_norm=True, last_affine=False)
        dim = widths[-1] or self.encoder.width
        self.predictor = mlp([dim, r.predictor_hidden, dim], batch_norm=True)  # h
        return r.policy, r.policy

    def forward(self, views: list[Tensor]) -> Objective:
        # Two passes, not one: each view is normalised by its own batch statistics, as in the official code.
        z1, z2 = (self.projector(self.encoder(view)) for view in views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2  # equation 4
        spread = embedding_std(unit(z1.detach().float()))
        return Objective(loss, {"similarity": -loss.detach(), "embedding_std": spread})
