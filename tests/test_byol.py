"""BYOL: its loss, the target network, whole steps against the paper, and what breaks without a part.

`check_step`, `check_ema`, `check_buffers` and `check_targets` are called on the healthy method, and on one
from which the part has been removed: there they must fail.
"""

import copy
import math

import pytest
import torch
from by_hand import cosine, descend, faulty, parameters, slopes, twins
from hypothesis import given, settings
from hypothesis import strategies as st
from test_moco import batch, step
from tiny import CPU, noise
from torch import nn
from torch.testing import assert_close

from ssl_lessons import networks
from ssl_lessons import views as v
from ssl_lessons.methods import byol
from ssl_lessons.methods.byol import BYOL, byol_loss, momentum_at
from ssl_lessons.methods.simsiam import negative_cosine
from ssl_lessons.training import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 16


def method(seed=0, **overrides) -> BYOL:
    """A small healthy BYOL in train mode, projections of 6 numbers."""
    torch.manual_seed(seed)
    settings = {"head": (10, 6), "predictor_hidden": 8, "momentum": 0.9, **overrides}
    return BYOL(networks.Conv4((4, 8, 8, 8)), image_size=SIDE, recipe="short", **settings).train()


def points(*shape, seed=0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------------------------------ the loss


def formula(prediction, target) -> float:
    """Equation 2 as printed: the squared distance of the normalised vectors, in Python floats; their mean."""
    distances = []
    for q, z in zip(prediction.tolist(), target.tolist(), strict=True):
        q, z = ([x / math.hypot(*vector) for x in vector] for vector in (q, z))
        distances.append(math.fsum((a - b) ** 2 for a, b in zip(q, z, strict=True)))
    return math.fsum(distances) / len(distances)


@pytest.mark.parametrize(("count", "width"), [(1, 2), (4, 5), (7, 3)])
def test_byol_loss_is_the_papers_distance_in_value_and_gradient(count, width):
    q, z = points(count, width).requires_grad_(), points(count, width, seed=1).requires_grad_()
    loss = byol_loss(q, z)
    assert loss.item() == pytest.approx(formula(q.detach(), z.detach()), rel=1e-5)
    loss.backward()
    assert_close(q.grad, slopes(lambda x: formula(x, z.detach()), q.detach()), rtol=1e-4, atol=1e-6)
    assert z.grad is None  # a target is what it is


def test_byol_loss_is_byol_pytorchs():
    reason = "byol-pytorch is not installed: extra `peers`"
    peer = pytest.importorskip("byol_pytorch.byol_pytorch", reason=reason)
    q, z = (points(12, 16, seed=i, dtype=torch.float32).requires_grad_() for i in (0, 1))
    name = "cosine_loss_fn" if hasattr(peer, "cosine_loss_fn") else "loss_fn"  # renamed in 0.9
    ours, theirs = byol_loss(q, z), getattr(peer, name)(q, z.detach()).mean()
    assert_close(ours, theirs)
    assert_close(torch.autograd.grad(ours, q), torch.autograd.grad(theirs, q), rtol=1e-4, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9), width=st.integers(2, 12), seed=st.integers(0, 2**31),
    length=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_byol_loss_lies_between_0_and_4_and_is_simsiams_twice_and_two(count, width, seed, length):
    q, z = (points(count, width, seed=seed + i, dtype=torch.float32) for i in (0, 1))
    loss = byol_loss(q, z).item()
    same = pytest.approx(loss, abs=1e-5)
    assert -1e-5 <= loss <= 4 + 1e-5
    assert 2 + 2 * negative_cosine(q, z).item() == same
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert byol_loss(q[order], z[order]).item() == same
    assert byol_loss(length * q, z / length).item() == same
    assert byol_loss(-q, z).item() == pytest.approx(4 - loss, abs=1e-5)
    assert byol_loss(z, z).item() == pytest.approx(0, abs=1e-5)


# -------------------------------------------------------------------------------------------- whole steps


def plain_loss(q1, q2, t1, t2):
    """L + L̃ of section 3.1 row by row: each view predicts the target's projection of the other."""
    total = 0
    for predictions, targets in ((q1, t2), (q2, t1)):
        for q, z in zip(predictions, targets, strict=True):
            q, z = (x / x.square().sum().sqrt() for x in (q, z.detach()))
            total = total + (q - z).square().sum() / len(predictions)
    return total


def check_step(m: BYOL, steps=3):
    """Steps of gradient descent agree with the paper's algorithm in float64, started from a healthy twin."""
    healthy = method(momentum=m.recipe.momentum)
    parts = encoder, projector, predictor = twins(healthy.encoder, healthy.projector, healthy.predictor)
    slow = copy.deepcopy([encoder, projector]) if m.recipe.momentum is not None else None
    for i in range(steps):
        seen = batch(5, seed=i)
        z1, z2 = (projector(encoder(view.double())) for view in seen)
        if slow:
            with torch.no_grad():
                t1, t2 = (slow[1](slow[0](view.double())) for view in seen)
        else:
            t1, t2 = z1, z2
        loss = plain_loss(predictor(z1), predictor(z2), t1, t2)
        assert step(m, seen) == pytest.approx(loss.item(), rel=1e-4)
        descend(loss, parameters(*parts))
        if slow:
            with torch.no_grad():
                for old, new in zip(parameters(*slow), parameters(encoder, projector), strict=True):
                    old.copy_(m.recipe.momentum * old + (1 - m.recipe.momentum) * new)
    for mine, other in zip((m.encoder, m.projector, m.predictor), parts, strict=True):
        for a, b in zip(mine.parameters(), other.parameters(), strict=True):
            assert_close(a.double(), b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.9, 0.0, None])
