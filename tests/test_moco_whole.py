"""MoCo as a whole: diagnostics, precision, gradients, going on from a state, weights kept, and learning."""

import copy

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from test_moco import batch, check_ema, keys_of, method, step, unit
from torch.testing import assert_close

from ssl_lessons import networks, records, shapes, views
from ssl_lessons.methods.base import embedding_std
from ssl_lessons.methods.moco import MoCo


def test_diagnostics_are_what_they_are_called():
    m, (one, two) = method(temperature=0.5), batch()
    objective = m([one, two])
    with torch.no_grad():
        q, k = m.embed(one), keys_of(m, two)
    cosines = q @ m.queue.T
    expected = {
        "positive_similarity": (q * k).sum(1).mean(),
        "negative_similarity": cosines.mean(),
        "accuracy": ((q * k).sum(1) > cosines.max(1).values).float().mean(),
        "embedding_std": q.std(0).mean() * 8**0.5,
        "queue_age": torch.tensor(1.0),
    }
    assert objective.diagnostics.keys() == expected.keys()
    for name, value in objective.diagnostics.items():
        assert not value.requires_grad and value.dim() == 0
        assert_close(value, expected[name])


def test_embedding_std_is_zero_at_a_point_and_one_over_the_sphere():
    assert embedding_std(unit(1, 16).expand(9, 16)).item() == pytest.approx(0, abs=1e-6)
    assert embedding_std(unit(4000, 16)).item() == pytest.approx(1, abs=0.02)


def test_similarities_are_float32_under_autocast():
    m, seen = method(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert m.encoder(seen[0]).dtype == torch.bfloat16
        query, keys, objective = m.embed(seen[0]), m.embed_keys(seen[1]), m(seen)
    assert query.dtype == keys.dtype == objective.loss.dtype == torch.float32
    assert_close(query.norm(dim=1), torch.ones(6))
    objective.loss.backward()
    m.after_step(0.0)
    assert m.queue.dtype == torch.float32


def test_a_state_dict_is_all_that_a_run_needs_to_go_on():
    m = method(queue=20)
    for i in range(3):
        step(m, batch(seed=i))
    other = method(queue=20, seed=5)
    other.load_state_dict(copy.deepcopy(m.state_dict()), strict=True)
    for i in range(3, 6):
        assert step(m, batch(seed=i)) == step(other, batch(seed=i))
    assert torch.equal(m.queue, other.queue) and m.pointer == other.pointer


def test_learnt_weights_load_into_plain_torchvision(tmp_path):
    network = torchvision.models.resnet18()
    m = MoCo(network, image_size=32, recipe="small_data", queue=16, splits=2).train()
    step(m, [torch.randn(4, 3, 32, 32) for _ in range(2)])
    run = records.Run.create(tmp_path / "run")
    run.save_encoder(m.encoder.network)
    plain = torchvision.models.resnet18()
    plain.load_state_dict(load_file(run.encoder_path), strict=True)
    image = torch.randn(2, 3, 32, 32)
    m.eval()
    assert torch.equal(networks.tap(plain, image_size=32).eval()(image), m.encoder(image))


def test_thirty_steps_on_shapes_lower_the_loss():
    images = torch.from_numpy(shapes.draw(256, 48, seed=0)[0]).permute(0, 3, 1, 2)
    torch.manual_seed(0)
    network = networks.Conv4((16, 32, 64, 128))
    m = MoCo(network, image_size=32, recipe="short", queue=128, symmetric=False).train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for i in range(32):
        rows = torch.randperm(256, generator=generator)[:64]
        loss = m([views.views(images[rows], policy, generator, 32) for policy in m.policies]).loss
        if i >= 2:  # the first two fill the queue: random keys are easy negatives, and flatter the loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        m.after_step(i / 32)
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < first - 0.2, losses


def test_the_methods_gradient_agrees_with_finite_differences():
    m, seen = method(temperature=0.2), batch()
    weight = m.projector[0].weight
    (gradient,) = torch.autograd.grad(m(seen).loss, weight)
    direction = gradient / gradient.norm()
    values, size = [], 1e-2
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * size * direction
            values.append(m(seen).loss.double().item())
            weight -= sign * size * direction
    assert (values[0] - values[1]) / (2 * size) == pytest.approx(gradient.norm().item(), rel=1e-2)


def test_a_head_may_be_missing():
    m = method(head=())
    assert m.queue.shape[1] == m.encoder.width
    check_ema(m)
