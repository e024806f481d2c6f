"""MoCo's loss against the sum in the paper, against finite differences, and at its limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ssl_lessons import networks
from ssl_lessons.methods.moco import MoCo, info_nce


def unit(*shape, seed=0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def formula(query, key, queue, temperature):
    """Equation 1 as printed, in Python floats, with its gradient: (mean loss, dL/dq)."""
    losses, gradients = [], []
    for q, positive in zip(query.tolist(), key.tolist(), strict=True):
        keys = [positive, *queue.tolist()]
        terms = [math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / temperature) for k in keys]
        total = math.fsum(terms)
        losses.append(-math.log(terms[0] / total))
        pull = [math.fsum(t * k[d] for t, k in zip(terms, keys, strict=True)) / total for d in range(len(q))]
        gradients.append([(p - k) / temperature / len(query) for p, k in zip(pull, positive, strict=True)])
    return math.fsum(losses) / len(losses), torch.tensor(gradients, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.05, 0.07, 0.2, 1.0])
def test_info_nce_is_the_papers_sum_in_value_and_gradient(temperature):
    query, key, queue = unit(5, 7).requires_grad_(), unit(5, 7, seed=1), unit(11, 7, seed=2)
    loss = info_nce(query, key, queue, temperature)
    value, gradient = formula(query.detach(), key, queue, temperature)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    assert_close(torch.autograd.grad(loss, query)[0], gradient, rtol=1e-10, atol=1e-12)
    single = info_nce(query.float(), key.float(), queue.float(), temperature)
    assert single.item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_info_nce_gradients_agree_with_finite_differences(temperature):
    query, key, queue = unit(3, 4).requires_grad_(), unit(3, 4, seed=1), unit(5, 4, seed=2)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, key, queue, temperature), query)


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-30])
def test_info_nce_is_finite_at_tiny_temperatures(temperature):
    query, key, queue = (unit(n, 8, seed=i, dtype=torch.float32) for i, n in enumerate((4, 4, 9)))
    loss = info_nce(query.requires_grad_(), key, queue, temperature)
    loss.backward()
    assert loss.isfinite() and query.grad.isfinite().all()
    cosines = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1).detach()
    limit = (cosines.max(dim=1).values - cosines[:, 0]).mean()  # τ·L → how far the best key beats the own
    assert loss.item() * temperature == pytest.approx(limit.item(), rel=1e-2)


def test_info_nce_of_equal_similarities_is_log_of_k_plus_one():
    point = unit(1, 6)
    assert info_nce(point, point, point.expand(9, 6), 0.2).item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_a_temperature_of_zero_is_refused_by_the_loss_and_by_the_method(temperature):
    with pytest.raises(ValueError, match="temperature .* above 0"):
        info_nce(unit(2, 3), unit(2, 3), unit(2, 3), temperature)
    with pytest.raises(ValueError, match="temperature .* above 0"):
        MoCo(networks.Conv4((4, 4, 4, 4)), image_size=16, queue=8, temperature=temperature)
