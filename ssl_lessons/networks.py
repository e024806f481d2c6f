"""Encoders f(·), heads g(·), batch normalisation that cannot leak, and the moving average of a network.

Every architecture here is torchvision's own (or forty lines of convolutions), so the weights that a run
saves load into the plain network with `strict=True`.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ssl_lessons.views import unnormalise

STEMS = ("imagenet", "small")


class Pixels(nn.Module):
    """No network at all: the pixels of a view themselves, float (B, 3, H, W) -> (B, 3·H·W)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Colours(nn.Module):
    """Counted colours, lesson 00's ruler: the root of the share of pixels in each of 8 x 8 x 8 boxes of RGB.

    Normalised float (B, 3, H, W) -> float32 (B, 512). The root makes many pixels of one colour count less.
    """

    levels = 8

    def forward(self, images: Tensor) -> Tensor:
        values = (unnormalise(images.float()) * 255).round().long()  # 0 … 255
        level = values * self.levels // 256  # 0 … 7
        box = (level[:, 0] * self.levels + level[:, 1]) * self.levels + level[:, 2]  # (B, H, W)
        box = box.flatten(1)
        counts = torch.zeros(len(box), self.levels**3, device=box.device)
        counts.scatter_add_(1, box, torch.ones(box.shape, device=box.device))
        return (counts / box.shape[1]).sqrt()


class Conv4(nn.Module):
    """Four blocks of 3×3 convolution, BatchNorm, ReLU and 2×2 pooling: an encoder for seconds, not minutes.

    The shape of "Conv-4" in the few-shot and relational-reasoning literature. Input float (B, 3, H, W) with
    H, W ≥ 16; output (B, widths[-1]), the spatial mean of the last block.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), channels: int = 3):
        super().__init__()
        blocks = []
        for out in widths:
            conv = nn.Conv2d(channels, out, 3, padding=1, bias=False)
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.MaxPool2d(2)))
            channels = out
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images).mean(dim=(2, 3))  # (B, 3, H, W) -> (B, D)


def conv4(image_size: int = 48, stem: str | None = None) -> Conv4:
    """The small `Conv4`; `image_size` and `stem` are ignored, and there so that it can stand for a ResNet."""
    return Conv4()


def _resnet(constructor, image_size: int, stem: str | None) -> nn.Module:
    stem = stem or ("small" if image_size <= 32 else "imagenet")
    if stem not in STEMS:
        raise ValueError(f"stem {stem!r} is not known; choose one of: {', '.join(STEMS)}")
    network = constructor(weights=None)
    if stem == "small":  # SimCLR appendix B.9 (CIFAR-10): 3×3 convolution of stride 1 and no pooling
        network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision
        network.maxpool = nn.Identity()
    return network


def resnet18(image_size: int = 224, stem: str | None = None) -> nn.Module:
    """torchvision's ResNet-18, randomly initialised, 512 features at `avgpool`.

    `stem` is "imagenet" (7×7 stride 2, pooling: the first block sees a quarter of the side) or "small"
    (3×3 stride 1, no pooling: SimCLR appendix B.9). Without it, views of 32 pixels or less get "small".
    The small stem costs about 16 times the arithmetic of the other on the same image.
    """
    return _resnet(torchvision.models.resnet18, image_size, stem)


def resnet50(image_size: int = 224, stem: str | None = None) -> nn.Module:
    """torchvision's ResNet-50, 2,048 features at `avgpool`; stems as in `resnet18`."""
    return _resnet(torchvision.models.resnet50, image_size, stem)


