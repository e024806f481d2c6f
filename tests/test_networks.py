"""Encoders, tapping, heads, split BatchNorm and the moving average."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.testing import assert_close

from ssl_lessons import networks
from ssl_lessons.views import centre


class Branched(nn.Module):
    """A network with a nested layer, a layer that its forward pass skips, and one that returns a pair."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        self.deep = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(5, 7, 3, padding=1), nn.BatchNorm2d(7))})
        self.unused = nn.Linear(4, 4)
        self.pair = Pair()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        x, _ = self.pair(self.deep["a"](self.stem(x)))
        return self.head(self.dropout(x.mean(dim=(2, 3))))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def snapshot(network):
    """Every tensor and every mode of a network, to compare with later."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return state, [module.training for module in network.modules()]


def same(before, after):
    assert before[1] == after[1]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize(
    ("image_size", "stem", "small"), [(32, None, True), (33, None, False), (64, "small", True)]
)
def test_the_stem_follows_the_image_size_and_can_be_chosen(image_size, stem, small):
    network = networks.resnet18(image_size, stem)
    assert network.conv1.kernel_size == ((3, 3) if small else (7, 7))
    assert isinstance(network.maxpool, nn.Identity if small else nn.MaxPool2d)
    side = networks.tap(network, "layer1", image_size)
    seen = []
    network.layer1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    side(torch.randn(1, 3, 64, 64))
    assert seen == [64 if small else 16]  # the first block sees all of the side, or a quarter of it


def test_unknown_stem_and_network_name_the_known_ones():
    with pytest.raises(ValueError, match="'tiny' is not known; choose one of: imagenet, small"):
        networks.resnet18(32, "tiny")
    with pytest.raises(ValueError, match="'resnet19' is not known; choose one of: conv4, resnet10_half"):
        networks.build("resnet19", 64)
    with pytest.raises(
        ValueError, match="stem of a slim ResNet 'imagenet' is not known; choose one of: pool, str"
    ):
        networks.resnet10_half(32, "imagenet")


@pytest.mark.parametrize(
    ("name", "width"), [("conv4", 256), ("resnet10_half", 256), ("resnet18", 512), ("resnet50", 2048)]
)
def test_every_network_by_name_has_its_width(name, width):
    encoder = networks.tap(networks.build(name, 32), image_size=32)
    assert encoder.width == width
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, width)


def test_a_timm_backbone_by_name_gives_its_features_and_not_its_logits():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network, images = networks.build("timm/resnet18", 32), torch.randn(2, 3, 32, 32)
    encoder = networks.tap(network, image_size=32).eval()
    assert (encoder.layer, encoder.width) == ("global_pool", 512)
    maps = network.forward_features(images)
    assert_close(encoder(images), maps.mean(dim=(2, 3)))
    assert torch.equal(encoder(images), network(images))
    whole = timm.create_model("resnet18")  # with a classifier: its features all the same
    assert (networks.tap(whole, image_size=32).width, whole.fc.out_features) == (512, 1000)
    tagged = networks.build("timm/resnet18.a1_in1k", 32)  # the tag names weights, which are not loaded
    tagged.load_state_dict(network.state_dict(), strict=True)


def test_a_timm_transformer_is_made_for_the_size_of_the_views():
    pytest.importorskip("timm")
    network = networks.build("timm/vit_tiny_patch16_224", 48)
    assert networks.tap(network, image_size=48).width == 192
    assert network.pos_embed.shape == (1, 3 * 3 + 1, 192)


def test_an_unknown_timm_backbone_is_answered_with_near_names():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"'timm/resnet19' is not known; .*timm/resnet1.*, conv4, "):
        networks.build("timm/resnet19", 32)
    with pytest.raises(ValueError, match="'small' does not fit timm/resnet18.*leave it at None"):
        networks.build("timm/resnet18", 32, "small")
    for name in (*networks.NETWORKS, "timm/resnet50"):
        networks.check_name(name)


def test_a_slim_resnet_halves_the_side_once_in_its_stem_and_three_times_after():
    for stem in ("pool", "stride"):
        network, shapes = networks.resnet10_half(32, stem).eval(), []
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            stage.register_forward_hook(lambda *found, to=shapes: to.append(tuple(found[2].shape[1:])))
        network(torch.randn(2, 3, 32, 32))
        assert shapes == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
        assert networks.tap(network, image_size=32).width == 256
    again = networks.resnet10_half()  # weights load into a plain constructor
    again.load_state_dict(networks.resnet10_half().state_dict(), strict=True)


def test_a_slim_resnet_of_full_width_and_depth_is_resnet18_behind_its_stem():
    ours = networks.slim_resnet((2, 2, 2, 2), 64).state_dict()
    theirs = torchvision.models.resnet18().state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name].shape != theirs[name].shape] == ["conv1.weight"]
    spread = ours["layer3.0.conv1.weight"].std().item()
    assert spread == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.05)  # drawn as torchvision draws it


def test_counted_colours_are_numpys_histogram_and_pixels_are_pixels():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 9, 9), dtype=torch.uint8, generator=generator)
    views = centre(images, 9)
    found = networks.build("colours", 9)(views)
    for image, row in zip(images, found, strict=True):
        counts, _ = np.histogramdd(image.flatten(1).T.numpy(), bins=8, range=[(0, 256)] * 3)
        assert_close(row.square() * 81, torch.tensor(counts).flatten().float(), atol=1e-4, rtol=1e-5)
    assert torch.equal(networks.build("pixels", 9)(views), views.flatten(1))
    large = torch.randn(2, 3, 64, 64)  # above 48 pixels, as the means of 2 x 2
    means = large.unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean(dim=(3, 5))
    assert_close(networks.build("pixels", 64)(large), means.flatten(1))
    assert networks.tap(networks.build("colours", 9), image_size=9).width == 512


def test_resnets_are_torchvisions_own():
    ours, theirs = networks.resnet18(224).state_dict(), torchvision.models.resnet18().state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


def test_the_small_stem_is_drawn_as_torchvision_draws_the_other():
    weight = networks.resnet18(32).conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 3 * 3)) ** 0.5, rel=0.1)  # fan-out


def test_conv4_is_four_blocks_and_a_mean_over_positions():
    network = networks.Conv4(widths=(4, 8, 6, 5), channels=1).eval()
    images = torch.randn(2, 1, 48, 33)
    with torch.no_grad():
        assert network.blocks(images).shape == (2, 5, 3, 2)
        assert_close(network(images), network.blocks(images).mean(dim=(2, 3)))


# ------------------------------------------------------------------------------------------------- tapping


@pytest.mark.parametrize(
    ("layer", "name", "width"),
    [("stem", "stem", 5), ("stem.0", "stem.0", 5), ("deep.a", "deep.a", 7), (0, "stem", 5), (-1, "head", 2)],
)
def test_tap_by_name_by_index_and_nested(layer, name, width):
    network = Branched().eval()
    encoder = networks.tap(network, layer, image_size=8)
    assert (encoder.layer, encoder.width) == (name, width)
    seen = []
    network.get_submodule(name).register_forward_hook(lambda module, inputs, out: seen.append(out.clone()))
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        features = encoder(images)
        network(images)  # the same layer in the plain network
    expected = seen[-1].mean(dim=(2, 3)) if seen[-1].dim() == 4 else seen[-1]
    assert torch.equal(features, expected)


class MakesItsReLU(nn.Module):
    """As tutorials write it: a module made anew in each pass, which has no name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return nn.ReLU()(self.conv(x)).mean(dim=(2, 3))


