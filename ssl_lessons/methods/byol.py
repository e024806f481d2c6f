"""BYOL: Grill et al. 2020 (arXiv:2006.07733).

No negatives. The online network predicts what a second network, the target, makes of another view of the
same image; the target is a slowly moving average of the online network and gets no gradient.
"""

import math

import torch
from torch import Tensor

from ssl_lessons.methods.base import Method, Objective, checked, embedding_std, unit
from ssl_lessons.methods.recipes import BYOL as RECIPES
from ssl_lessons.methods.recipes import BYOLRecipe
from ssl_lessons.networks import ema_update, mlp, momentum_copy, normalise_by
from ssl_lessons.parameters import Parameter, fit, known
from ssl_lessons.views import Policy


@checked
def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's equation 2: ‖q̄ − z̄′‖² of the normalised vectors, which is 2 − 2·cosine; mean over the batch.

    prediction: float (B, D), q; gradients flow here. target: float (B, D), z′; no gradient. See `checked`.
    Returns a scalar in [0, 4]; 0 when all pairs point the same way."""
    return 2 - 2 * (unit(prediction) * unit(target.detach())).sum(dim=1).mean()


def momentum_at(base: float, progress: float, schedule: str = "cosine") -> float:
    """τ at `progress` in [0, 1] of a run: 1 − (1 − base)·(cos(π·progress) + 1)/2 (section 3.3), or `base`.
    ValueError: another `progress`, such as a number of steps, or another schedule."""
    progress = fit("progress", progress, Parameter(float, 0.0))
    if not 0 <= progress <= 1 + 1e-6:  # a sum of shares may be rounded up
        raise ValueError(f"progress is {progress}; give a share of the run, step / steps, from 0 to 1")
    known("momentum_schedule", schedule, ("cosine", "constant"))
    return base if schedule == "constant" else 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


class BYOL(Method):
    """BYOL around any network; with another `normalisation` than "batch" its layers are replaced in place.

    `momentum=0.99, momentum_schedule="constant"` is a fixed τ (and sets the recipe's `lag` aside),
    `momentum=None` has no target network: SimSiam's rule. See `Method`."""

    recipes = RECIPES

    def build(self, r: BYOLRecipe) -> tuple[Policy, ...]:
        widths = [self.encoder.width, *r.head]
        dim = widths[-1] or self.encoder.width
        self.projector = mlp(widths, batch_norm=True)  # g
        self.predictor = mlp([dim, r.predictor_hidden, dim], batch_norm=True)  # q
        for part in (self.encoder.network, self.projector, self.predictor):
            normalise_by(part, r.normalisation)
        self.needs_after_step = r.momentum is not None
        if self.needs_after_step:
            self.target_encoder = momentum_copy(self.encoder)
            self.target_projector = momentum_copy(self.projector)
        return r.policy, r.policy_prime

    @torch.no_grad()
    def targets(self, view: Tensor) -> Tensor:
        """z′ (B, D) of float views (B, C, S, S), by the target network with its own batch statistics."""
        return self.target_projector(self.target_encoder(view))

    def forward(self, views: list[Tensor]) -> Objective:
        projections = [self.projector(self.encoder(view)) for view in views]  # z, (B, D) each
        q1, q2 = (self.predictor(z) for z in projections)
        moving = self.recipe.momentum is not None
        t1, t2 = [self.targets(view) for view in views] if moving else projections  # the loss detaches them
        loss = byol_loss(q1, t2) + byol_loss(q2, t1)  # the sum of both directions, not their mean
        spread = embedding_std(unit(projections[0].detach().float()))
        return Objective(loss, {"similarity": 1 - loss.detach() / 4, "embedding_std": spread})

    @torch.no_grad()
    def after_step(self, progress: float = 0.0) -> None:
        """Move the target towards the online network (equation 1); `progress` in [0, 1] sets τ, which without
        it stays at its base. Where `pretrain` has set `run_steps`, the recipe's `lag` sets the base."""
        self._weights = None  # it is not forgotten
        if self.recipe.momentum is None:
            return
        base = self.recipe.momentum
        if self.recipe.lag is not None and self.run_steps is not None:
            base = 1 - 1 / max(1.0, self.recipe.lag * self.run_steps)  # a memory of less than a step is none
        momentum = momentum_at(base, progress, self.recipe.momentum_schedule)
        ema_update(self.target_encoder, self.encoder, momentum)
        ema_update(self.target_projector, self.projector, momentum)
