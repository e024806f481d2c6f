"""networks.normalise_by: BatchNorm left in, replaced by groups and standardised weights, or taken out.

`check_independent` is called with both, where it must hold, and with BatchNorm, where it must not.
"""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from ssl_lessons import networks
from ssl_lessons.networks import Conv4, mlp, normalise_by

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORKS = {
    "conv4": lambda: Conv4((16, 32, 48, 24)),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "mobilenet": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "head": lambda: mlp([20, 96, 96, 12], batch_norm=True, last_batch_norm=True, last_affine=False),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def made(name, kind, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    assert normalise_by(network, kind) is network
    return network.train()


def inputs(name, count=5, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *((20,) if name == "head" else (3, 32, 32)), generator=generator)


def norms(network, kind=_BatchNorm) -> list[nn.Module]:
    return [part for part in network.modules() if isinstance(part, kind)]


def check_independent(network, name):
    """In train mode, what comes out for an image is the same in whatever company it is."""
    images, others = inputs(name), inputs(name, seed=1) + 2
    with torch.no_grad():
        alone = network(images)[2]
        accompanied = network(torch.cat([others[:4], images[2:3]]))[4]
    assert_close(accompanied, alone, rtol=1e-3, atol=1e-4)


@every_network
@pytest.mark.parametrize("kind", ["group", "none"])
def test_no_batchnorm_is_left_and_images_are_independent(name, kind):
    network = made(name, kind)
    assert norms(made(name, "batch")) and not norms(network)
    check_independent(network, name)
    assert all(b.numel() == 0 for b in network.buffers())  # no running statistics either
    with torch.no_grad():
        outputs = network(inputs(name))
    assert outputs.isfinite().all()
    assert kind == "none" or outputs.std(dim=0).mean() > 1e-3  # images can still be told apart


@every_network
def test_with_batchnorm_they_are_not_independent(name):
    with pytest.raises(AssertionError):
        check_independent(made(name, "batch"), name)


@every_network
def test_batch_leaves_a_network_as_it_is(name):
    torch.manual_seed(0)
    plain = NETWORKS[name]()
    changed = normalise_by(copy.deepcopy(plain), "batch")
    assert [type(part) for part in changed.modules()] == [type(part) for part in plain.modules()]
    for mine, other in zip(changed.state_dict().items(), plain.state_dict().items(), strict=True):
        assert mine[0] == other[0] and torch.equal(mine[1], other[1])


@every_network
@pytest.mark.parametrize("kind", ["group", "none"])
def test_convolutions_and_linear_layers_keep_their_names_and_weights(name, kind):
    batch, other = made(name, "batch"), made(name, kind)

    def weights(network):
        kinds = (nn.Conv2d, nn.Linear)
        parts = [(place, part) for place, part in network.named_modules() if isinstance(part, kinds)]
        return {f"{place}.{key}": value for place, part in parts for key, value in part.state_dict().items()}

    before, after = weights(batch), weights(other)
    assert before.keys() == after.keys() and before
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert after.keys() <= other.state_dict().keys()


@every_network
def test_group_normalisation_has_16_groups_or_the_most_that_fit(name):
    before, after = made(name, "batch"), made(name, "group")
    for place, part in before.named_modules():
        if isinstance(part, _BatchNorm):
            group = after.get_submodule(place)
            assert type(group) is nn.GroupNorm and group.num_channels == part.num_features
            least = 4 if isinstance(part, nn.BatchNorm1d) else 1  # numbers in a group of a vector
            fitting = [
                n for n in (2, 4, 8, 16) if part.num_features % n == 0 <= part.num_features - n * least
            ]
            fitting.append(1)
            assert group.num_groups == max(fitting)


@every_network
def test_standardised_weights_have_mean_0_and_variance_1_over_fan_in(name):
    """Read from what the layers do: with unit inputs, each kernel's answer is one of its weights."""
    network = made(name, "group")
    layers = norms(network, (nn.Conv2d, nn.Linear))
    assert layers
    for layer in layers:
        with torch.no_grad():
            layer.weight.mul_(10).add_(0.5)  # however the weights drift
            fan_in = layer.weight[0].numel()
            if fan_in > 300:
                continue  # the same code; unit inputs would be many
            plain = copy.deepcopy(layer)
            plain.bias = None
            units = torch.eye(fan_in)
            if isinstance(layer, nn.Conv2d):
                plain.padding, plain.stride = (0, 0), (1, 1)
                units = units.view(fan_in, *layer.weight.shape[1:]).repeat(1, layer.groups, 1, 1)
            used = plain(units).flatten(1).T  # (out, fan_in)
        assert used.shape == (len(layer.weight), fan_in)
        assert_close(used.mean(dim=1), torch.zeros(len(used)), rtol=0, atol=1e-5)
        variance = used.var(dim=1, unbiased=False)
        assert_close(variance * fan_in, torch.ones(len(used)), rtol=0.02, atol=0)  # a little under: epsilon
        kernel = layer.weight.detach().flatten(1).double()  # and the formula, in float64
        centred = kernel - kernel.mean(dim=1, keepdim=True)
        expected = centred / (kernel.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt() / fan_in**0.5
        assert_close(used.double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("hidden", [16, 8])
def test_a_narrow_head_still_tells_images_apart(hidden):
    head = normalise_by(mlp([20, hidden, 4], batch_norm=True), "group")
    with torch.no_grad():
        assert head(inputs("head")).std(dim=0).mean() > 1e-3


def test_neither_the_mean_nor_the_scale_of_a_kernel_matters_any_more():
    network = made("conv4", "group")
    images = inputs("conv4")
    with torch.no_grad():
        before = network(images)
        for layer in norms(network, nn.Conv2d):
            layer.weight.mul_(5).add_(1)
        assert_close(network(images), before, rtol=1e-2, atol=1e-3)


def test_gradients_pass_through_the_standardisation():
    layer = normalise_by(nn.Sequential(nn.Linear(6, 4)), "group")[0].double()
    x = torch.randn(3, 6, dtype=torch.float64)

    def answer(weight):
        return torch.func.functional_call(layer, {"weight": weight}, x)

    assert torch.autograd.gradcheck(answer, layer.weight.detach().requires_grad_())


@pytest.mark.parametrize("kind", ["group", "none"])
def test_a_network_learns_under_either(kind):
    network = made("conv4", kind)
    images = inputs("conv4", count=8)
    target = torch.randn(8, 24, generator=torch.Generator().manual_seed(2)).sign() * 0.1
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = (network(images) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_an_unknown_kind_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'layer' is not known; choose one of: batch, group, none"):
        normalise_by(networks.conv4(), "layer")
