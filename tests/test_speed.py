"""What makes a step fast is switched on and changes no result. No seconds are asserted."""

import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, losses, moco, noise

from ssl_lessons import devices, fast, networks
from ssl_lessons.methods.byol import BYOL
from ssl_lessons.methods.relational import Relational
from ssl_lessons.methods.simclr import SimCLR
from ssl_lessons.methods.simsiam import SimSiam
from ssl_lessons.optim import build_optimizer
from ssl_lessons.training import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_the_fused_kernel_does_what_the_plain_loop_does(kind):
    fused, plain = moco(optimizer=kind, lr=0.01), moco(optimizer=kind, lr=0.01)
    a, b = build_optimizer(fused), build_optimizer(plain)
    assert all(group["fused"] for group in a.param_groups)
    for group in b.param_groups:
        group["fused"] = group["foreach"] = False
    for _ in range(5):
        for one, two in zip(fused.parameters(), plain.parameters(), strict=True):
            if one.requires_grad:
                one.grad = torch.randn_like(one)
                two.grad = one.grad.clone()
        a.step(), b.step()
    assert not torch.equal(next(fused.parameters()), next(moco().parameters()))  # something moved
    for one, two in zip(fused.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sides", "stride"),
    [((1, 1), 1), ((1, 1), 2), ((2, 2), 1), ((2, 2), 2), ((1, 2), 1), ((4, 4), 2), ((3, 4), 2)],
)
def test_a_convolution_on_a_small_map_is_as_exact_as_pytorchs_own(sides, stride):
    """Both are rounded to bfloat16, at the same places: neither is further from the sum in float64."""
    torch.manual_seed(0)
    x = torch.randn(5, 24, *sides).bfloat16().double().requires_grad_()
    weight = torch.randn(16, 24, 3, 3).bfloat16().double().requires_grad_()
    outputs = F.conv2d(x, weight, None, stride, 1)
    towards = torch.randn_like(outputs).bfloat16().double()
    exact = [outputs.detach(), *torch.autograd.grad(outputs, (x, weight), towards)]

    def errors(compute):
        inputs = [part.detach().bfloat16().requires_grad_() for part in (x, weight)]
        found = compute(*inputs)
        assert found.dtype == torch.bfloat16 and found.shape == outputs.shape
        found = [found.detach(), *torch.autograd.grad(found, inputs, towards.bfloat16())]
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]

    for ours, pytorchs in zip(
        errors(lambda x, w: fast.small_conv2d(x, w, stride)),
        errors(lambda x, w: F.conv2d(x, w, None, stride, 1)),
        strict=True,
    ):
        assert ours < max(1.2 * pytorchs, 4e-3)  # bfloat16 rounds by up to 2 ** -8


def test_small_maps_are_for_wide_layers_in_bfloat16_on_a_cpu(monkeypatch):
    """A ResNet-18's last stage at 64 pixels: three of 2 x 2 maps, and the one that leads there."""
    sizes, kernel = [], fast.small_conv2d

    def counted(x, weight, stride):
        sizes.append((tuple(x.shape[1:]), stride))
        return kernel(x, weight, stride)

    monkeypatch.setattr(fast, "small_conv2d", counted)

    def trained(precision, name="resnet18"):
        sizes.clear()
        torch.manual_seed(0)
        method = SimCLR(networks.build(name, 64), image_size=64, recipe="short")
        settings = {**CPU, "precision": precision, "stop_on_collapse": False}
        return losses(pretrain(method, noise(8, size=64), epochs=1, batch_size=8, **settings))

    quick = trained("bf16")
    assert sizes == [((256, 4, 4), 2)] + 3 * [((512, 2, 2), 1)]
    trained("fp32")
    assert not sizes
    trained("bf16", "resnet10_half")
    assert not sizes
    monkeypatch.setattr(fast, "LEAST_CHANNELS", 1000)
    assert quick == pytest.approx(trained("bf16"), rel=0.01) and not sizes


def test_lars_has_no_such_kernel_and_does_without():
    record = pretrain(moco(optimizer="lars"), noise(16), epochs=1, **CPU)
    assert losses(record)[0] > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory its own way")
def test_freed_memory_stays_with_the_process():
    """Page faults of a second allocation of the same size: few, where glibc alone has one for each page."""
    code = """
import resource, sys, torch
from ssl_lessons import devices
if sys.argv[1] == "on":
    devices.prepare(torch.device("cpu"))
torch.ones(1 << 24), torch.ones(1 << 24)  # once for the heap to grow
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True).stdout)
        for mode in ("on", "off")
    }
    assert 10 * faults["on"] < faults["off"], faults


def tiny(make, **fields):
    return make(networks.Conv4((4, 4, 8, 8)), image_size=16, recipe="short", batch_size=8, epochs=1, **fields)


MAKERS = [
    lambda: moco(),
    lambda: tiny(SimCLR),
    lambda: tiny(BYOL, head=(16, 8), predictor_hidden=16),
    lambda: tiny(SimSiam, head=(16, 16), predictor_hidden=8),
    lambda: tiny(Relational),
]


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("make", MAKERS)
def test_a_step_on_a_gpu_waits_for_nothing(make):
    """No part of a step may read a number back: the host must run ahead of the device."""
    device = torch.device("cuda")
    method = make().to(device, memory_format=torch.channels_last).train()
    store, optimizer = noise(32).to(device), build_optimizer(method)
    generator = torch.Generator().manual_seed(0)

    def step():
        seen = method.augment(store.batch(torch.arange(8), device), generator)
        with devices.autocast(device, "bf16"):
            loss, _ = method(seen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        method.after_step(0.5)

    step()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
