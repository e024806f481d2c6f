"""SimCLR: NT-Xent against the paper's sum and against lightly, alone and in two processes, and whole steps.

`check_loss` is called on the healthy loss, and on one from which a part has been removed: there it must fail.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from by_hand import cosine, descend, faulty, parameters, slopes, twins
from hypothesis import given, settings
from hypothesis import strategies as st
from test_moco import batch, step, unit
from torch import nn
from torch.testing import assert_close

from ssl_lessons import networks
from ssl_lessons.methods import simclr
from ssl_lessons.methods.simclr import SimCLR, nt_xent

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 16


def method(seed=0, **overrides) -> SimCLR:
    """A small healthy SimCLR in train mode, embeddings of 8 numbers."""
    torch.manual_seed(seed)
    settings = {"head": (8, 8), "temperature": 0.3, **overrides}
    return SimCLR(networks.Conv4((4, 8, 8, 8)), image_size=SIDE, recipe="short", **settings).train()


def points(*shape, seed=0, dtype=torch.float64) -> torch.Tensor:
    """Normally distributed, of all lengths."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def formula(z1, z2, temperature) -> float:
    """Equation 1 as printed, in Python floats: −log of exp(s_ij/τ) over the sum of all k ≠ i, for all 2B."""
    z, count = [*z1.tolist(), *z2.tolist()], len(z1)
    losses = []
    for i in range(2 * count):
        j = i + count if i < count else i - count
        terms = {k: math.exp(cosine(z[i], z[k]) / temperature) for k in range(2 * count) if k != i}
        losses.append(-math.log(terms[j] / math.fsum(terms.values())))
    return math.fsum(losses) / len(losses)


# ------------------------------------------------------------------------------------------------ the loss


def check_loss(temperature: float, count=4, width=5):
    """nt_xent is the paper's sum, in value and in both gradients."""
    z1, z2 = points(count, width).requires_grad_(), points(count, width, seed=1).requires_grad_()
    loss = simclr.nt_xent(z1, z2, temperature)
    gradients = torch.autograd.grad(loss, [z1, z2], materialize_grads=True)
    a, b = z1.detach(), z2.detach()
    assert loss.item() == pytest.approx(formula(a, b, temperature), rel=1e-5)
    assert_close(gradients[0], slopes(lambda z: formula(z, b, temperature), a), rtol=1e-4, atol=1e-5)
    assert_close(gradients[1], slopes(lambda z: formula(a, z, temperature), b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
def test_nt_xent_is_the_papers_sum_in_value_and_gradient(temperature):
    check_loss(temperature)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_lightlys(temperature):
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed: extra `peers`")
    z1, z2 = (points(12, 16, seed=i, dtype=torch.float32).requires_grad_() for i in (0, 1))
    ours = nt_xent(z1, z2, temperature)
    theirs = loss.NTXentLoss(temperature)(z1, z2)
    assert_close(ours, theirs)
    for mine, other in zip(*(torch.autograd.grad(x, [z1, z2]) for x in (ours, theirs)), strict=True):
        assert_close(mine, other, rtol=1e-4, atol=1e-6)


def itself_among_the_negatives(monkeypatch):
    plain = simclr.cosines

    def cosines(z1, z2):
        similarity, other = plain(z1, z2)
        return similarity.masked_fill(similarity.isinf(), 1.0), other

    monkeypatch.setattr(simclr, "cosines", cosines)


def one_direction(monkeypatch):
    plain = simclr.cosines
    monkeypatch.setattr(simclr, "cosines", lambda z1, z2: tuple(x[: len(z1)] for x in plain(z1, z2)))


def other_view_alone(monkeypatch):
    """Negatives from the other view only: half of them."""
    plain = simclr.cosines

    def cosines(z1, z2):
        (similarity, other), count = plain(z1, z2), len(z1)
        same = torch.eye(2).repeat_interleave(count, 0).repeat_interleave(count, 1).bool()
        return similarity.masked_fill(same, -torch.inf), other

    monkeypatch.setattr(simclr, "cosines", cosines)


def second_view_detached(monkeypatch):
    plain = simclr.cosines
    monkeypatch.setattr(simclr, "cosines", lambda z1, z2: plain(z1, z2.detach()))


def not_normalised(monkeypatch):
    monkeypatch.setattr(simclr, "cosines", faulty(simclr.cosines, "unit(z1), unit(z2)", "z1, z2"))


@pytest.mark.parametrize(
    "fault",
    [
        itself_among_the_negatives,
        one_direction,
        other_view_alone,
        second_view_detached,
        not_normalised,
    ],
)
def test_taking_a_part_of_the_loss_away_makes_its_check_fail(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check_loss(0.3)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 9), width=st.integers(2, 12), seed=st.integers(0, 2**31),
    temperature=st.floats(0.05, 2), length=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_nt_xent_knows_no_order_no_length_and_no_first_view(count, width, seed, temperature, length):
    z1, z2 = (points(count, width, seed=seed + i, dtype=torch.float32) for i in (0, 1))
    loss = nt_xent(z1, z2, temperature).item()
    same = pytest.approx(loss, rel=1e-4, abs=1e-5)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert nt_xent(z1[order], z2[order], temperature).item() == same
    assert nt_xent(length * z1, z2 / length, temperature).item() == same
    assert nt_xent(z2, z1, temperature).item() == same
    swapped = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert nt_xent(z1.where(swapped, z2), z2.where(swapped, z1), temperature).item() == same
    # no cosine is beyond ±1, so the loss lies between that of the best and of the worst batch
    most, least = (math.log1p((2 * count - 2) * math.exp(s * 2 / temperature)) for s in (1, -1))
    assert least - 1e-5 <= loss <= most * (1 + 1e-5)


def test_nt_xent_of_equal_similarities_is_log_of_2b_minus_1():
    same = unit(1, 6).expand(5, 6)
    assert nt_xent(same, same, 0.2).item() == pytest.approx(math.log(9))


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-30])
def test_nt_xent_is_finite_at_tiny_temperatures(temperature):
    z1, z2 = (points(4, 8, seed=i, dtype=torch.float32).requires_grad_() for i in (0, 1))
    loss = nt_xent(z1, z2, temperature)
    loss.backward()
    assert loss.isfinite() and z1.grad.isfinite().all() and z2.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_a_temperature_of_zero_is_refused_by_the_loss_and_by_the_method(temperature):
    with pytest.raises(ValueError, match="temperature .* above 0"):
        nt_xent(unit(2, 3), unit(2, 3), temperature)
    with pytest.raises(ValueError, match="temperature .* above 0"):
        method(temperature=temperature)(batch())


