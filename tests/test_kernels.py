"""Our kernels for a CPU: PyTorch's own are the oracle, for values and for every gradient."""

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU as TINY
from tiny import noise
from torch import nn
from torch.utils.checkpoint import checkpoint

from ssl_lessons import devices, kernels, networks
from ssl_lessons.kernels import Kernels, small_conv2d
from ssl_lessons.methods.simclr import SimCLR
from ssl_lessons.training import pretrain

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
    """The calls that `Kernels` answered by itself."""
    calls = []

    def counted(*args):
        calls.append(args)
        return small_conv2d(*args)

    monkeypatch.setattr(kernels, "small_conv2d", counted)
    return calls


def test_a_resnet_of_torchvision_computes_the_same_and_is_left_as_it_was(taken):
    network = networks.build("resnet18", 64, "imagenet").to(memory_format=torch.channels_last).train()
    images = torch.randn(128, 3, 64, 64).to(memory_format=torch.channels_last)
    plain = network(images)
    before = [set(vars(module)) for module in network.modules()]
    with Kernels(network):
        found = network(images)
    assert [set(vars(module)) for module in network.modules()] == before
    assert len(taken) == 5  # the last stage: four 3 x 3 convolutions and the 1 x 1 beside the first
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_a_resnet_of_torchvision_has_the_same_gradients(taken, monkeypatch):
    # In float64: a ReLU near zero that rounding puts on its other side moves a float32 gradient by 0.1 %.
    monkeypatch.setitem(kernels.MOST_PIXELS, torch.float64, 4)
    monkeypatch.setitem(kernels.LEAST_BATCH, torch.float64, 1)
    network = networks.build("resnet18", 64, "imagenet").double().train()
    images = torch.randn(16, 3, 64, 64, dtype=torch.float64)
    parameters = list(network.parameters())
    plain = torch.autograd.grad(network(images).square().sum(), parameters, allow_unused=True)
    with Kernels(network):
        found = torch.autograd.grad(network(images).square().sum(), parameters, allow_unused=True)
    assert len(taken) == 5
    for one, two in zip(found, plain, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert (one - two).norm() <= 1e-8 * two.norm()


def test_the_layers_are_given_back_after_an_error():
    layer = nn.Conv2d(128, 128, 3, padding=1)
    with pytest.raises(ZeroDivisionError), Kernels(layer):
        assert "forward" in vars(layer)
        raise ZeroDivisionError
    assert "forward" not in vars(layer)


def layer(width=128, out=128, kernel=3, **settings):
    torch.manual_seed(0)
    return nn.Conv2d(width, out, kernel, **{"padding": 1, **settings})


def test_under_autocast_it_has_the_same_dtype_and_about_the_same_values(taken):
    module, x = layer(), torch.randn(8, 128, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        expected = module(x)
        with Kernels(module):
            found = module(x)
    assert len(taken) == 1 and found.dtype == expected.dtype == torch.bfloat16
    exact = module(x)
    assert (found - exact).norm() <= 1.2 * (expected - exact).norm()  # no less exact than PyTorch's
    for gradient in gradients(found, tuple(module.parameters())):
        assert gradient.dtype == torch.float32


class Halved(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / 2, bias)


LEFT = {
    "large": (layer(), (128, 128, 4, 4)),
    "few images": (layer(), (127, 128, 2, 2)),
    "narrow": (layer(127), (128, 127, 2, 2)),
    "groups": (layer(groups=128), (128, 128, 2, 2)),
    "dilation": (layer(padding=2, dilation=2), (128, 128, 2, 2)),
    "same": (layer(padding="same"), (128, 128, 2, 2)),
    "circular": (layer(stride=2, padding_mode="circular"), (128, 128, 2, 2)),
    "float64": (layer().double(), (128, 128, 2, 2)),
    "no batch": (layer(), (128, 2, 2)),
    "no image": (layer(), (0, 128, 2, 2)),
    "all padding": (layer(kernel=1), (128, 128, 1, 1)),  # output pixels that see nothing else
    "nothing saved": (layer(kernel=1, padding=0), (128, 128, 2, 2)),
    "its own way": (Halved(128, 128, 3, padding=1), (128, 128, 2, 2)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_it_does_not_do_is_left_to_pytorch_to_the_bit(taken, name):
    module, shape = LEFT[name]
    images = torch.randn(shape, dtype=module.weight.dtype)
    expected = module(images)
    with Kernels(module):
        found = module(images)
    assert not taken and torch.equal(found, expected)


def test_a_forward_that_somebody_has_replaced_stays(taken):
    module = layer()
    module.forward = lambda images: images + 1
    with Kernels(module):
        assert torch.equal(module(torch.zeros(128, 128, 2, 2)), torch.ones(128, 128, 2, 2))
    assert "forward" in vars(module) and not taken


WRONG = {
    "kernel": (layer(padding=0), (128, 128, 2, 2), torch.float32),
    "channels": (layer(), (128, 100, 2, 2), torch.float32),
    "dtype": (layer(), (128, 128, 2, 2), torch.bfloat16),
    "double": (layer(), (128, 128, 2, 2), torch.float64),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_gets_pytorchs_own_error(taken, name):
    module, shape, dtype = WRONG[name]
    images = torch.zeros(shape, dtype=dtype)
    with pytest.raises(RuntimeError) as expected:
        module(images)
    with Kernels(module), pytest.raises(RuntimeError) as found:
        module(images)
    assert str(found.value) == str(expected.value) and not taken


def test_under_autocast_a_float64_input_is_left_to_pytorch(taken):
    module, images = layer().double(), torch.randn(128, 128, 2, 2).double()
    with torch.autocast("cpu", torch.bfloat16), Kernels(module):
        assert module(images).dtype == torch.float64 and not taken


def test_padding_that_reaches_the_kernels_side_is_refused():
    x, weight, bias = tensors(kernel=(1, 3))
    with pytest.raises(ValueError, match=r"padding \(1, 1\) reaches the sides \(1, 3\) of the kernel"):
        small_conv2d(x, weight, bias, (1, 1), (1, 1))


class Checkpointed(nn.Module):
    """Forgets its activations, and computes them again during the backward pass."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 128, 4, 4), nn.ReLU())
        self.last = nn.Sequential(layer(stride=2), nn.Flatten())

    def forward(self, images):
        return checkpoint(self.last, self.stem(images), use_reentrant=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_that_computes_its_activations_again_trains(taken, precision):
    method = SimCLR(Checkpointed(), image_size=16, recipe="lesson")
    pretrain(method, noise(128), epochs=1, batch_size=64, **{**TINY, "precision": precision})
    assert len(taken) >= 2 * 2  # steps, of both views at once: forward, and again in the backward pass
    assert all("forward" not in vars(module) for module in method.modules())


def products_are(monkeypatch, slow):
    monkeypatch.setattr(kernels, "products_are_slow", lambda: slow)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out", [5, 140, 200])  # fewer than images, as many, more: the larger is the map
def test_a_linear_layer_is_the_same_as_a_convolution(monkeypatch, out, bias):
    products_are(monkeypatch, slow=True)
    module, x = nn.Linear(12, out, bias=bias), torch.randn(140, 12, requires_grad=True)
    inputs, expected = (x, *module.parameters()), module(x)
    with Kernels(module):
        found = module(x)
        turned = module(x.T.contiguous().T)  # memory in another order
    assert type(found.grad_fn) is not type(expected.grad_fn) and found.is_contiguous()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(turned, expected)
    for one, two in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("slow", [True, False])
def test_other_linear_layers_are_left_to_pytorch(monkeypatch, slow):
    products_are(monkeypatch, slow)
    monkeypatch.setattr(kernels, "product", lambda *_: pytest.fail("taken"))
    module = nn.Linear(12, 5)
    with Kernels(module):
        for shape in ((12,), (128, 3, 12), (0, 12), (127, 12)) if slow else ((12,), (128, 12)):
            assert module(torch.randn(shape)).shape == (*shape[:-1], 5)
        with torch.autocast("cpu", torch.bfloat16):
            assert module(torch.randn(128, 12)).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            module(torch.randn(128, 11))
        assert module.double()(torch.randn(128, 12).double()).dtype == torch.float64


def test_training_computes_so_on_a_cpu_and_judging_does_not(taken):
    module, images = layer(), torch.randn(128, 128, 2, 2)
    with devices.passes(CPU, "fp32", module):
        module(images)
    assert len(taken) == 1
    with devices.autocast(CPU, "fp32"):
        module(images)
    assert len(taken) == 1
