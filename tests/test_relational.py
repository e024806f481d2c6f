"""Relational reasoning: who meets whom, the head without its pairs, both cross-entropies, and whole steps.

`check_pairs` and `check_steps` are called on the healthy code, and on code from which a part has been
removed: there they must fail.
"""

import itertools
import math

import by_hand
import pytest
import torch
from by_hand import descend, faulty, parameters, slopes, twins
from hypothesis import given, settings
from hypothesis import strategies as st
from test_moco import batch, step
from torch import nn
from torch.testing import assert_close

from ssl_lessons import networks, shapes
from ssl_lessons.methods import relational
from ssl_lessons.methods.relational import Relational, RelationHead, focal_bce

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 16


def method(seed=0, **overrides) -> Relational:
    """A small healthy method in train mode, three views, eight features."""
    torch.manual_seed(seed)
    settings = {"views": 3, "hidden": 6, **overrides}
    return Relational(networks.Conv4((4, 8, 8, 8)), image_size=SIDE, recipe="short", **settings).train()


def views(count=6, number=3, seed=1) -> list[torch.Tensor]:
    return [view for i in range(-(-number // 2)) for view in batch(count, seed=seed + 100 * i)][:number]


def head(width=8, hidden=6, seed=0) -> RelationHead:
    torch.manual_seed(seed)
    return RelationHead(width, hidden)


# ----------------------------------------------------------------------------------------------- the pairs


def check_pairs(number: int, count: int):
    """K(K − 1)B rows: every i < j, every image with itself once, and with another once; another, always."""
    # a feature says which view of which image it is
    features = torch.tensor([[view, image] for view in range(number) for image in range(count)]).float()
    pairs, targets = by_hand.relation_pairs(features, number)
    assert pairs.shape == (number * (number - 1) * count, 4) and targets.shape == (len(pairs),)
    assert pairs.dtype == targets.dtype == torch.float32
    shifts = []
    blocks = zip(pairs.split(count), targets.split(count), strict=True)
    for i, j in itertools.combinations(range(number), 2):
        for same in (True, False):
            block, target = next(blocks)
            first, left, second, right = block.T
            assert (first == i).all() and (second == j).all(), "a view meets another than it should"
            assert left.tolist() == list(range(count))
            assert sorted(right.tolist()) == list(range(count)), "not each image once"
            assert (target == (1 if same else 0)).all()
            shift = ((left - right) % count).unique()
            assert len(shift) == 1, "no roll"
            if same:
                assert shift == 0, "a positive of two images"
            else:
                assert shift != 0, "an image meets itself among the negatives"
                shifts.append(int(shift))
    assert next(blocks, None) is None
    assert targets.mean() == 0.5
    assert shifts == [1 + n % (count - 1) for n in range(len(shifts))], "the shift grows by one and returns"


@pytest.mark.parametrize("number", [2, 3, 4, 5])
@pytest.mark.parametrize("count", [2, 3, 7, 64])
def test_pairs_of_few_views(number, count):
    check_pairs(number, count)


def test_pairs_of_32_views_of_64_images_are_63488_rows():
    check_pairs(32, 64)
    assert len(relational.relation_index(32, 64)[0]) == 63488


@settings(max_examples=30, deadline=None)
@given(number=st.integers(2, 9), count=st.integers(2, 12))
def test_pairs_of_any_number(number, count):
    check_pairs(number, count)


def without_roll(monkeypatch):
    unrolled = faulty(relational.relation_index, "row - shift[:, None]", "row - 0 * shift[:, None]")
    monkeypatch.setattr(relational, "relation_index", unrolled)


def roll_that_stands_still(monkeypatch):
    still = faulty(relational.relation_index, "% (batch - 1) + 1", "* 0 + 1")
    monkeypatch.setattr(relational, "relation_index", still)


def roll_that_never_returns(monkeypatch):
    """The shift grows on: at a multiple of the batch every image meets itself."""
    endless = faulty(relational.relation_index, "% (batch - 1) + 1", "+ 1")
    monkeypatch.setattr(relational, "relation_index", endless)


def roll_that_returns_late(monkeypatch):
    late = faulty(relational.relation_index, "% (batch - 1)", "% batch")
    monkeypatch.setattr(relational, "relation_index", late)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (without_roll, "an image meets itself"),
        (roll_that_never_returns, "an image meets itself"),
        (roll_that_returns_late, "an image meets itself"),
        (roll_that_stands_still, "the shift grows"),
    ],
)
def test_a_broken_roll_makes_the_check_of_the_pairs_fail(fault, words, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=words):
        check_pairs(5, 7)  # ten pairs of views, more than the batch has shifts


@pytest.mark.parametrize(("number", "count"), [(1, 4), (2, 1), (0, 0)])
def test_too_few_views_or_images_are_refused(number, count):
    with pytest.raises(ValueError, match=f"{number} views of {count} images make no"):
        relational.relation_index(number, count)


def test_one_view_is_refused_by_the_method():
    with pytest.raises(ValueError, match="views is 1; .* above 1"):
        method(views=1)


# ------------------------------------------------------------------------------------------------ the head


def check_score(number=4, count=5, width=8):
    """`score` is the head on the pairs themselves: values, gradients, and the statistics that it leaves."""
    features = torch.randn(number * count, width, generator=torch.Generator().manual_seed(3)).double()
    first, second, _ = relational.relation_index(number, count)
    answers = []
    for by_pairs in (True, False):
        h, x = head(width).double(), features.clone().requires_grad_()
        scores = h(by_hand.relation_pairs(x, number)[0]) if by_pairs else h.score(x, first, second)
        weights = torch.arange(1, len(scores) + 1, dtype=torch.float64).sin()
        learnt = [x, *h.parameters()]
        gradients = torch.autograd.grad((scores * weights).sum(), learnt, materialize_grads=True)
        answers.append([scores, *gradients, h.norm.running_mean, h.norm.running_var])
    for mine, other in zip(*answers, strict=True):
        assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_scores_need_no_pairs():
    check_score()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("F.linear(features, right)", "F.linear(features, left)"),
        ("right)[second]", "right)[first]"),
        (", self.joined.bias)", ")"),
    ],
)
def test_a_wrong_score_makes_its_check_fail(old, new, monkeypatch):
    monkeypatch.setattr(RelationHead, "score", faulty(RelationHead.score, old, new))
    with pytest.raises(AssertionError):
        check_score()