def test_three_steps_agree_with_the_papers_algorithm_in_float64(momentum):
    check_step(method(momentum=momentum))


def test_the_loss_is_the_sum_of_both_directions():
    m, (one, two) = method(), batch()
    with torch.no_grad():
        q1, q2 = (m.predictor(m.projector(m.encoder(view))) for view in (one, two))
        t1, t2 = (m.target_projector(m.target_encoder(view)) for view in (one, two))
    loss, watched = m([one, two])
    assert_close(loss.detach(), byol_loss(q1, t2) + byol_loss(q2, t1))
    assert_close(m([two, one]).loss, loss)
    assert watched["similarity"].item() == pytest.approx((2 - loss.item() / 2) / 2, abs=1e-5)


def test_diagnostics_are_what_they_are_called():
    m, (one, two) = method(), batch()
    watched = m([one, two]).diagnostics
    with torch.no_grad():
        z = [m.projector(m.encoder(view)) for view in (one, two)]
        q, t = [m.predictor(x) for x in z], [m.targets(view) for view in (one, two)]
    pairs = [*zip(q[0].tolist(), t[1].tolist(), strict=True), *zip(q[1].tolist(), t[0].tolist(), strict=True)]
    cosines = [cosine(a, b) for a, b in pairs]
    unit = z[0] / z[0].norm(dim=1, keepdim=True)
    assert all(not value.requires_grad and value.dim() == 0 for value in watched.values())
    assert watched["similarity"].item() == pytest.approx(sum(cosines) / 12, abs=1e-5)
    assert watched["embedding_std"].item() == pytest.approx((unit.std(0).mean() * 6**0.5).item(), rel=1e-4)


def test_the_two_views_come_from_t_and_t_prime():
    m = BYOL(networks.conv4(), image_size=SIDE, recipe="paper", head=(8, 8), predictor_hidden=8)
    assert m.policies == (v.BYOL_T, v.BYOL_T_PRIME)


@pytest.mark.parametrize("recipe", ["paper", "paper_100", "small_data"])
def test_projector_and_predictor_are_4096_batchnorm_relu_256(recipe):
    m = BYOL(networks.Conv4((4, 8, 8, 12)), image_size=SIDE, recipe=recipe)
    for part, into in ((m.projector, 12), (m.predictor, 256)):
        kinds = [type(layer) for layer in part]
        assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert (part[0].in_features, part[0].out_features, part[3].out_features) == (into, 4096, 256)
    assert m.target_projector[3].out_features == 256 and not hasattr(m, "target_predictor")


