"""Convolution on maps of a few pixels: PyTorch's own is the oracle, for values and for every gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_lessons import devices, networks, small_maps
from ssl_lessons.small_maps import SmallMaps, small_conv2d

CPU = torch.device("cpu")


def tensors(batch=3, width=5, out=4, size=(2, 2), kernel=(3, 3), dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, width, *size), (out, width, *kernel), (out,)]
    made = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    return made if bias else [*made[:2], None]


def gradients(output, inputs):
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
    return torch.autograd.grad(output, [each for each in inputs if each is not None], weights)


CASES = [  # input size, kernel, stride, padding
    ((1, 1), (3, 3), (1, 1), (1, 1)),  # ResNet's last stage, views of 32 pixels
    ((2, 2), (3, 3), (1, 1), (1, 1)),  # … of 64
    ((2, 2), (3, 3), (2, 2), (1, 1)),
    ((4, 4), (3, 3), (2, 2), (1, 1)),
    ((4, 4), (1, 1), (2, 2), (0, 0)),
    ((3, 3), (3, 3), (1, 1), (1, 1)),
    ((3, 3), (3, 3), (2, 2), (1, 1)),
    ((4, 4), (3, 3), (1, 1), (0, 0)),
    ((1, 4), (3, 5), (1, 2), (1, 2)),  # sides, kernels, strides and borders that differ
    ((5, 2), (2, 3), (3, 1), (0, 1)),
    ((2, 2), (5, 5), (1, 1), (2, 2)),  # more taps than pixels
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_it_is_conv2d(size, kernel, stride, padding, dtype, bias):
    inputs = tensors(size=size, kernel=kernel, dtype=dtype, bias=bias)
    expected = F.conv2d(*inputs, stride=stride, padding=padding)
    found = small_conv2d(*inputs, stride, padding)
    assert found.shape == expected.shape and found.dtype == dtype
    exact = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, expected, **exact)
    for one, two in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, two, **exact)


def test_memory_stays_channels_last():
    x, weight, bias = tensors()
    x, weight = (each.detach().to(memory_format=torch.channels_last) for each in (x, weight))
    found = small_conv2d(x, weight, bias, (1, 1), (1, 1))
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def taken(monkeypatch):
    """The calls that `SmallMaps` answered by itself."""
    calls = []

    def counted(*args):
        calls.append(args)
        return small_conv2d(*args)

    monkeypatch.setattr(small_maps, "small_conv2d", counted)
    return calls


def test_a_resnet_of_torchvision_computes_the_same_and_is_not_touched(taken):
    network = networks.build("resnet18", 64, "imagenet").to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    plain = network.train()(images)
    expected = torch.autograd.grad(plain.square().sum(), list(network.parameters()), allow_unused=True)
    forwards = [module.forward for module in network.modules()]
    with SmallMaps():
        found = network(images)
    assert [module.forward for module in network.modules()] == forwards
    # the last stage: four 3 x 3 convolutions and the 1 x 1 beside the first
    assert len(taken) == 5
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    got = torch.autograd.grad(found.square().sum(), list(network.parameters()), allow_unused=True)
    for one, two in zip(got, expected, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert (one - two).norm() <= 1e-3 * two.norm() + 1e-6


def test_under_autocast_it_has_the_same_dtype_and_about_the_same_values(taken):
    x, weight, bias = tensors(batch=8, width=64, out=64)
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.conv2d(x, weight, bias, padding=1)
        with SmallMaps():
            found = F.conv2d(x, weight, bias, padding=1)
    assert len(taken) == 1 and found.dtype == expected.dtype == torch.bfloat16
    exact = F.conv2d(x, weight, bias, padding=1)
    assert (found - exact).norm() <= 1.2 * (expected - exact).norm()  # no less exact than PyTorch's
    for grad, parameter in zip(gradients(found, (x, weight, bias)), (x, weight, bias), strict=True):
        assert grad.dtype == parameter.dtype == torch.float32


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(64, 64, 3, padding=1), (2, 64, 4, 4)),  # 16 pixels
        (nn.Conv2d(63, 64, 3, padding=1), (2, 63, 2, 2)),
        (nn.Conv2d(64, 64, 3, padding=1, groups=64), (2, 64, 2, 2)),
        (nn.Conv2d(64, 64, 3, padding=2, dilation=2), (2, 64, 2, 2)),
        (nn.Conv2d(64, 64, 3, padding="same"), (2, 64, 2, 2)),
        (nn.Conv2d(64, 64, 3, padding=1).double(), (2, 64, 2, 2)),
        (nn.Conv2d(64, 64, 3, padding=1), (64, 2, 2)),  # one image without a batch
        (nn.Conv2d(64, 64, 1, padding=1), (2, 64, 1, 1)),  # output pixels that see nothing but padding
    ],
    ids=["large", "narrow", "groups", "dilation", "same", "float64", "no batch", "all padding"],
)
def test_what_it_does_not_do_is_left_to_pytorch_to_the_bit(taken, module, shape):
    images = torch.randn(shape, dtype=module.weight.dtype)
    expected = module(images)
    with SmallMaps():
        found = module(images)
    assert not taken and torch.equal(found, expected)


def test_borders_that_are_not_zeros_are_kept(taken):
    module = nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular")
    images = torch.randn(2, 64, 2, 2)
    with SmallMaps():
        found = module(images)
    assert len(taken) == 1
    torch.testing.assert_close(found, module(images))


def test_pytorchs_own_error_is_what_a_wrong_call_gets():
    with SmallMaps(), pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        nn.Conv2d(64, 64, 3)(torch.randn(2, 64, 2, 2))


def test_training_computes_so_on_a_cpu_and_judging_does_not(taken):
    convolve = nn.Conv2d(64, 64, 3, padding=1)
    images = torch.randn(2, 64, 2, 2)
    with devices.passes(CPU, "fp32"):
        convolve(images)
    assert len(taken) == 1
    with devices.autocast(CPU, "fp32"):
        convolve(images)
    assert len(taken) == 1