def test_tap_of_a_network_that_makes_a_module_in_its_pass():
    assert networks.tap(MakesItsReLU(), image_size=16).width == 8
    assert networks.tap(MakesItsReLU(), "conv", image_size=16).width == 8


def test_tap_without_a_layer_takes_avgpool_or_the_output():
    assert networks.tap(torchvision.models.resnet18(), image_size=32).layer == "avgpool"
    whole = networks.tap(networks.Conv4((4, 4, 4, 6)), image_size=16)
    assert (whole.layer, whole.width) == (None, 6)


def test_tap_keeps_the_network_and_leaves_no_hook():
    network = Branched()
    encoder = networks.tap(network, "deep.a", image_size=8)
    encoder(torch.randn(2, 3, 8, 8)).sum().backward()
    assert encoder.network is network
    assert network.stem[0].weight.grad is not None and network.head.weight.grad is None
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("layer", ["deep.b", "", "avgpool"])
def test_an_unknown_layer_is_answered_with_the_names(layer):
    with pytest.raises(ValueError, match=r"stem, stem\.0, .*deep\.a, .*head") as error:
        networks.tap(Branched(), layer, image_size=8)
    assert repr(layer) in str(error.value)


@pytest.mark.parametrize("layer", [6, -7])
def test_an_index_out_of_range_is_answered_with_the_children(layer):
    with pytest.raises(ValueError, match=f"layer {layer} is out of range of the children stem, .*, head"):
        networks.tap(Branched(), layer, image_size=8)