def test_the_loss_is_float32_under_autocast():
    m, seen = method(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = m(seen).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(m(seen).loss.item(), rel=0.05)


def test_a_state_dict_is_all_that_a_run_needs_to_go_on():
    m = method()
    for i in range(2):
        step(m, batch(seed=i))
    other = method(seed=5)
    other.load_state_dict(copy.deepcopy(m.state_dict()), strict=True)
    for i in range(2, 4):
        assert step(m, batch(seed=i)) == step(other, batch(seed=i))


# ------------------------------------------------------------------------------------------- the target


def averaged(m: BYOL) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """(target, online), parameter by parameter."""
    slow, quick = parameters(m.target_encoder, m.target_projector), parameters(m.encoder, m.projector)
    return list(zip(slow, quick, strict=True))


def check_ema(m: BYOL, progress=0.0):
    """After a step the target is τ·old + (1 − τ)·new, computed in float64, and it has moved."""
    before = [target.detach().double() for target, _ in averaged(m)]
    step(m, batch())  # with progress 0
    momentum, moved = momentum_at(m.recipe.momentum, 0.0, m.recipe.momentum_schedule), False
    for old, (target, online) in zip(before, averaged(m), strict=True):
        expected = momentum * old + (1 - momentum) * online.detach().double()
        assert_close(target.double(), expected, rtol=1e-5, atol=1e-7)
        moved = moved or not torch.equal(target.double(), old)
    assert moved, "the target stands still"


def test_the_target_starts_as_the_online_network_and_follows_it():
    m = method()
    assert all(torch.equal(target, online) for target, online in averaged(m))
    for _ in range(3):
        check_ema(m)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_the_target_moves_by_the_momentum_of_the_moment(schedule, progress):
    m = method(momentum=0.6, momentum_schedule=schedule)
    with torch.no_grad():
        for _, online in averaged(m):
            online += 1
    before = [target.double() for target, _ in averaged(m)]
    m.after_step(progress)
    quarter = 1 - 0.4 * (math.sqrt(0.5) + 1) / 2
    momentum = 0.6 if schedule == "constant" else {0.0: 0.6, 0.25: quarter, 0.5: 0.8, 1.0: 1.0}[progress]
    for old, (target, online) in zip(before, averaged(m), strict=True):
        expected = momentum * old + (1 - momentum) * online.detach().double()
        assert_close(target.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("lag", "steps", "base"), [(0.02, 1000, 0.95), (0.5, 8, 0.75), (0.01, 50, 0.0)])
def test_a_lag_is_the_targets_memory_as_a_share_of_the_runs_steps(lag, steps, base):
    """τ = 1 − 1 / (lag · steps); a memory of less than a step is none. Without a run's length: τ as given."""
    m = method(momentum=0.6, lag=lag, momentum_schedule="constant")
    assert m.recipe.lag == lag  # both may be named
    for known, momentum in ((None, 0.6), (steps, base)):
        m.run_steps = known
        with torch.no_grad():
            for _, online in averaged(m):
                online += 1
        before = [target.double() for target, _ in averaged(m)]
        m.after_step(0.5)
        for old, (target, online) in zip(before, averaged(m), strict=True):
            expected = momentum * old + (1 - momentum) * online.detach().double()
            assert_close(target.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_momentum_that_is_named_sets_the_recipes_lag_aside_and_a_lag_is_a_share():
    assert BYOL(networks.conv4(), image_size=SIDE, recipe="short").recipe.lag == 0.02
    m = BYOL(networks.conv4(), image_size=SIDE, recipe="short", momentum=0.5)
    assert (m.recipe.lag, m.recipe.momentum) == (None, 0.5)
    for lag in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match=f"lag is {lag}; it must be a number above 0 and at most 1"):
            method(lag=lag)


def test_pretrain_tells_a_method_how_many_steps_its_run_has():
    m = method(lag=0.5)
    pretrain(m, noise(), epochs=2, batch_size=8, **CPU)
    assert m.run_steps == 6


@settings(max_examples=50, deadline=None)
@given(base=st.floats(0, 1), progress=st.floats(0, 1))
def test_the_momentum_rises_from_its_base_to_one(base, progress):
    assert momentum_at(base, 0.0) == pytest.approx(base)
    assert momentum_at(base, 0.5) == pytest.approx((1 + base) / 2)
    assert momentum_at(base, 1.0) == 1
    here = momentum_at(base, progress)
    assert base - 1e-12 <= here <= 1 and here <= momentum_at(base, min(1.0, progress + 0.1)) + 1e-12
    assert here == pytest.approx(1 - (1 - base) * math.cos(math.pi * progress / 2) ** 2)  # half-angle form
    assert momentum_at(base, progress, "constant") == base


def test_unknown_schedules_and_impossible_momenta_are_refused():
    with pytest.raises(ValueError, match="'linear' is not known; choose one of: cosine, constant"):
        momentum_at(0.9, 0.5, "linear")
    with pytest.raises(ValueError, match="'linear'; it must be one of: cosine, constant"):
        method(momentum_schedule="linear")
    for momentum in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"momentum is {momentum}; it must be a number from 0 to 1"):
            method(momentum=momentum)


