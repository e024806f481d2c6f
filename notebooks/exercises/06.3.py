"""Exercise 06.3, Take a part away: its solution, cases, and known mistakes."""

import torch
import torch.nn.functional as F
from torch import nn

from ssl_lessons import networks


def both_sides(p1, p2, z1, z2):
    return -(F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)).mean() / 2


def solution(method, part, loss=both_sides, predictor=None, heads=("projector", "predictor")):
    if part == "stop-gradient":
        method.objective = loss
    elif part == "predictor":
        method.predictor = predictor(method) if predictor else nn.Identity()
    elif part == "BatchNorm":
        for name in heads:
            networks.normalise_by(getattr(method, name), "none")
    return method


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.projector = networks.mlp([8, 8, 8], True, True, last_affine=False)
        self.predictor = networks.mlp([8, 4, 8], batch_norm=True)
        self.objective = lambda p1, p2, z1, z2: both_sides(p1, p2, z1.detach(), z2.detach())


def case(seed):
    return Toy(), ("stop-gradient", "predictor", "BatchNorm")[seed % 3]


def observe(_, method, part):  # what is left: outputs, gradients and the number of BatchNorms
    data = torch.Generator().manual_seed(7)
    leaves = [each.requires_grad_() for each in torch.randn(4, 6, 8, generator=data).unbind(0)]
    loss = method.objective(*leaves)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    grads = [torch.zeros(6, 8) if grad is None else grad for grad in grads]
    x = torch.randn(6, 8, generator=data)
    counts = []
    for each in (method.encoder, method.projector, method.predictor):
        counts.append(sum(isinstance(module, nn.BatchNorm1d) for module in each.modules()))
    return [loss, *grads, method.projector(method.encoder(x)), method.predictor(x), torch.tensor(counts)]


def evaluated(method, part):
    if part == "BatchNorm":
        method.projector.eval(), method.predictor.eval()
        return method
    return solution(method, part)


def no_projector(method, part):
    if part == "predictor":
        method.projector = nn.Identity()
        return method
    return solution(method, part)


mistakes = {
    "the predictor is still there: without a gradient it is frozen, not removed": (
        lambda method, part: solution(method, part, predictor=lambda m: m.predictor.requires_grad_(False))
    ),
    "a linear layer is still a predictor, one without a hidden layer": (
        lambda method, part: solution(method, part, predictor=lambda m: nn.Linear(8, 8))
    ),
    "the projector was removed; the predictor is the network behind it": no_projector,
    "BatchNorm is gone from the projector alone; the predictor has one too": (
        lambda method, part: solution(method, part, heads=("projector",))
    ),
    "the encoder has lost its BatchNorm too; only the heads should": (
        lambda method, part: solution(method, part, heads=("encoder", "projector", "predictor"))
    ),
    "BatchNorm in eval mode is still there, with other statistics": evaluated,
    "only one half lost its stop-gradient": (
        lambda method, part: solution(method, part, lambda a, b, c, d: both_sides(a, b, c.detach(), d))
    ),
    "the stop-gradient moved to the predictions; it should be gone": (
        lambda method, part: solution(
            method, part, lambda a, b, c, d: both_sides(a.detach(), b.detach(), c, d)
        )
    ),
}


EXERCISE = {
    "solution": solution,
    "case": case,
    "mistakes": mistakes,
    "observe": observe,
}