def test_the_head_is_the_official_one():
    """concat(2d) → 256, BatchNorm, LeakyReLU → 1, by plain layers with the same weights."""
    h = RelationHead(12)
    assert (h.joined.in_features, h.joined.out_features, h.last.out_features) == (24, 256, 1)
    plain = nn.Sequential(nn.Linear(24, 256), nn.BatchNorm1d(256), nn.LeakyReLU(), nn.Linear(256, 1))
    for mine, other in zip((h.joined, h.norm, h.last), (plain[0], plain[1], plain[3]), strict=True):
        other.load_state_dict(mine.state_dict())
    pairs = torch.randn(30, 24)
    assert_close(h(pairs), plain(pairs).squeeze())


def kept(run) -> int:
    """Bytes that a pass keeps for its way back."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sum(storages.values())


def test_scoring_keeps_no_pairs_in_memory():
    number, count, width, hidden = 32, 64, 256, 32
    h = head(width, hidden)
    features = torch.randn(number * count, width, requires_grad=True)
    first, second, _ = relational.relation_index(number, count)
    by_score = kept(lambda: h.score(features, first, second))
    by_pairs = kept(lambda: h(by_hand.relation_pairs(features, number)[0]))
    rows = 63488
    assert by_pairs > rows * 2 * width * 4  # the pairs alone: 130 MB
    assert by_score < by_pairs / 4
    # a few tensors of the hidden layer's size, the two index vectors, and the features themselves
    assert by_score < 4 * rows * hidden * 4 + 2 * rows * 8 + 2 * features.nbytes


# ------------------------------------------------------------------------------------- the cross-entropies


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def plain_bce(scores, targets) -> float:
    pairs = zip(scores.tolist(), targets.tolist(), strict=True)
    return -math.fsum(math.log(sigmoid(s if t else -s)) for s, t in pairs) / len(scores)


def plain_focal(scores, targets, gamma, alpha) -> float:
    """The official full code's loss in Python floats: the mean over pairs of −α_t·(1 − p_t)^γ·log p_t."""
    total = []
    for score, target in zip(scores.tolist(), targets.tolist(), strict=True):
        p = sigmoid(score if target else -score)
        total.append(-(alpha if target else 1 - alpha) * (1 - p) ** gamma * math.log(p))
    return math.fsum(total) / len(total)


