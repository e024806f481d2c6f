"""Collapse and geometry: the papers' formulas in float64, known answers, and what may not matter."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import moco, noise

from ssl_lessons import diagnose
from ssl_lessons.diagnose import BANDS, alignment, effective_rank, geometry, measure, uniformity, verdict

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def rotation(size, seed=1):
    return torch.linalg.qr(normal(size, size, seed).double())[0]


# ---------------------------------------------------------------------------------- from the papers' formulas


def rank_by_the_formula(z):
    z = [[float(value) for value in row] for row in z]
    z = torch.tensor([[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in z]).double()
    squares = torch.linalg.eigvalsh(z.T @ z)  # σ² by another road than the singular value decomposition
    sigma = [math.sqrt(max(float(value), 0.0)) for value in squares]
    shares = [value / sum(sigma) for value in sigma]
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


@pytest.mark.parametrize("rows, columns", [(2, 3), (40, 8), (8, 8)])
def test_effective_rank_is_the_papers_formula(rows, columns):
    z = normal(rows, columns)
    assert effective_rank(z) == pytest.approx(rank_by_the_formula(z), rel=1e-4)


def test_alignment_and_uniformity_are_the_papers_formulas():
    one, two = F.normalize(normal(2 * 17, 5).double(), dim=1).view(2, 17, 5)
    apart = [sum(float(a - b) ** 2 for a, b in zip(x, y, strict=True)) for x, y in zip(one, two, strict=True)]
    assert alignment(one, two) == pytest.approx(sum(apart) / 17, rel=1e-12)
    for t in (0.5, 2.0):
        pairs = [
            math.exp(-t * sum(float(a - b) ** 2 for a, b in zip(one[i], one[j], strict=True)))
            for i in range(17)
            for j in range(i)
        ]
        assert uniformity(one, t) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-12)
    assert uniformity(one) == uniformity(one, 2.0)


# ---------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("rows, columns", [(2, 1), (5, 3), (300, 40)])
def test_one_point_is_a_complete_collapse(rows, columns):
    z = normal(1, columns).expand(rows, columns)
    assert effective_rank(z) == pytest.approx(1, abs=1e-6)
    assert uniformity(z) == pytest.approx(0, abs=1e-9)
    found = geometry(z, z)
    assert found["embedding_std"] == pytest.approx(0, abs=1e-6) and found["alignment"] == 0
    assert verdict(found) == "collapsed"


def test_one_point_and_rounding_noise_has_rank_one_too():
    z = normal(1, 64) + 1e-6 * normal(500, 64, seed=1)
    assert effective_rank(z) == pytest.approx(1, abs=0.01)
    assert effective_rank(z - z.mean(dim=0)) > 50  # what centring would have answered


def test_a_line_has_rank_one_however_its_points_are_spread():
    z = normal(100, 1) * normal(1, 16, seed=1)  # both ends of one line: the points are not equal
    assert effective_rank(z) == pytest.approx(1, abs=1e-4)
    assert geometry(z, z)["embedding_std"] > BANDS["embedding_std"].healthy  # it alone is fooled


@pytest.mark.parametrize("dim", [2, 8, 32])
def test_axes_in_equal_numbers_have_the_rank_of_the_space(dim):
    z = torch.eye(dim).repeat(3, 1)
    assert effective_rank(z) == pytest.approx(dim, rel=1e-9)


def test_an_even_sphere_is_healthy():
    z = normal(2000, 32)
    found = geometry(z, normal(2000, 32, seed=1))
    assert 31.5 < found["effective_rank"] <= 32
    assert found["embedding_std"] == pytest.approx(1, abs=0.02)
    assert found["alignment"] == pytest.approx(2, abs=0.05)  # unrelated views: right angles
    # Its expectation for the uniform measure: E exp(−2t(1 − cos)) = exp(−2t)·Γ(d/2)·(1/t)^(d/2−1)·I(2t)
    order, t = 15, 2.0
    bessel = sum(t ** (2 * k + order) / (math.factorial(k) * math.gamma(k + order + 1)) for k in range(40))
    even = math.log(math.exp(-2 * t) * math.gamma(16) * t**-order * bessel)
    assert found["uniformity"] == pytest.approx(even, abs=0.02)
    assert verdict(found) == "healthy"


def test_opposite_points_and_right_angles():
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert alignment(ends, -ends) == 4 and alignment(ends, ends) == 0
    assert alignment(ends, ends.flip(1)) == 2
    assert uniformity(ends) == pytest.approx(-8)  # the furthest that two points can be: −4t
    assert uniformity(torch.eye(5), t=3.0) == pytest.approx(-6)  # all at right angles: −2t


def test_rows_of_zeros_have_no_rank():
    zeros = torch.zeros(4, 3)
    assert effective_rank(zeros) == 0
    assert verdict(geometry(zeros, zeros)) == "collapsed"


# ---------------------------------------------------------------------------------------- what may not matter


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 10**6))
def test_invariances_and_bounds(rows, columns, seed):
    one, two = normal(2 * rows, columns, seed).double().view(2, rows, columns)
    found, turn = geometry(one, two), rotation(columns, seed)
    assert 1 - 1e-9 <= found["effective_rank"] <= min(rows, columns) + 1e-9
    assert 0 <= found["alignment"] <= 4 and -8 - 1e-9 <= found["uniformity"] <= 0
    lengths = 0.01 + torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    rest = [name for name in found if name != "embedding_std"]  # the std belongs to the axes: no rotation
    for names, a, b in (
        (found, one * lengths, two * 7),
        (found, one[order], two[order]),
        (rest, one @ turn, two @ turn),
    ):
        again = geometry(a, b)
        assert {n: again[n] for n in names} == pytest.approx({n: found[n] for n in names}, abs=1e-5)
    assert alignment(two, one) == pytest.approx(found["alignment"], abs=1e-12)


def test_more_noise_between_views_aligns_less_and_more_spread_is_more_uniform():
    point, noise_ = normal(1, 16), normal(200, 16, seed=1)
    spread = [geometry(point + s * noise_, point + s * noise_ + 0.1 * s) for s in (0.01, 0.1, 1.0, 10.0)]
    for name, grows in (("embedding_std", True), ("effective_rank", True), ("uniformity", False)):
        values = [found[name] for found in spread]
        assert values == sorted(values, reverse=not grows), name
    z = normal(200, 16)
    apart = [alignment(z, z + s * noise_) for s in (0.0, 0.1, 0.5, 2.0)]
    assert apart == sorted(apart) and apart[0] == 0


def test_half_precision_and_gradients_are_taken_as_they_come():
    z = normal(50, 8).requires_grad_()
    assert effective_rank(z) == pytest.approx(effective_rank(z.detach().double()), rel=1e-6)
    assert geometry(z.bfloat16(), z.bfloat16())["alignment"] == 0


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("shape", [(1, 4), (4,), (2, 3, 4)])
def test_shapes_are_refused_by_name(shape):
    for call in (effective_rank, uniformity, lambda z: alignment(z, z)):
        with pytest.raises(ValueError, match=r"expected \(N, D\)"):
            call(torch.ones(shape))


def test_other_refusals():
    with pytest.raises(ValueError, match="expected the same"):
        alignment(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="t 0 must be above 0"):
        uniformity(torch.ones(3, 2), t=0)
    with pytest.raises(ValueError, match="embedding_std, effective_rank"):
        verdict({"loss": 1.0})


# ------------------------------------------------------------------------------------------------------ bands


def test_bands_are_read_in_their_own_direction():
    for name, band in BANDS.items():
        middle = (band.collapsed + band.healthy) / 2
        assert band.verdict(middle) == "suspect", name
        assert band.verdict(band.healthy) == "healthy" and band.verdict(band.collapsed) == "collapsed"
        beyond = band.healthy - band.collapsed
        assert band.verdict(band.healthy + beyond) == "healthy"
        assert band.verdict(band.collapsed - beyond) == "collapsed"
        assert band.verdict(math.nan) == "collapsed"


def test_verdict_is_the_worst_of_those_that_have_a_band():
    healthy = {name: band.healthy for name, band in BANDS.items()}
    assert verdict(healthy | {"alignment": 0.0, "loss": -1.0}) == "healthy"
    for name, band in BANDS.items():
        assert verdict(healthy | {name: (band.collapsed + band.healthy) / 2}) == "suspect"
        assert verdict(healthy | {name: band.collapsed}) == "collapsed"
        assert verdict({name: band.healthy}) == "healthy"


# ------------------------------------------------------------------------------------------------ on a method


def test_measure_is_the_geometry_of_projected_views_and_leaves_no_trace():
    method, store = moco(), noise(count=24)
    method.train()
    method.projector.eval()  # a mixture of modes, as someone may have set it
    method(method.augment(store.images[:8], torch.Generator().manual_seed(3)))  # move BatchNorm's statistics
    before = {name: value.clone() for name, value in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    state = torch.get_rng_state()
    found = measure(method, store, images=20, batch=20)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in method.modules()]
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())

    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(24, generator=generator)[:20]
    one, two = method.eval().augment(store.batch(rows), generator)
    with torch.no_grad():
        wanted = geometry(method.embed(one), method.embed(two))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_measure_repeats_and_follows_its_generator():
    method, store = moco(), noise(count=24)
    assert measure(method, store) == measure(method, store)
    other = measure(method, store, torch.Generator().manual_seed(1))
    assert other != measure(method, store)
    assert set(other) == {"embedding_std", "effective_rank", "alignment", "uniformity"}
    assert set(other) >= set(diagnose.BANDS)


def test_measure_sees_a_planted_collapse():
    method, store = moco(), noise(count=24)
    last = method.projector[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(1.0)
    assert verdict(measure(method, store)) == "collapsed"


def test_measure_puts_the_method_back_after_an_error():
    method = moco().train()
    method.projector.forward = None  # breaks in the middle of the pass
    with pytest.raises(TypeError):
        measure(method, noise(count=24))
    assert all(module.training for module in method.modules())
