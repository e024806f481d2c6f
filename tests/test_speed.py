"""What makes a step fast is switched on and changes no result. No seconds are asserted."""

import platform
import subprocess
import sys

import pytest
import torch
from tiny import CPU, losses, moco, noise

from ssl_lessons import devices, networks
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