def scored(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(count, generator=generator, dtype=torch.float64)
    return scores, (torch.rand(count, generator=generator) < 0.5).double()


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.5), (2.0, 0.25), (0.5, 0.9), (0.0, 0.5)])
def test_focal_weighting_is_the_official_codes_in_value_and_gradient(gamma, alpha):
    scores, targets = scored()
    loss = focal_bce(scores.requires_grad_(), targets, gamma, alpha)
    plain = scores.detach()
    assert loss.item() == pytest.approx(plain_focal(plain, targets, gamma, alpha), rel=1e-9)
    expected = slopes(lambda s: plain_focal(s, targets, gamma, alpha), plain)
    assert_close(torch.autograd.grad(loss, scores)[0], expected, rtol=1e-6, atol=1e-9)


def test_without_gamma_and_with_even_shares_it_is_half_the_plain_cross_entropy():
    scores, targets = scored()
    assert focal_bce(scores, targets, 0.0, 0.5).item() == pytest.approx(plain_bce(scores, targets) / 2)


def test_focal_weighting_looks_at_what_is_wrong():
    """A pair known for sure pulls a thousand times less than one got wrong, beside the plain loss."""
    scores, targets = torch.tensor([4.0, -4.0], requires_grad=True), torch.tensor([1.0, 1.0])
    (pull,) = torch.autograd.grad(focal_bce(scores, targets), scores)
    assert pull[1].abs() > 1000 * pull[0].abs()


def test_focal_weighting_is_finite_where_all_is_right_and_where_all_is_wrong():
    for sign in (1, -1):
        scores = torch.tensor([sign * 200.0, -sign * 200.0], requires_grad=True)
        loss = focal_bce(scores, torch.tensor([1.0, 0.0]))
        loss.backward()
        assert loss.isfinite() and scores.grad.isfinite().all()


# --------------------------------------------------------------------------------------------- whole steps


def plain_loss(encoder, h, seen, focal):
    """The objective pair by pair, from the definition: same image or not."""
    features = encoder(torch.cat(seen)).split(len(seen[0]))
    pairs, targets, shift, count = [], [], 1, len(seen[0])
    for i, j in itertools.combinations(range(len(seen)), 2):
        for moved in (0, shift):
            for image in range(count):
                pairs.append(torch.cat([features[i][image], features[j][(image - moved) % count]]))
                targets.append(float(not moved))
        shift = 1 if shift + 1 == count else shift + 1
    p = torch.sigmoid(h(torch.stack(pairs)))
    p = torch.stack([x if t else 1 - x for x, t in zip(p, targets, strict=True)])
    return ((0.5 * (1 - p) ** 2 if focal else 1) * -p.log()).mean()