def slim_resnet(blocks: Sequence[int] = (1, 1, 1, 1), width: int = 32, stem: str = "pool") -> nn.Module:
    """A narrow ResNet for views of 32 to 64 pixels, made of torchvision's blocks; 8 · `width` features.

    `blocks` in each of the four stages ((2, 2, 2, 2) is ResNet-18's depth, ones are ResNet-10's), whose
    channels are 1, 2, 4 and 8 times `width` (64 in the published networks). Its stem is a 3×3 convolution
    and halves the side once: with stride 1 and 2×2 pooling ("pool") or by its stride ("stride"). ImageNet's
    divides the side by four, so that a view of 32 pixels ends in maps of one pixel.
    """
    if stem not in ("pool", "stride"):
        raise ValueError(f"stem {stem!r} is not known to a slim ResNet; choose one of: pool, stride")
    network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, list(blocks))
    network.conv1 = nn.Conv2d(3, width, 3, stride=1 if stem == "pool" else 2, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    network.maxpool = nn.MaxPool2d(2) if stem == "pool" else nn.Identity()
    network.inplanes = width  # what torchvision's own method for a stage starts from
    for i, count in enumerate(blocks):
        stage = network._make_layer(torchvision.models.resnet.BasicBlock, width * 2**i, count, 1 + (i > 0))
        setattr(network, f"layer{i + 1}", stage)
    network.fc = nn.Linear(network.inplanes, 1000)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # as torchvision
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet10_half(image_size: int = 32, stem: str | None = None) -> nn.Module:
    """The network for runs of minutes: `slim_resnet()`, 1.2 million weights, 256 features.

    Of ten networks with about as much time on two CPU cores none learnt clearly more (data/results/TRIALS.md,
    "net"), and ResNet-18's depth learnt less. `image_size` is ignored, and there so that it can stand for a
    ResNet; `stem` is "pool" (None) or "stride".
    """
    return slim_resnet(stem=stem or "pool")


NETWORKS = {"conv4": conv4, "resnet10_half": resnet10_half, "resnet18": resnet18, "resnet50": resnet50}
RULERS = {"pixels": Pixels, "colours": Colours}  # what no network has to learn: a method must beat them


def build(name: str, image_size: int, stem: str | None = None) -> nn.Module:
    """A freshly initialised network by name, for square views of `image_size` pixels."""
    if name in RULERS:
        return RULERS[name]()
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is not known; choose one of: {', '.join(NETWORKS)}")
    return NETWORKS[name](image_size, stem)


class _Reached(Exception):
    """Raised inside a forward pass once the tapped layer has answered: what lies behind it need not run.

    Carries the encoder that asked, so that an encoder around another encoder catches only its own.
    """


class Encoder(nn.Module):
    """A network read out at one of its layers: float (B, C, H, W) → (B, width). Made by `tap`.

    `network` is the very module that was passed in; training the encoder trains it. A feature map
    (B, D, h, w) is averaged over its positions, a token sequence (B, T, D) over its tokens. (A feature map
    with its channels last, as inside a Swin transformer, cannot be told apart: tap behind its permutation.)
    A layer that runs more than once in a pass is read at its first run.
    """

    def __init__(self, network: nn.Module, layer: str | None):
        super().__init__()
        self.network = network
        self.layer = layer
        self.width, self.channels = 0, 3  # of the features; of the images

    def forward(self, images: Tensor) -> Tensor:
        if self.layer is None:
            return flat(self.network(images))
        caught: list[Tensor] = []

        def catch(module, inputs, output):
            caught.append(output)
            raise _Reached(self)

        # The hook lives for one pass only: the user's network is theirs, and copies of it carry no hook.
        handle = self.network.get_submodule(self.layer).register_forward_hook(catch)
        try:
            self.network(images)
        except _Reached as reached:
            if reached.args[0] is not self:
                raise
        finally:
            handle.remove()
        if not caught:
            raise ValueError(f"layer {self.layer!r} took no part in the forward pass; choose another layer")
        return flat(caught[0])


@contextmanager
def at_rest(module: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """The module in eval mode, on a device if one is given; afterwards where and as it was, part by part."""
    was_training = [part for part in module.modules() if part.training]
    home = next(module.parameters(), torch.empty(0)).device
    if device is not None:
        module.to(device)
    module.eval()
    try:
        yield
    finally:
        if device is not None:
            module.to(home)
        for part in was_training:
            part.training = True


def flat(output: Tensor) -> Tensor:
    """A layer's output as features (B, D): the mean over positions (B, D, h, w) or tokens (B, T, D)."""
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise ValueError(f"the tapped layer returns a {kind}; choose a layer that returns one tensor")
    if output.dim() == 4:
        return output.mean(dim=(2, 3))  # (B, D, h, w) -> (B, D)
    if output.dim() == 3:
        return output.mean(dim=1)  # (B, T, D) -> (B, D)
    return output.flatten(1)


def tap(
    network: nn.Module, layer: str | int | None = None, image_size: int = 64, channels: int = 3
) -> Encoder:
    """Turn any network into an encoder at one of its layers, and find how wide its output is.

    Args:
        network: any `nn.Module` that takes float (B, channels, image_size, image_size). Not copied.
        layer: a module's name as in `network.named_modules()` ("avgpool", "encoder.layers.3"), or an index
            into the network's direct children (-2 is the last but one). None: "avgpool" where the network
            has one before an `fc` (torchvision's ResNets), else the network's own output.
    Returns:
        An `Encoder`; `.width` is its number of features D.
    Raises:
        ValueError: no such layer (the message lists the names that exist), or one that is not used.
    """
    names = [name for name, _ in network.named_modules() if name]
    if isinstance(layer, int):
        children = [name for name, _ in network.named_children()]
        if not -len(children) <= layer < len(children):
            known = ", ".join(f"{i} {name}" for i, name in enumerate(children))
            raise ValueError(
                f"layer {layer} is out of range; the network's {len(children)} children: {known}"
            )
        layer = children[layer]
    elif layer is None and "avgpool" in names and "fc" in names:
        layer = "avgpool"
    elif layer is not None and layer not in names:
        raise ValueError(f"layer {layer!r} is not in the network; choose one of: {', '.join(names)}")
    encoder = Encoder(network, layer)
    parameter = next(network.parameters(), torch.empty(0))  # none: raw pixels as features, say
    example = torch.zeros(1, channels, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    with at_rest(network), torch.no_grad():  # in train mode this pass would move the BatchNorm statistics
        encoder.width, encoder.channels = encoder(example).shape[1], channels
    return encoder


def mlp(
    widths: Sequence[int | None],
    batch_norm: bool = False,
    last_batch_norm: bool = False,
    last_affine: bool = True,
) -> nn.Sequential:
    """A projection head g(·): linear layers of the given `widths` with ReLU between them.

    `mlp([512, 512, 128])` is MoCo v2's and SimCLR v1's head; `mlp([512, 128])` MoCo v1's single layer. A
    width None is that of the input: `mlp([d, None, 128])` is d–d–128. One width alone is no head at all.
    With `batch_norm` each hidden layer is normalised before its ReLU (and then needs no bias), with
    `last_batch_norm` the output too, without scale and shift where `last_affine` is False.
    """
    widths = [widths[0] if width is None else width for width in widths]
    layers: list[nn.Module] = []
    for i, (into, out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        last = i == len(widths) - 2
        normalised = last_batch_norm if last else batch_norm
        layers.append(nn.Linear(into, out, bias=not normalised))
        if normalised:
            layers.append(nn.BatchNorm1d(out, affine=last_affine or not last))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics come from each of `splits` parts of the batch apart, as on that many GPUs.

    One GPU then behaves as several (MoCo's CIFAR-10 demonstration, facebookresearch/moco, branch
    `colab-notebook`). The parts are consecutive rows, as equal as the batch allows; the running statistics
    move once a pass, to the mean over the parts. Parameters and buffers are BatchNorm2d's own, so a
    state_dict fits both.
    """

    splits: int = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.splits == 1:
            return super().forward(x)
        if len(x) < 2 * self.splits:
            raise ValueError(
                f"a batch of {len(x)} cannot be normalised in {self.splits} parts: each part needs 2 images; "
                f"use a batch of at least {2 * self.splits} or fewer splits"
            )
        parts = x.tensor_split(self.splits)  # not chunk: that may give fewer parts, and a part of one image
        if not self.track_running_stats:
            return torch.cat([super(SplitBatchNorm2d, self).forward(part) for part in parts])
        self.num_batches_tracked += 1
        # momentum None: the plain average over all passes, as in BatchNorm2d
        moved = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        outputs, means, variances = [], [], []
        for part in parts:
            mean, variance = self.running_mean.clone(), self.running_var.clone()
            outputs.append(F.batch_norm(part, mean, variance, self.weight, self.bias, True, moved, self.eps))
            means.append(mean)
            variances.append(variance)
        with torch.no_grad():
            self.running_mean.copy_(torch.stack(means).mean(dim=0))
            self.running_var.copy_(torch.stack(variances).mean(dim=0))
        return torch.cat(outputs)


def split_batchnorm(network: nn.Module, splits: int) -> nn.Module:
    """Make every BatchNorm2d of `network` a `SplitBatchNorm2d` of `splits` parts, in place; returns it."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SplitBatchNorm2d
            module.splits = splits
    return network


NORMALISATIONS = ("batch", "group", "none")


class _StandardisedConv2d(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1 / fan-in (arXiv:1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, _standardised(self.weight), self.bias)


class _StandardisedLinear(nn.Linear):
    """The same for a linear layer, whose rows are the kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _standardised(self.weight), self.bias)


def _standardised(weight: Tensor) -> Tensor:
    # layer_norm over each kernel divides by its deviation; 1/√fan-in keeps the output's size
    flat = weight.flatten(1)
    return (F.layer_norm(flat, flat.shape[1:], eps=1e-5) * flat.shape[1] ** -0.5).view_as(weight)


def normalise_by(module: nn.Module, kind: str) -> nn.Module:
    """How a network is normalised throughout, in place: after Richemond et al. 2020 (arXiv:2010.10241).

    "batch" leaves it as it is. "group" puts GroupNorm of 16 groups for each BatchNorm (fewer where
    they do not divide the channels, or would leave a vector less than four numbers each) and standardises the
    weights of each convolution and linear layer: no statistics of the batch are left. "none" takes each
    BatchNorm out. Biases that a BatchNorm made needless are not added.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in NORMALISATIONS:
        raise ValueError(f"normalisation {kind!r} is not known; choose one of: {', '.join(NORMALISATIONS)}")
    if kind == "batch":
        return module
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            channels = child.num_features
            # of a vector, a group of one number would be its own mean
            least = 4 if isinstance(child, nn.BatchNorm1d) else 1
            fits = [n for n in (16, 8, 4, 2) if channels % n == 0 and channels >= n * least]
            other = nn.GroupNorm((*fits, 1)[0], channels) if kind == "group" else nn.Identity()
            setattr(module, name, other)
        else:
            normalise_by(child, kind)
    if kind == "group" and type(module) in (nn.Conv2d, nn.Linear):
        module.__class__ = _StandardisedConv2d if type(module) is nn.Conv2d else _StandardisedLinear
    return module


def momentum_copy(network: nn.Module) -> nn.Module:
    """A copy that gradients never reach: the start of a momentum encoder or a target network."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """θ_target ← m·θ_target + (1 − m)·θ_online for every parameter (MoCo eq. 2, BYOL eq. 1), in place.

    Buffers are left alone: BatchNorm statistics of the target come from its own passes, as in the official
    code of both papers. `momentum` is in [0, 1]; 1 freezes the target, 0 copies the online network.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum {momentum} is not in [0, 1]")
    targets = list(target.parameters())
    if targets:  # a head of no layers has none, and _foreach wants at least one
        torch._foreach_lerp_(targets, list(online.parameters()), 1 - momentum)