def check_targets(m: BYOL):
    """No gradient reaches the target: not its parameters, and not the views by way of it."""
    seen = [view.requires_grad_() for view in batch()]
    assert not m.targets(seen[0]).requires_grad, "a target carries gradients"
    m(seen).loss.backward()
    for target, online in averaged(m):
        assert not target.requires_grad and target.grad is None, "the target is trained"
        assert online.grad is not None
    assert all(p.grad.abs().sum() > 0 for p in m.predictor.parameters())


def test_targets_receive_no_gradient():
    check_targets(method())


def check_buffers(m: BYOL):
    """The target normalises by its own batch and keeps its own statistics, which after_step leaves alone."""
    one, two = batch()
    with torch.no_grad():
        for target, _ in averaged(m):
            target *= 1.5  # a target that differs has statistics that differ
    m([one, two + 3])
    conv, norm = m.target_encoder.network.blocks[0][:2]
    assert norm.training and norm.num_batches_tracked == 2
    mean = torch.zeros(4)
    for view in (one, two + 3):
        mean = 0.9 * mean + 0.1 * conv(view).mean(dim=(0, 2, 3))
    assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-6)
    kept = {name: b.clone() for name, b in m.target_encoder.named_buffers()}
    m.after_step(0.0)
    for name, b in m.target_encoder.named_buffers():
        assert torch.equal(b, kept[name]), f"{name} was averaged"


def test_the_target_keeps_its_own_statistics():
    check_buffers(method())


def test_without_momentum_there_is_no_target_network():
    m = method(momentum=None)
    assert not any(name.startswith("target") for name, _ in m.named_modules())
    assert all(p.requires_grad for p in m.parameters())
    (one, two), state = batch(), copy.deepcopy(m.state_dict())
    m.after_step(0.5)
    assert all(torch.equal(value, state[name]) for name, value in m.state_dict().items())
    with torch.no_grad():
        z1, z2 = (m.projector(m.encoder(view)) for view in (one, two))
        q1, q2 = m.predictor(z1), m.predictor(z2)
    assert_close(m([one, two]).loss, 4 + 2 * (negative_cosine(q1, z2) + negative_cosine(q2, z1)))


# ------------------------------------------------------------------------------------------- faults planted


def without_predictor(m, monkeypatch):
    monkeypatch.setattr(m.predictor, "forward", lambda z: z)


def without_ema(m, monkeypatch):
    monkeypatch.setattr(byol, "ema_update", lambda target, online, momentum: None)


def with_projector_left_behind(m, monkeypatch):
    plain = byol.ema_update

    def encoder_alone(target, online, momentum):
        plain(target, online, momentum if online is m.encoder else 1.0)

    monkeypatch.setattr(byol, "ema_update", encoder_alone)


def with_averaged_buffers(m, monkeypatch):
    def ema_update(target, online, momentum):
        for name in ("parameters", "buffers"):
            for slow, quick in zip(getattr(target, name)(), getattr(online, name)(), strict=True):
                if slow.is_floating_point():
                    slow.lerp_(quick, 1 - momentum)

    monkeypatch.setattr(byol, "ema_update", ema_update)


