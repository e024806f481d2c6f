"""Momentum Contrast: He et al. 2020 (arXiv:1911.05722, v1) and Chen et al. 2020 (arXiv:2003.04297, v2).

A query q is the embedding of one view, its positive key k₊ that of the other. Keys come from a slowly moving
copy of the encoder and stay in a queue, where they serve as negatives for the batches that follow: many
negatives at the price of a small batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lessons.methods.base import Method, Objective, check_temperature, checked, embedding_std, unit
from ssl_lessons.methods.recipes import MOCO as RECIPES
from ssl_lessons.methods.recipes import MoCoRecipe
from ssl_lessons.networks import ema_update, mlp, momentum_copy, split_batchnorm
from ssl_lessons.processes import gathered
from ssl_lessons.views import Policy


@checked
def similarities(query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of unit vectors: q·k₊ (B, 1) and q·kᵢ for the K negatives (B, K)."""
    positive = (query * key).sum(dim=1, keepdim=True)  # (B, D), (B, D) -> (B, 1)
    negative = query @ queue.T  # (B, D), (K, D) -> (B, K)
    return positive, negative


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's equation 1: −log [ exp(q·k₊/τ) / (exp(q·k₊/τ) + Σᵢ exp(q·kᵢ/τ)) ], averaged over the batch.

    Computed as a (K+1)-way cross-entropy whose right answer is class 0, which overflows at no temperature.

    query: float (B, D), unit length; gradients flow here. key: the same, row i the positive of query i.
    queue: float (K, D), unit length: the negatives. temperature: τ > 0.
    Returns a scalar, in nats; log(K + 1) when all similarities are equal. ValueError: as `checked`, or rows
    that are not of unit length."""
    loss = _cross_entropy(*similarities(query, key, queue), temperature)
    for name, rows in {"query": query, "key": key, "queue": queue}.items():
        shortest, longest = rows.detach().float().norm(dim=1).aminmax()
        if not 0.95 < shortest <= longest < 1.05:  # half precision rounds
            raise ValueError(f"rows of {name} are {shortest:.3g} to {longest:.3g} long; F.normalize them")
    return loss


def _cross_entropy(positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    check_temperature(temperature, "MoCo v2 uses 0.2")
    logits = torch.cat([positive, negative], dim=1) / temperature  # (B, 1 + K)
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


class MoCo(Method):
    """MoCo v1 and v2 around any network; which of them is the recipe's matter. See `Method`."""

    recipes = RECIPES
    default_recipe = "moco_v2"
    needs_after_step = True

    def build(self, r: MoCoRecipe) -> tuple[Policy, ...]:
        if r.splits > 1:
            split_batchnorm(self.encoder.network, r.splits)
        widths = [self.encoder.width, *r.head]
        self.projector = mlp(widths)  # g
        self.key_encoder = momentum_copy(self.encoder)  # f_k
        self.key_projector = momentum_copy(self.projector)

        dim = widths[-1] or self.encoder.width
        self.register_buffer("queue", F.normalize(torch.randn(r.queue, dim), dim=1))  # (K, D)
        self.register_buffer("enqueued_at", torch.full((r.queue,), -1))  # step of each key; -1: random
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._pending: list[Tensor] = []  # keys since the last after_step, which enqueues them
        return r.policy, r.policy

    def embed(self, images: Tensor) -> Tensor:
        """Unit-length queries (B, D) of float views (B, 3, S, S), in float32."""
        return unit(self.projector(self.encoder(images)).float())

    @torch.no_grad()
    def embed_keys(self, images: Tensor) -> Tensor:
        """Unit-length keys (B, D). With split BatchNorm the images are shuffled, the keys put back in order.

        Otherwise a query and its key would share their part's statistics, by which the network could tell
        the positive from the negatives without looking at the picture (paper, section 3.3)."""
        shuffled = self.recipe.splits > 1
        order = torch.randperm(len(images), device=images.device) if shuffled else slice(None)
        keys = unit(self.key_projector(self.key_encoder(images[order])).float())
        return keys[order.argsort()] if shuffled else keys

    def forward(self, views: list[Tensor]) -> Objective:
        one, two = views
        pairs = [(self.embed(one), self.embed_keys(two))]
        if self.recipe.symmetric:
            pairs.append((self.embed(two), self.embed_keys(one)))
        # Enqueued only after every loss is taken: else a query would meet its own key among the negatives.
        # Passes whose gradients add up wait together; where nobody calls after_step, the newest that fit.
        if self.training and torch.is_grad_enabled():
            self._pending += [key for _, key in pairs]
            while sum(map(len, self._pending[1:])) >= len(self.queue):
                del self._pending[0]

        cosines = [similarities(query, key, self.queue) for query, key in pairs]
        loss = sum(_cross_entropy(*pair, self.recipe.temperature) for pair in cosines)
        positive, negative = (side.detach() for side in cosines[0])
        watch = {
            "positive_similarity": positive.mean(),
            "negative_similarity": negative.mean(),
            "accuracy": (positive[:, 0] > negative.max(dim=1).values).float().mean(),
            "embedding_std": embedding_std(pairs[0][0]),
            "queue_age": (self.step - self.enqueued_at).float().mean(),
        }
        return Objective(loss, watch)

    @torch.no_grad()
    def after_step(self, progress: float = 0.0) -> None:
        """Move the key encoder (equation 2; the official code does so just before the next key pass, which is
        the same moment), then enqueue the batch's keys in place of the oldest."""
        ema_update(self.key_encoder, self.encoder, self.recipe.momentum)
        ema_update(self.key_projector, self.projector, self.recipe.momentum)
        for keys in self._pending:
            self.enqueue(gathered(keys))  # of all processes: one queue, the same on each
        self._pending = []
        self._weights = None  # it is not forgotten
        self.step += 1  # so a key is one step old when it first serves as a negative

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write keys (B, D) over the oldest; the last write wraps: B need not divide K, nor be below it."""
        keys = keys[-len(self.queue) :]  # of a batch longer than the queue, the newest keys survive
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys
        self.enqueued_at[places] = self.step
        self.pointer.copy_((self.pointer + len(keys)) % len(self.queue))