def test_a_layer_that_is_not_used_or_returns_no_tensor_is_an_error_that_leaves_no_trace():
    network = Branched()
    before = snapshot(network)
    with pytest.raises(ValueError, match="'unused' took no part in the forward pass"):
        networks.tap(network, "unused", image_size=8)
    with pytest.raises(ValueError, match="returns a tuple; choose a layer that returns one tensor"):
        networks.tap(network, "pair", image_size=8)
    same(before, snapshot(network))
    assert not any(module._forward_hooks for module in network.modules())


def test_tap_moves_no_batchnorm_statistic_and_no_mode():
    network = Branched().train()
    network.stem[1].eval()  # a mixture must come back as a mixture
    before, generator = snapshot(network), torch.get_rng_state()
    networks.tap(network, "deep.a", image_size=8)
    same(before, snapshot(network))
    assert torch.equal(generator, torch.get_rng_state())


def test_tap_averages_a_vision_transformers_tokens():
    settings = dict(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16)
    network = torchvision.models.VisionTransformer(**settings).eval()
    encoder = networks.tap(network, "encoder.layers.encoder_layer_0", image_size=32)
    assert encoder.width == 12
    images = torch.randn(2, 3, 32, 32)
    tokens = []
    network.encoder.layers[0].register_forward_hook(lambda module, inputs, out: tokens.append(out))
    with torch.no_grad():
        network(images)
        assert tokens[0].shape == (2, 17, 12)  # 4 × 4 patches and the class token
        assert_close(encoder(images), tokens[0].mean(dim=1))
    assert networks.tap(network, image_size=32).width == 1000


def test_tap_reads_a_mobilenets_feature_map():
    encoder = networks.tap(torchvision.models.mobilenet_v3_small(), "features", image_size=32)
    assert encoder.width == networks.tap(encoder.network, 0, image_size=32).width == 576


def test_tap_of_a_tapped_network_and_of_one_without_parameters():
    encoder = networks.tap(torchvision.models.resnet18(), image_size=32)  # itself stops at avgpool
    assert networks.tap(encoder, "network.layer2", image_size=32).width == 128
    assert networks.tap(nn.Flatten(), image_size=8).width == 3 * 8 * 8


# --------------------------------------------------------------------------------------------------- heads


def test_mlp_is_linear_layers_with_relu_between():
    head = networks.mlp([6, 5, 4])
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
    x = torch.randn(3, 6)
    hidden = (x @ head[0].weight.T + head[0].bias).clamp_min(0)
    assert_close(head(x), hidden @ head[2].weight.T + head[2].bias)
    assert [type(layer) for layer in networks.mlp([6, 4])] == [nn.Linear]
    assert torch.equal(networks.mlp([6])(x), x)


def test_mlp_widths_of_none_are_the_inputs():
    sizes = [(m.in_features, m.out_features) for m in networks.mlp([6, None, 4]) if isinstance(m, nn.Linear)]
    assert sizes == [(6, 6), (6, 4)]


def test_mlp_normalises_where_asked_and_then_needs_no_bias():
    head = networks.mlp([6, 5, 4], batch_norm=True, last_batch_norm=True)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [type(layer) for layer in head] == kinds
    assert head[0].bias is None and head[3].bias is None
    assert networks.mlp([6, 5, 4], batch_norm=True)[3].bias is not None


# ----------------------------------------------------------------------------------------- split BatchNorm


@pytest.mark.parametrize(("batch", "splits"), [(8, 4), (8, 1), (9, 4), (7, 3), (10, 4)])
def test_split_batchnorm_is_batchnorm_of_each_part(batch, splits):
    layer = networks.split_batchnorm(nn.BatchNorm2d(3), splits)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    x = (torch.randn(batch, 3, 4, 4) * 2 + 1).requires_grad_()
    y = x.detach().clone().requires_grad_()
    parts, means, variances = [], [], []
    for part in y.tensor_split(splits):
        alone = nn.BatchNorm2d(3)
        alone.load_state_dict(
            {**alone.state_dict(), "weight": layer.weight.detach(), "bias": layer.bias.detach()}
        )
        parts.append(alone(part))
        means.append(alone.running_mean)
        variances.append(alone.running_var)
    assert len(parts) == splits and min(map(len, parts)) >= 2
    out, pull = layer(x), torch.randn(batch, 3, 4, 4)
    assert_close(out, torch.cat(parts))
    (out * pull).sum().backward(), (torch.cat(parts) * pull).sum().backward()
    assert_close(x.grad, y.grad)
    assert_close(layer.running_mean, torch.stack(means).mean(dim=0))
    assert_close(layer.running_var, torch.stack(variances).mean(dim=0))
    assert layer.num_batches_tracked == 1