def without_stop_gradient(m, monkeypatch):
    """Neither in the loss nor around the target."""
    monkeypatch.setattr(byol, "byol_loss", faulty(byol_loss, "target.detach()", "target"))
    monkeypatch.setattr(BYOL, "targets", BYOL.targets.__wrapped__)


def with_trained_target(m, monkeypatch):
    without_stop_gradient(m, monkeypatch)
    m.target_encoder.requires_grad_(True)


def without_second_direction(m, monkeypatch):
    monkeypatch.setattr(BYOL, "forward", faulty(BYOL.forward, "+ byol_loss(q2, t1)", ""))


def with_the_mean(m, monkeypatch):
    plain = byol.byol_loss
    monkeypatch.setattr(byol, "byol_loss", lambda q, z: plain(q, z) / 2)


def with_each_view_predicting_itself(m, monkeypatch):
    swapped = faulty(BYOL.forward, "t1, t2 =", "t2, t1 =")
    monkeypatch.setattr(BYOL, "forward", swapped)


def with_the_online_network_as_target(m, monkeypatch):
    monkeypatch.setattr(BYOL, "targets", torch.no_grad()(lambda self, x: self.projector(self.encoder(x))))


@pytest.mark.parametrize(
    ("fault", "check", "momentum"),
    [
        (without_predictor, check_step, 0.9),
        (without_second_direction, check_step, 0.9),
        (with_the_mean, check_step, 0.9),
        (with_each_view_predicting_itself, check_step, 0.9),
        (with_the_online_network_as_target, check_step, 0.9),
        (without_ema, check_step, 0.9),
        (without_ema, check_ema, 0.9),
        (with_projector_left_behind, check_ema, 0.9),
        (with_averaged_buffers, check_buffers, 0.9),
        (without_stop_gradient, check_targets, 0.9),
        (with_trained_target, check_targets, 0.9),
        (without_stop_gradient, check_step, None),
        (without_predictor, check_step, None),
    ],
)
def test_taking_a_part_away_makes_its_check_fail(fault, check, momentum, monkeypatch):
    m = method(momentum=momentum)
    fault(m, monkeypatch)
    with pytest.raises(AssertionError):
        check(m)


# -------------------------------------------------------------------------------------- other normalisation


@pytest.mark.parametrize("kind", ["group", "none"])
@pytest.mark.parametrize("momentum", [0.9, None])
def test_a_batch_leaves_no_trace_in_any_part_without_batchnorm(kind, momentum):
    m = method(normalisation=kind, momentum=momentum, head=(48, 6), predictor_hidden=48)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    assert not any(isinstance(part, norms) for part in m.modules())
    online = {name for name, _ in m.named_parameters() if not name.startswith("target")}
    assert online >= {"encoder.network.blocks.0.0.weight", "projector.0.weight", "predictor.0.weight"}
    one, two = batch()
    chain = [nn.Sequential(m.encoder, m.projector, m.predictor)]
    chain += [nn.Sequential(m.target_encoder, m.target_projector)] if momentum else []
    for whole in chain:
        assert_close(whole(one)[2:4], whole(torch.cat([two[:3], one[2:4]]))[3:], rtol=1e-4, atol=1e-5)
        assert kind == "none" or whole(one).std(dim=0).mean() > 1e-3, "all images look the same"
    # so the loss of a batch is the mean of its parts' losses
    parts = torch.stack([m([one[rows], two[rows]]).loss for rows in torch.arange(6).split(2)])
    assert_close(m([one, two]).loss, parts.mean(), rtol=1e-4, atol=1e-5)
    before = [p.clone() for p in parameters(m.encoder, m.projector, m.predictor)]
    step(m, [one, two])
    after = parameters(m.encoder, m.projector, m.predictor)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    if momentum:
        check_ema(m)


def test_with_batchnorm_a_batch_leaves_its_trace():
    m, (one, two) = method(), batch()
    whole = nn.Sequential(m.encoder, m.projector, m.predictor)
    assert not torch.allclose(whole(one)[2:4], whole(torch.cat([two[:3], one[2:4]]))[3:], atol=1e-2)
