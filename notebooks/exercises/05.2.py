"""Exercise 05.2, ema: its solution, cases, and known mistakes."""

import torch
from torch import nn

from ssl_lessons import networks


def two_networks(seed):
    pair = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    pair[1][1].running_mean.normal_()
    return pair[0].requires_grad_(False), pair[1], 0.6 + 0.1 * seed


def state(_, target, online, tau):
    attached = [float(weight.requires_grad) for weight in target.parameters()]
    return [*target.state_dict().values(), *online.parameters(), *attached]


def each(step, graph=False, weights=nn.Module.parameters):  # `step` done to each pair of weights
    def wrong(target, online, tau):
        with torch.set_grad_enabled(graph):
            for xi, theta in zip(weights(target), weights(online), strict=True):
                step(xi, theta, tau)

    return wrong


def floats(network):
    return [value for value in network.state_dict().values() if value.is_floating_point()]


def right(xi, theta, tau):
    xi.mul_(tau).add_((1 - tau) * theta)


mistakes = {
    "τ and 1 − τ are exchanged: the target keeps τ of itself": each(lambda a, b, tau: a.lerp_(b, tau)),
    "the target has not moved: `xi = …` names a new tensor; use mul_ and add_": each(
        lambda a, b, tau: tau * a
    ),
    "the online network has moved: it is the target that follows": each(lambda a, b, tau: right(b, a, tau)),
    "the target is a copy of the online network: τ is not used": each(lambda a, b, tau: a.copy_(b)),
    "(1 − τ) θ is added to the whole of ξ: multiply ξ by τ first": each(
        lambda a, b, tau: a.add_((1 - tau) * b)
    ),
    "ξ is multiplied by τ, but nothing of θ is added": each(lambda a, b, tau: a.mul_(tau)),
    "BatchNorm's buffers were averaged too: BYOL averages parameters alone": each(right, weights=floats),
    "the target now hangs on the online network's graph: put @torch.no_grad() above": each(right, graph=True),
}


EXERCISE = {
    "solution": networks.ema_update,
    "case": two_networks,
    "mistakes": mistakes,
    "observe": state,
}