def test_split_batchnorm_in_eval_mode_is_batchnorm():
    plain = nn.BatchNorm2d(3)
    plain(torch.randn(16, 3, 4, 4) * 3 + 1)
    split = networks.split_batchnorm(copy.deepcopy(plain), 4).eval()
    before, x = snapshot(split), torch.randn(5, 3, 4, 4)  # 5: too few for four parts, and no matter here
    assert torch.equal(split(x), plain.eval()(x))
    same(before, snapshot(split))


def test_split_batchnorm_follows_batchnorms_other_settings():
    x = torch.randn(8, 3, 4, 4)
    stateless = networks.split_batchnorm(nn.BatchNorm2d(3, track_running_stats=False), 2)
    expected = [F.batch_norm(part, None, None, training=True) for part in x.chunk(2)]
    assert_close(stateless(x), torch.cat(expected))
    averaged = networks.split_batchnorm(nn.BatchNorm2d(3, momentum=None), 2)
    averaged(x), averaged(3 * x)
    assert_close(averaged.running_mean, 2 * x.mean(dim=(0, 2, 3)))


def test_split_batchnorm_refuses_a_batch_too_small_with_a_way_out():
    layer = networks.split_batchnorm(nn.BatchNorm2d(3), 4)
    with pytest.raises(ValueError, match="batch of 7 is too small for 4 splits, of 2"):
        layer(torch.randn(7, 3, 4, 4))


def test_split_batchnorm_reaches_every_layer_and_keeps_the_state_dict():
    plain = torchvision.models.resnet18()
    split = networks.split_batchnorm(copy.deepcopy(plain), 2)
    layers = [module for module in split.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(layers) == 20 and all(module.splits == 2 for module in layers)
    split(torch.randn(4, 3, 32, 32))
    assert split.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(split.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(x), split.eval()(x))


# ---------------------------------------------------------------------------------------- moving averages


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 0.999, 1.0])
def test_ema_agrees_with_its_closed_form(momentum):
    online, target = (nn.Linear(4, 3).double() for _ in range(2))
    start, steps, history = target.weight.detach().clone(), 25, []
    for _ in range(steps):
        with torch.no_grad():
            online.weight.normal_()
        history.append(online.weight.detach().clone())
        networks.ema_update(target, online, momentum)
    # θ_n = mⁿ θ_0 + (1 − m) Σᵢ m^(n−1−i) w_i
    expected = momentum**steps * start
    for i, weight in enumerate(history):
        expected = expected + (1 - momentum) * momentum ** (steps - 1 - i) * weight
    assert_close(target.weight.detach(), expected, rtol=1e-10, atol=1e-12)


def test_ema_leaves_batchnorm_buffers_and_the_online_network_alone():
    online = networks.Conv4((4, 4, 4, 4))
    target = networks.momentum_copy(online)
    online(torch.randn(4, 3, 16, 16) + 2)  # its statistics move
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1)
    kept, own = snapshot(online), {name: b.clone() for name, b in target.named_buffers()}
    networks.ema_update(target, online, 0.5)
    same(kept, snapshot(online))
    assert all(torch.equal(b, own[name]) for name, b in target.named_buffers())
    assert not torch.equal(target.blocks[0][1].running_mean, online.blocks[0][1].running_mean)
    for ours, theirs in zip(target.parameters(), online.parameters(), strict=True):
        assert_close(ours, theirs - 0.5)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_ema_refuses_a_momentum_outside_its_range(momentum):
    with pytest.raises(ValueError, match=r"is not in \[0, 1\]"):
        networks.ema_update(nn.Linear(1, 1), nn.Linear(1, 1), momentum)


def test_a_momentum_copy_is_equal_apart_and_without_gradients():
    network = networks.Conv4((4, 4, 4, 4))
    twin = networks.momentum_copy(network)
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
