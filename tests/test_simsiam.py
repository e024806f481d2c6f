"""SimSiam: its loss, whole steps against the paper, the predictor's rate, and what breaks without a part.

`check_step` is called on the healthy method, and on one from which a part has been removed: there it fails.
"""

import pytest
import torch
from by_hand import cosine, descend, faulty, parameters, slopes, twins
from hypothesis import given, settings
from hypothesis import strategies as st
from test_moco import batch, step
from tiny import CPU, noise
from torch import nn
from torch.testing import assert_close

from ssl_lessons import networks, training
from ssl_lessons.methods import simsiam
from ssl_lessons.methods.simsiam import SimSiam, negative_cosine
from ssl_lessons.optim import build_optimizer, learning_rate, peak_rate

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 16


def method(seed=0, recipe="short", **overrides) -> SimSiam:
    """A small healthy SimSiam in train mode, projections of 6 numbers."""
    torch.manual_seed(seed)
    settings = {"head": (10, 6), "predictor_hidden": 8, **overrides}
    return SimSiam(networks.Conv4((4, 8, 8, 8)), image_size=SIDE, recipe=recipe, **settings).train()


def points(*shape, seed=0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------------------------------ the loss


def formula(prediction, target) -> float:
    """Equation 1 as printed, in Python floats, averaged over the batch."""
    rows = zip(prediction.tolist(), target.tolist(), strict=True)
    return -sum(cosine(p, z) for p, z in rows) / len(prediction)


@pytest.mark.parametrize(("count", "width"), [(1, 2), (4, 5), (7, 3)])
def test_negative_cosine_is_the_papers_in_value_and_gradient(count, width):
    p, z = points(count, width).requires_grad_(), points(count, width, seed=1).requires_grad_()
    loss = negative_cosine(p, z)
    assert loss.item() == pytest.approx(formula(p.detach(), z.detach()), rel=1e-5)
    loss.backward()
    assert_close(p.grad, slopes(lambda x: formula(x, z.detach()), p.detach()), rtol=1e-4, atol=1e-6)
    assert z.grad is None  # stopgrad(z), equation 3


def test_negative_cosine_is_lightlys():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed: extra `peers`")
    p, z = (points(12, 16, seed=i, dtype=torch.float32).requires_grad_() for i in (0, 1))
    ours, theirs = negative_cosine(p, z), loss.NegativeCosineSimilarity()(p, z.detach())
    assert_close(ours, theirs)
    assert_close(torch.autograd.grad(ours, p), torch.autograd.grad(theirs, p), rtol=1e-4, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9), width=st.integers(2, 12), seed=st.integers(0, 2**31),
    length=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_negative_cosine_knows_no_order_and_no_length(count, width, seed, length):
    p, z = (points(count, width, seed=seed + i, dtype=torch.float32) for i in (0, 1))
    loss = negative_cosine(p, z).item()
    same = pytest.approx(loss, abs=1e-5)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert -1 - 1e-5 <= loss <= 1 + 1e-5
    assert negative_cosine(p[order], z[order]).item() == same
    assert negative_cosine(length * p, z / length).item() == same
    assert negative_cosine(-p, z).item() == pytest.approx(-loss, abs=1e-5)
    assert negative_cosine(z, z).item() == pytest.approx(-1, abs=1e-5)


# -------------------------------------------------------------------------------------------- whole steps


def plain_loss(p1, p2, z1, z2):
    """Equation 4 row by row: half of each direction, the other side a constant."""
    total = 0
    for predictions, targets in ((p1, z2), (p2, z1)):
        for p, z in zip(predictions, targets, strict=True):
            p, z = (x / x.square().sum().sqrt() for x in (p, z.detach()))
            total = total - (p @ z) / 2 / len(predictions)
    return total


def check_step(m: SimSiam, steps=3):
    """Steps of gradient descent agree with algorithm 1 in float64, started from a healthy twin."""
    healthy = method()
    parts = encoder, projector, predictor = twins(healthy.encoder, healthy.projector, healthy.predictor)
    for i in range(steps):
        seen = batch(5, seed=i)
        z1, z2 = (projector(encoder(view.double())) for view in seen)
        loss = plain_loss(predictor(z1), predictor(z2), z1, z2)
        assert step(m, seen) == pytest.approx(loss.item(), rel=1e-4)
        descend(loss, parameters(*parts))
    for mine, other in zip((m.encoder, m.projector, m.predictor), parts, strict=True):
        for a, b in zip(mine.parameters(), other.parameters(), strict=True):
            assert_close(a.double(), b, rtol=1e-3, atol=1e-4)


def test_three_steps_agree_with_the_papers_algorithm_in_float64():
    check_step(method())


def without_stop_gradient(m, monkeypatch):
    monkeypatch.setattr(simsiam, "negative_cosine", faulty(negative_cosine, "target.detach()", "target"))


def without_gradient_on_the_other_side(m, monkeypatch):
    """The stop-gradient on the wrong one."""
    plain = simsiam.negative_cosine
    monkeypatch.setattr(simsiam, "negative_cosine", lambda p, z: plain(z, p))


def without_predictor(m, monkeypatch):
    monkeypatch.setattr(m.predictor, "forward", lambda z: z)


def without_second_direction(m, monkeypatch):
    monkeypatch.setattr(SimSiam, "forward", faulty(SimSiam.forward, "+ negative_cosine(p2, z1)", ""))


def with_the_sum(m, monkeypatch):
    plain = simsiam.negative_cosine
    monkeypatch.setattr(simsiam, "negative_cosine", lambda p, z: 2 * plain(p, z))


def with_each_view_predicting_itself(m, monkeypatch):
    monkeypatch.setattr(SimSiam, "forward", faulty(SimSiam.forward, "p1, p2 =", "p2, p1 ="))


@pytest.mark.parametrize(
    "fault",
    [
        without_stop_gradient,
        without_gradient_on_the_other_side,
        without_predictor,
        without_second_direction,
        with_the_sum,
        with_each_view_predicting_itself,
    ],
)
def test_taking_a_part_away_makes_its_check_fail(fault, monkeypatch):
    m = method()
    fault(m, monkeypatch)
    with pytest.raises(AssertionError):
        check_step(m)


def test_the_loss_is_the_mean_of_both_directions():
    m, (one, two) = method(), batch()
    with torch.no_grad():
        z1, z2 = (m.projector(m.encoder(view)) for view in (one, two))
        p1, p2 = m.predictor(z1), m.predictor(z2)
    loss, watched = m([one, two])
    assert_close(loss.detach(), (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2)
    assert_close(m([two, one]).loss, loss)
    unit = z1 / z1.norm(dim=1, keepdim=True)
    assert watched.keys() == {"similarity", "embedding_std"}
    assert all(not value.requires_grad and value.dim() == 0 for value in watched.values())
    assert watched["similarity"].item() == pytest.approx(-loss.item())
    assert watched["embedding_std"].item() == pytest.approx((unit.std(0).mean() * 6**0.5).item(), rel=1e-4)


def test_each_view_is_normalised_by_its_own_statistics():
    m, (one, two) = method(), batch()
    m([one, two + 3])
    conv, norm = m.encoder.network.blocks[0][:2]
    assert norm.num_batches_tracked == 2
    mean = torch.zeros(4)
    for view in (one, two + 3):
        mean = 0.9 * mean + 0.1 * conv(view).mean(dim=(0, 2, 3))
    assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("recipe", "layers"), [("paper", 3), ("small_data", 2)])
def test_projector_and_predictor_are_the_papers(recipe, layers):
    """Each layer with BatchNorm, the last one's without scale and shift; a bottleneck for a predictor."""
    m = SimSiam(networks.Conv4((4, 8, 8, 12)), image_size=SIDE, recipe=recipe)
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in m.projector] == (hidden * layers)[:-1]
    sizes = [(x.in_features, x.out_features) for x in m.projector if isinstance(x, nn.Linear)]
    assert sizes == [(12, 2048), *[(2048, 2048)] * (layers - 1)]
    norms = [x for x in m.projector if isinstance(x, nn.BatchNorm1d)]
    assert [norm.affine for norm in norms] == [True] * (layers - 1) + [False]
    assert [type(layer) for layer in m.predictor] == [*hidden, nn.Linear]
    assert (m.predictor[0].out_features, m.predictor[3].out_features) == (512, 2048)
    assert m.predictor[3].bias is not None  # and no BatchNorm behind it


