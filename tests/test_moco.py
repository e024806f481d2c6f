"""MoCo: the queue, the keys, whole steps against the paper, and what breaks when a part is taken away.

`check_queue`, `check_ema`, `check_stop_gradient` and `check_own_keys` are called on the healthy method, and
on one from which the part has been removed: there they must fail.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ssl_lessons import networks
from ssl_lessons.methods import moco
from ssl_lessons.methods.base import embedding_std
from ssl_lessons.methods.moco import MoCo, info_nce

SIDE = 16


def method(queue=24, seed=0, **overrides) -> MoCo:
    """A small healthy MoCo in train mode, embeddings of 8 numbers."""
    torch.manual_seed(seed)
    network = networks.Conv4((4, 8, 8, 8))
    settings = {"head": (8, 8), "symmetric": False, "momentum": 0.9, **overrides}
    return MoCo(network, image_size=SIDE, recipe="short", queue=queue, **settings).train()


def batch(count=6, seed=1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, SIDE, SIDE, generator=generator) for _ in range(2)]


def unit(*shape, seed=0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def step(m: MoCo, seen, lr=0.1) -> float:
    """One step of plain gradient descent, as a training loop makes it."""
    objective = m(seen)
    parameters = [p for p in m.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(objective.loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= lr * gradient
    m.after_step(0.0)
    return objective.loss.item()


@torch.no_grad()
def keys_of(m: MoCo, images) -> torch.Tensor:
    """Keys by the definition; with the whole batch in one part of BatchNorm nothing is shuffled."""
    return F.normalize(m.key_projector(m.key_encoder(images)), dim=1)


# --------------------------------------------------------------------------------------------------- queue


@pytest.mark.parametrize(("length", "count"), [(12, 4), (10, 4), (7, 3), (5, 5), (4, 6), (3, 10), (1, 2)])
def test_the_queue_holds_the_newest_keys_oldest_first_over_several_wraps(length, count):
    m = method(queue=length)
    written = list(m.queue.clone())
    for i in range(9):
        keys = unit(count, 8, seed=100 + i, dtype=torch.float32)
        m.enqueue(keys)
        written.extend(keys)
        assert_close(torch.roll(m.queue, -m.pointer.item(), dims=0), torch.stack(written[-length:]))


def check_queue(m: MoCo, steps=5, count=6):
    """After some steps the queue holds the newest keys, in order, and nothing else."""
    written = []
    for i in range(steps):
        seen = batch(count, seed=i)
        written.append(keys_of(m, seen[1]))
        if m.recipe.symmetric:
            written.append(keys_of(m, seen[0]))
        step(m, seen)
    newest = torch.cat(written)[-len(m.queue) :]
    assert_close(torch.roll(m.queue, -m.pointer.item(), dims=0), newest)


@pytest.mark.parametrize(("symmetric", "queue"), [(False, 24), (False, 20), (True, 24), (True, 5)])
def test_steps_fill_the_queue(symmetric, queue):
    check_queue(method(queue=queue, symmetric=symmetric))


def test_the_queue_starts_as_random_unit_vectors():
    m = method(queue=2000)
    assert_close(m.queue.norm(dim=1), torch.ones(2000))
    assert embedding_std(m.queue).item() == pytest.approx(1, abs=0.02)  # evenly over the sphere


def test_queue_age_counts_steps_since_a_key_was_made():
    m, ages = method(queue=18), []
    for i in range(6):
        ages.append(m(batch(6, seed=i)).diagnostics["queue_age"].item())
        m.after_step(0.0)
    # random keys count as made before the first step; then three batches of ages 1, 2, 3
    assert ages == pytest.approx([1, (1 + 2 + 2) / 3, (1 + 2 + 3) / 3, 2, 2, 2])


def test_an_empty_queue_is_refused():
    with pytest.raises(ValueError, match="queue is 0; it must be a whole number above 0"):
        method(queue=0)


# ----------------------------------------------------------------------------------- keys and their encoder


def check_ema(m: MoCo):
    """After a step the key encoder is m·old + (1 − m)·new, and its BatchNorm statistics are its own."""
    old = [p.clone() for half in (m.key_encoder, m.key_projector) for p in half.parameters()]
    step(m, batch())
    new = [p for half in (m.encoder, m.projector) for p in half.parameters()]
    now = [p for half in (m.key_encoder, m.key_projector) for p in half.parameters()]
    momentum, moved = m.recipe.momentum, False
    for before, online, key in zip(old, new, now, strict=True):
        assert_close(key, momentum * before + (1 - momentum) * online)
        moved = moved or not torch.equal(key, before)
    assert moved, "the key encoder stands still"


def test_the_key_encoder_follows_the_query_encoder():
    m = method()
    for _ in range(3):
        check_ema(m)


def check_stop_gradient(m: MoCo):
    """The loss pulls on the query's view and encoder, and on nothing of the key's."""
    one, two = (view.requires_grad_() for view in batch())
    m([one, two]).loss.backward()
    assert one.grad is not None and m.projector[0].weight.grad.abs().sum() > 0
    assert two.grad is None, "gradients reach the key's view"
    for half in (m.key_encoder, m.key_projector):
        assert all(p.grad is None and not p.requires_grad for p in half.parameters())
    assert not m.queue.requires_grad and not m.embed_keys(two).requires_grad


def test_keys_receive_no_gradient():
    check_stop_gradient(method())


def test_the_key_encoder_normalises_by_its_own_batch_and_keeps_its_own_statistics():
    m, (one, two) = method(), batch()
    m([one, two + 3])
    for encoder, images in ((m.encoder, one), (m.key_encoder, two + 3)):
        conv, norm = encoder.network.blocks[0][:2]
        assert norm.training and norm.num_batches_tracked == 1
        expected = 0.1 * conv(images).mean(dim=(0, 2, 3))  # from 0, momentum 0.1
        assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-6)
    kept = {name: b.clone() for name, b in m.key_encoder.named_buffers()}
    m.after_step(0.0)
    assert all(torch.equal(b, kept[name]) for name, b in m.key_encoder.named_buffers())
    assert_close(m.embed_keys(two), m.embed_keys(two))  # not from running statistics, which just moved


def check_own_keys(m: MoCo, monkeypatch):
    """In no pass does the queue already hold a key of the same batch."""
    passes = []
    plain = moco.similarities

    def spy(query, key, queue):
        passes.append((key.detach().clone(), queue.clone()))
        return plain(query, key, queue)

    monkeypatch.setattr(moco, "similarities", spy)
    for i in range(3):
        passes.clear()
        step(m, batch(seed=i))
        assert len(passes) == 2
        keys = torch.cat([key for key, _ in passes])
        for _, queue in passes:
            distance = torch.cdist(keys.double(), queue.double(), compute_mode="donot_use_mm_for_euclid_dist")
            assert distance.min() > 1e-6, "a key of this batch is among the negatives"


def test_no_query_meets_its_own_key_among_the_negatives(monkeypatch):
    check_own_keys(method(symmetric=True), monkeypatch)


def test_the_symmetric_loss_is_the_sum_of_both_directions_over_the_same_queue():
    m, (one, two) = method(symmetric=True), batch()
    with torch.no_grad():
        expected = info_nce(m.embed(one), keys_of(m, two), m.queue, m.recipe.temperature)
        expected += info_nce(m.embed(two), keys_of(m, one), m.queue, m.recipe.temperature)
    assert_close(m([one, two]).loss.detach(), expected)


def test_three_steps_agree_with_the_papers_algorithm():
    """Algorithm 1 written out with plain tensors and a list for a queue."""
    m = method(queue=13, momentum=0.8, temperature=0.3)
    query, key = (copy.deepcopy([m.encoder, m.projector]) for _ in range(2))
    waiting = list(m.queue.clone())
    for i in range(3):
        one, two = batch(5, seed=i)
        q = F.normalize(query[1](query[0](one)), dim=1)
        with torch.no_grad():
            k = F.normalize(key[1](key[0](two)), dim=1)
        rows = [torch.stack([a @ b, *(a @ n for n in waiting)]) / 0.3 for a, b in zip(q, k, strict=True)]
        loss = torch.stack([-row.log_softmax(0)[0] for row in rows]).mean()
        assert step(m, [one, two]) == pytest.approx(loss.item(), rel=1e-4)
        parameters = [p for half in query for p in half.parameters()]
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= 0.1 * g
            for p, slow in zip(parameters, [p for half in key for p in half.parameters()], strict=True):
                slow.copy_(0.8 * slow + 0.2 * p)
        waiting = [*waiting, *k][-13:]
        assert_close(torch.roll(m.queue, -m.pointer.item(), 0), torch.stack(waiting), rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------- faults planted


def without_queue(m, monkeypatch):
    monkeypatch.setattr(MoCo, "enqueue", lambda self, keys: None)


def without_ema(m, monkeypatch):
    monkeypatch.setattr(moco, "ema_update", lambda target, online, momentum: None)


def without_stop_gradient(m, monkeypatch):
    monkeypatch.setattr(MoCo, "embed_keys", MoCo.embed_keys.__wrapped__)  # the same, without no_grad


def with_trained_keys(m, monkeypatch):
    without_stop_gradient(m, monkeypatch)
    m.key_encoder.requires_grad_(True)


def enqueued_at_once(m, monkeypatch):
    plain = MoCo.embed_keys

    def eager(self, images):
        keys = plain(self, images)
        self.enqueue(keys)
        return keys

    monkeypatch.setattr(MoCo, "embed_keys", eager)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (without_queue, check_queue),
        (without_ema, check_ema),
        (without_stop_gradient, check_stop_gradient),
        (with_trained_keys, check_stop_gradient),
    ],
)
def test_taking_a_part_away_makes_its_check_fail(fault, check, monkeypatch):
    m = method()
    fault(m, monkeypatch)
    with pytest.raises(AssertionError):
        check(m)


def test_enqueueing_between_the_two_passes_makes_its_check_fail(monkeypatch):
    m = method(symmetric=True, queue=64)
    enqueued_at_once(m, monkeypatch)
    with pytest.raises(AssertionError, match="a key of this batch is among the negatives"):
        check_own_keys(m, monkeypatch)


# ------------------------------------------------------------------------------------------- shuffled keys


def test_shuffled_keys_return_in_order():
    m, (_, images) = method(splits=3), batch(12)
    met = []
    m.key_encoder.register_forward_pre_hook(lambda module, inputs: met.append(inputs[0].clone()))
    m.eval()  # running statistics: a key depends on its own image only, so that order shows
    keys = m.embed_keys(images)
    assert_close(keys, keys_of(m, images))
    assert not torch.equal(met[0], images)  # they were shuffled
    assert torch.equal(met[0].flatten(1).sum(1).sort().values, images.flatten(1).sum(1).sort().values)


def test_keys_are_normalised_with_others_each_time_only_if_batchnorm_is_split():
    images = batch(12)[1]
    whole, split = method(splits=1), method(splits=3)
    assert torch.equal(whole.embed_keys(images), whole.embed_keys(images))
    assert not torch.allclose(split.embed_keys(images), split.embed_keys(images), atol=1e-3)
    for encoder in (split.encoder, split.key_encoder):
        assert all(m.splits == 3 for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