def check_steps(focal=False):
    """Three steps of gradient descent agree with the definition in float64."""
    m = method(focal=focal)
    encoder, h = twins(m.encoder, m.head)
    for i in range(3):
        seen = views(5, seed=i)
        loss = plain_loss(encoder, h, [view.double() for view in seen], focal)
        assert step(m, seen) == pytest.approx(loss.item(), rel=1e-4)
        descend(loss, parameters(encoder, h))
    for mine, other in zip(parameters(m.encoder, m.head), parameters(encoder, h), strict=True):
        assert_close(mine.double(), other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("focal", [False, True])
def test_three_steps_agree_with_the_definition_in_float64(focal):
    check_steps(focal)


def detached_features(monkeypatch):
    plain = RelationHead.score
    monkeypatch.setattr(RelationHead, "score", lambda self, x, *index: plain(self, x.detach(), *index))


def positives_alone(monkeypatch):
    plain = relational.relation_index

    def index(number, count, device):
        first, second, targets = plain(number, count, device)
        return first[targets == 1], second[targets == 1], targets[targets == 1]

    monkeypatch.setattr(relational, "relation_index", index)


def second_half_alone(monkeypatch):
    """Only one side of a pair learns."""
    one_sided = faulty(RelationHead.score, "F.linear(features, right)", "F.linear(features.detach(), right)")
    monkeypatch.setattr(RelationHead, "score", one_sided)


@pytest.mark.parametrize("fault", [without_roll, positives_alone, detached_features, second_half_alone])
def test_taking_a_part_away_makes_the_check_of_the_steps_fail(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):  # RuntimeError: the encoder has no gradient at all
        check_steps()


def test_diagnostics_are_what_they_are_called():
    m, seen = method(), views()
    objective = m(seen)
    with torch.no_grad():
        features = m.encoder(torch.cat(seen))
        pairs, targets = by_hand.relation_pairs(features, 3)
        scores = m.head(pairs)
        unit = features[:6] / features[:6].norm(dim=1, keepdim=True)
    expected = {
        "accuracy_positive": (scores[targets == 1] > 0).double().mean().item(),
        "accuracy_negative": (scores[targets == 0] <= 0).double().mean().item(),
        "embedding_std": (unit.std(0).mean() * 8**0.5).item(),
    }
    assert objective.diagnostics.keys() == expected.keys()
    for name, value in objective.diagnostics.items():
        assert not value.requires_grad and value.dim() == 0
        assert value.item() == pytest.approx(expected[name], rel=1e-4), name


def test_the_two_accuracies_are_counted_apart():
    """A head that always says yes knows every positive and no negative."""
    m = method()
    with torch.no_grad():
        m.head.last.weight.zero_()
        m.head.last.bias.fill_(1.0)
    watched = m(views()).diagnostics
    assert (watched["accuracy_positive"], watched["accuracy_negative"]) == (1, 0)


def test_scores_are_judged_in_float32_under_autocast():
    m, seen = method(focal=True), views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = m(seen).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(m(seen).loss.item(), rel=0.05)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in m.parameters())


def test_32_views_of_64_images_are_made_learnt_from_and_judged_in_one_go():
    torch.manual_seed(0)
    network = networks.Conv4((4, 4, 8, 8))
    m = Relational(network, image_size=SIDE, recipe="paper", hidden=16).train()
    assert len(m.policies) == 32
    images = torch.from_numpy(shapes.draw(64, 20, seed=0)[0]).permute(0, 3, 1, 2)
    seen = m.augment(images, torch.Generator().manual_seed(0))
    assert len(seen) == 32 and all(view.shape == (64, 3, SIDE, SIDE) for view in seen)
    assert len(torch.unique(torch.stack(seen)[:, 0].flatten(1), dim=0)) == 32  # each view its own draw
    loss, watched = m(seen)
    loss.backward()
    assert loss.isfinite() and all(p.grad.abs().sum() > 0 for p in m.parameters())
    # 63,488 pairs: the head's hidden layer a few times, and not once the pairs
    step_bytes = kept(lambda: m(seen).loss)
    encoder_bytes = kept(lambda: m.encoder(torch.cat(seen)))
    assert step_bytes - encoder_bytes < 63488 * 4 * (4 * 16 + 16)