def test_the_predictor_forms_a_group_of_its_own():
    m = method(recipe="small_data")
    groups = build_optimizer(m).param_groups
    own = {id(p) for p in m.predictor.parameters()}
    for group in groups:
        assert {id(p) in own for p in group["params"]} == {group["constant"]}
    assert sum(len(group["params"]) for group in groups) == len(list(m.parameters()))


def test_the_predictors_rate_stays_while_the_others_falls(monkeypatch):
    m = method(recipe="paper", batch_size=8)
    met, make = [], training.build_optimizer

    def watched(of):
        optimizer = make(of)
        take = optimizer.step

        def step(*args, **kwargs):
            met.append({group["constant"]: group["lr"] for group in optimizer.param_groups})
            return take(*args, **kwargs)

        monkeypatch.setattr(optimizer, "step", step)
        return optimizer

    monkeypatch.setattr(training, "build_optimizer", watched)
    training.pretrain(m, noise(16), epochs=3, batch_size=8, stop_on_collapse=False, **CPU)
    assert len(met) == 6
    peak = peak_rate(m.recipe, 8)
    assert peak == pytest.approx(0.05 * 8 / 256)
    assert [rates[True] for rates in met] == [peak] * 6
    expected = [learning_rate(m.recipe, 8, i / 2, 3) for i in range(6)]
    assert [rates[False] for rates in met] == pytest.approx(expected)
    assert expected[-1] < 0.1 * expected[0]


def test_the_loss_is_float32_under_autocast():
    m, seen = method(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = m(seen).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(m(seen).loss.item(), abs=0.05)
