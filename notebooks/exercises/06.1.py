"""Exercise 06.1, The loss of SimSiam: its solution, cases, and known mistakes."""

import torch
import torch.nn.functional as F


def solution(p1, p2, z1, z2):
    one = -F.cosine_similarity(p1, z2.detach(), dim=1).mean()
    two = -F.cosine_similarity(p2, z1.detach(), dim=1).mean()
    return (one + two) / 2


def cosine(p, z):
    return F.cosine_similarity(p, z, dim=1).mean()


def case(seed):
    return [(each + seed).requires_grad_() for each in torch.randn(4, 6 + seed, 16).unbind(0)]


def observe(loss, *inputs):  # the value, and the gradient of each input
    grads = [None] * 4
    if torch.as_tensor(loss).requires_grad:
        grads = torch.autograd.grad(loss.sum(), inputs, allow_unused=True)
    zeros = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=True)]
    return [loss, *zeros]


mistakes = {
    "the value is right, but gradients flow into z1 and z2: stop them with .detach()": (
        lambda p1, p2, z1, z2: -(cosine(p1, z2) + cosine(p2, z1)) / 2
    ),
    "the gradient is stopped in the predictions; p must learn, z is what is given": (
        lambda p1, p2, z1, z2: -(cosine(p1.detach(), z2) + cosine(p2.detach(), z1)) / 2
    ),
    "the gradient is stopped everywhere: nothing would learn": (
        lambda p1, p2, z1, z2: -(cosine(p1, z2) + cosine(p2, z1)).detach() / 2
    ),
    "only one half has its stop-gradient; z of both views is given": (
        lambda p1, p2, z1, z2: -(cosine(p1, z2.detach()) + cosine(p2, z1)) / 2
    ),
    "not crossed: each prediction is compared with its own view; p1 goes with z2": (
        lambda p1, p2, z1, z2: -(cosine(p1, z1.detach()) + cosine(p2, z2.detach())) / 2
    ),
    "the two halves are added; equation 4 takes their mean": (
        lambda p1, p2, z1, z2: -(cosine(p1, z2.detach()) + cosine(p2, z1.detach()))
    ),
    "only one direction: view 2 predicts view 1 as well": (lambda p1, p2, z1, z2: -cosine(p1, z2.detach())),
    "the sign: a loss is made small, and the cosine should become large": (
        lambda p1, p2, z1, z2: (cosine(p1, z2.detach()) + cosine(p2, z1.detach())) / 2
    ),
    "an inner product without normalisation: divide p and z by their lengths first": (
        lambda p1, p2, z1, z2: -((p1 * z2.detach()).sum(1).mean() + (p2 * z1.detach()).sum(1).mean()) / 2
    ),
    "this is BYOL's loss, 2 − 2 · cosine; SimSiam's is −cosine": (
        lambda p1, p2, z1, z2: 2 - (cosine(p1, z2.detach()) + cosine(p2, z1.detach()))
    ),
}


EXERCISE = {
    "solution": solution,
    "case": case,
    "mistakes": mistakes,
    "observe": observe,
}