def test_one_image_has_no_negatives():
    with pytest.raises(ValueError, match="batch of one image has no negatives"):
        nt_xent(unit(1, 3), unit(1, 3), 0.2)


# ------------------------------------------------------------------------------------------- whole steps


def plain_loss(encoder, projector, one, two, temperature):
    """Algorithm 1, row by row."""
    z = projector(encoder(torch.cat([one, two])))
    z, count = [row / row.square().sum().sqrt() for row in z], len(one)
    losses = []
    for i, row in enumerate(z):
        logits = torch.stack([row @ other for k, other in enumerate(z) if k != i]) / temperature
        other = (i + count) % (2 * count)
        losses.append(-logits.log_softmax(0)[other - (other > i)])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("head_norm", [True, False])
def test_three_steps_agree_with_the_papers_algorithm_in_float64(head_norm):
    m = method(head_norm=head_norm)
    parts = twins(m.encoder, m.projector)
    for i in range(3):
        seen = batch(5, seed=i)
        loss = plain_loss(*parts, *(view.double() for view in seen), 0.3)
        assert step(m, seen) == pytest.approx(loss.item(), rel=1e-4)
        descend(loss, parameters(*parts))
    for mine, other in zip(parameters(m.encoder, m.projector), parameters(*parts), strict=True):
        assert_close(mine.double(), other, rtol=1e-3, atol=1e-4)


def test_both_views_are_normalised_together():
    """One pass of 2B images, as in the official code: BatchNorm sees both views at once."""
    m, (one, two) = method(head_norm=True), batch()
    m([one, two + 3])
    conv, norm = m.encoder.network.blocks[0][:2]
    assert norm.num_batches_tracked == 1 and m.projector[1].num_batches_tracked == 1
    expected = 0.1 * conv(torch.cat([one, two + 3])).mean(dim=(0, 2, 3))
    assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-6)


def test_diagnostics_are_what_they_are_called():
    m, seen = method(), batch()
    objective = m(seen)
    z = m.embed(torch.cat(seen)).detach()
    positive, negative, hits = [], [], []
    for i in range(12):
        own = (i + 6) % 12
        others = [(z[i] @ z[k]).item() for k in range(12) if k not in (i, own)]
        positive.append((z[i] @ z[own]).item())
        negative.append(sum(others) / 10)
        hits.append(positive[-1] > max(others))
    expected = {
        "positive_similarity": sum(positive) / 12,
        "negative_similarity": sum(negative) / 12,
        "accuracy": sum(hits) / 12,
        "embedding_std": (z[:6].std(0).mean() * 8**0.5).item(),
    }
    assert objective.diagnostics.keys() == expected.keys()
    for name, value in objective.diagnostics.items():
        assert not value.requires_grad and value.dim() == 0
        assert value.item() == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_similarities_are_float32_under_autocast():
    m, seen = method(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, objective = m.embed(seen[0]), m(seen)
    assert z.dtype == objective.loss.dtype == torch.float32
    assert_close(z.norm(dim=1), torch.ones(6))
    z1, z2 = m.embed(torch.cat(seen)).split(6)
    assert objective.loss.item() == pytest.approx(nt_xent(z1, z2, 0.3).item(), rel=0.05)


def test_the_methods_loss_is_nt_xent_of_its_embeddings():
    m, seen = method(), batch()
    z1, z2 = m.embed(torch.cat(seen)).split(6)
    assert_close(m(seen).loss, nt_xent(z1, z2, 0.3))
    assert_close(F.normalize(z1, dim=1), z1)


@pytest.mark.parametrize(
    ("recipe", "sizes", "norms"),
    [
        ("paper", [(8, 8), (8, 128)], 2),
        ("v2", [(8, 8), (8, 8), (8, 128)], 3),
        ("small_data", [(8, 8), (8, 128)], 2),
    ],
)
def test_the_projectors_of_both_versions(recipe, sizes, norms):
    m = SimCLR(networks.Conv4((4, 8, 8, 8)), image_size=SIDE, recipe=recipe)
    linear = [x for x in m.projector if isinstance(x, nn.Linear)]
    assert [(x.in_features, x.out_features) for x in linear] == sizes
    assert sum(isinstance(x, nn.BatchNorm1d) for x in m.projector) == norms
    assert sum(isinstance(x, nn.ReLU) for x in m.projector) == len(sizes) - 1
    assert not isinstance(m.projector[-1], nn.ReLU)
