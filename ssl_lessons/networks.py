"""Encoders f(·), heads g(·), batch normalisation that cannot leak, and the moving average of a network.

Architectures are torchvision's or timm's own (or forty lines of convolutions), so that the weights a run
saves load into the plain network with `strict=True`. B images of C channels, H x W pixels; D features.
"""

import copy
import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ssl_lessons.parameters import Unknown
from ssl_lessons.views import unnormalize


class Colours(nn.Module):
    """Counted colours: normalised float (B, 3, H, W) -> float32 (B, 512), the share of pixels in each of
    8 x 8 x 8 boxes of RGB. Its root is taken, so that many pixels of one colour count less."""

    def forward(self, images: Tensor) -> Tensor:
        values = (unnormalize(images.float()) * 255).round().long()  # 0 … 255
        red, green, blue = (values // 32).unbind(1)  # 0 … 7, each (B, H, W)
        box = ((red * 8 + green) * 8 + blue).flatten(1)  # (B, H·W)
        counts = torch.zeros(len(box), 512, device=box.device)
        counts.scatter_add_(1, box, torch.ones(box.shape, device=box.device))
        return (counts / box.shape[1]).sqrt()


class Conv4(nn.Module):
    """Four blocks of 3×3 convolution, BatchNorm, ReLU and 2×2 pooling, "Conv-4" of the few-shot literature:
    float (B, C, H, W) with H, W ≥ 16 -> (B, widths[-1]), the spatial mean of the last block."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), channels: int = 3):
        super().__init__()
        self.blocks = nn.Sequential()
        for width in widths:
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            block = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(2))
            self.blocks.append(block)
            channels = width

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images).mean(dim=(2, 3))  # (B, C, H, W) -> (B, D)


def conv4(image_size: int = 48, stem: str | None = None) -> Conv4:
    """The small `Conv4`; `image_size` and `stem` are ignored, and there so that it can stand for a ResNet."""
    return Conv4()


def resnet18(image_size: int = 224, stem: str | None = None) -> nn.Module:
    """torchvision's ResNet-18, randomly initialised, 512 features at `avgpool`.

    `stem` is "imagenet" (7×7 stride 2, pooling: the first block sees a quarter of the side) or "small" (3×3
    stride 1, no pooling: SimCLR appendix B.9; 16 times the arithmetic). None: "small" up to 32 pixels.
    """
    return _resnet(torchvision.models.resnet18, image_size, stem)


def resnet50(image_size: int = 224, stem: str | None = None) -> nn.Module:
    """torchvision's ResNet-50, 2,048 features at `avgpool`; stems as in `resnet18`."""
    return _resnet(torchvision.models.resnet50, image_size, stem)


def _resnet(constructor, image_size: int, stem: str | None) -> nn.Module:
    stem = stem or ("small" if image_size <= 32 else "imagenet")
    if stem not in ("imagenet", "small"):
        raise ValueError(f"stem {stem!r} is not known; choose one of: imagenet, small")
    network = constructor(weights=None)
    if stem == "small":
        network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision
        network.maxpool = nn.Identity()
    return network


def slim_resnet(blocks: Sequence[int] = (1, 1, 1, 1), width: int = 32, stem: str = "pool") -> nn.Module:
    """A narrow ResNet for views of 32 to 64 pixels, made of torchvision's blocks; 8 · `width` features.

    `blocks` in each of four stages ((2, 2, 2, 2) is ResNet-18's depth), of 1, 2, 4 and 8 times `width`
    channels. The stem, a 3×3 convolution, halves the side once, by 2×2 pooling ("pool") or its "stride":
    behind ImageNet's, which divides the side by four, a view of 32 pixels ends in maps of one pixel.
    """
    if stem not in ("pool", "stride"):
        raise ValueError(f"stem {stem!r} is not known to a slim ResNet; choose one of: pool, stride")
    block = torchvision.models.resnet.BasicBlock
    network = torchvision.models.ResNet(block, list(blocks))
    network.conv1 = nn.Conv2d(3, width, 3, stride=1 if stem == "pool" else 2, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    network.maxpool = nn.MaxPool2d(2) if stem == "pool" else nn.Identity()
    network.inplanes = width  # what torchvision's own method for a stage starts from
    for i, count in enumerate(blocks):
        stage = network._make_layer(block, width * 2**i, count, stride=1 if i == 0 else 2)
        setattr(network, f"layer{i + 1}", stage)
    network.fc = nn.Linear(network.inplanes, 1000)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # as torchvision
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet10_half(image_size: int = 32, stem: str | None = None) -> nn.Module:
    """The network for runs of minutes, 1.2 million weights, 256 features: of ten that took about as long on
    two CPU cores none learnt clearly more, ResNet-18's depth less (data/results/TRIALS.md, "net")."""
    return slim_resnet(stem=stem or "pool")


NETWORKS = {"conv4": conv4, "resnet10_half": resnet10_half, "resnet18": resnet18, "resnet50": resnet50}
RULERS = {"pixels": nn.Flatten, "colours": Colours}  # no networks: what a method must beat


def check_name(name: str, rulers: bool = True) -> None:
    """Raises `Unknown`, a ValueError, with the names that come near, for a network that `build` does not
    know; without `rulers` for those too."""
    known = near = [*NETWORKS, *(RULERS if rulers else ())]
    if name.startswith("timm/"):
        import timm  # here, because it takes a second to load

        known = [f"timm/{model}" for model in timm.list_models()]
        near = [*difflib.get_close_matches(name, known), *NETWORKS]
    if name.split(".")[0] not in known:  # in "timm/resnet18.a1_in1k" the last part only names weights
        raise Unknown(f"network {name!r} is not known; choose one of: {', '.join(near)}, or timm/NAME")


def build(name: str, image_size: int, stem: str | None = None) -> nn.Module:
    """A freshly initialised network for square views of `image_size` pixels: a name in NETWORKS or RULERS, or
    "timm/" and one of `timm.list_models()` ("timm/resnet18"), which gives pooled features and no logits.

    Raises ValueError for another name (the message lists near ones) or a stem that does not fit."""
    check_name(name)
    if name in RULERS:
        return RULERS[name]()
    if name in NETWORKS:
        return NETWORKS[name](image_size, stem)
    import timm

    if stem not in (None, "imagenet"):
        raise ValueError(f"stem {stem!r} does not fit {name}, which has its own; leave it at None")
    name = name.removeprefix("timm/")
    # A transformer's position embedding is made for one size of image; a convolution takes any.
    fixed = timm.models.get_pretrained_cfg(name).fixed_input_size
    return timm.create_model(name, num_classes=0, **({"img_size": image_size} if fixed else {}))


class _Reached(Exception):
    """Ends a forward pass at the tapped layer; its args are the encoder that asked and the layer's output."""


class Encoder(nn.Module):
    """A network read out at one of its layers: float (B, C, H, W) → (B, width). Made by `tap`.

    `network` is the very module that was passed in: training the encoder trains it. What lies behind the
    layer does not run; a layer that runs more than once in a pass is read at its first run.
    """

    def __init__(self, network: nn.Module, layer: str | None):
        super().__init__()
        self.network, self.layer = network, layer  # layer None: the network's own output
        self.width, self.channels = 0, 3  # of the features; of the images

    def forward(self, images: Tensor) -> Tensor:
        if self.layer is None:
            return flat(self.network(images))

        def stop(module, inputs, output):
            raise _Reached(self, output)

        # The hook lives for one pass only: the user's network is theirs, and copies of it carry no hook.
        handle = self.network.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.network(images)
        except _Reached as reached:
            encoder, output = reached.args
            if encoder is not self:  # it asked through this one
                raise
            return flat(output)
        finally:
            handle.remove()
        raise ValueError(f"layer {self.layer!r} took no part in the forward pass; choose another layer")


def flat(output: Tensor) -> Tensor:
    """A layer's output as features (B, D): the mean over positions (B, D, h, w) or tokens (B, T, D). A map
    with its channels last, as inside a Swin transformer, cannot be told apart: tap behind its permutation."""
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise ValueError(f"the tapped layer returns a {kind}; choose a layer that returns one tensor")
    if output.dim() == 4:
        return output.mean(dim=(2, 3))
    return output.mean(dim=1) if output.dim() == 3 else output.flatten(1)


@contextmanager
def eval_mode(module: nn.Module, device: torch.device | None = None) -> Iterator[None]:
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


def tap(
    network: nn.Module, layer: str | int | None = None, image_size: int = 64, channels: int = 3
) -> Encoder:
    """Turn any network on float (B, channels, image_size, image_size) into an encoder at one of its layers,
    and find how wide its output is. The network is not copied.

    layer: a name as in `network.named_modules()` ("avgpool", "encoder.layers.3"), or an index into the
    network's direct children (-2 is the last but one). None: the pooling before an `fc` (torchvision's and
    timm's ResNets), else the network's own output. Raises ValueError for a layer that is not there (the
    message lists those that are) or takes no part."""
    names = [name for name, _ in network.named_modules() if name]
    children = [name for name, _ in network.named_children()]
    for pooling in ("avgpool", "global_pool"):
        if layer is None and pooling in names and "fc" in names:
            layer = pooling
    if isinstance(layer, int):
        if not -len(children) <= layer < len(children):
            known = ", ".join(f"{i} {name}" for i, name in enumerate(children))
            raise ValueError(f"layer {layer} is out of range; the {len(children)} children: {known}")
        layer = children[layer]
    if layer is not None and layer not in names:
        raise ValueError(f"layer {layer!r} is not in the network; choose one of: {', '.join(names)}")

    encoder = Encoder(network, layer)
    parameter = next(network.parameters(), torch.empty(0))  # none: raw pixels as features, say
    example = torch.zeros(1, channels, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    with eval_mode(network), torch.no_grad():  # in train mode this pass would move the BatchNorm statistics
        encoder.width, encoder.channels = encoder(example).shape[1], channels
    return encoder


def mlp(
    widths: Sequence[int | None], batch_norm=False, last_batch_norm=False, last_affine=True
) -> nn.Sequential:
    """A projection head g(·): linear layers of the given `widths` with ReLU between them.

    `mlp([512, 512, 128])` is MoCo v2's and SimCLR v1's head; `mlp([512, 128])` MoCo v1's single layer. A
    width None is that of the input: `mlp([d, None, 128])` is d–d–128. One width alone is no head at all.
    With `batch_norm` each hidden layer is normalised before its ReLU (and then needs no bias), with
    `last_batch_norm` the output too, without scale and shift where `last_affine` is False.
    """
    widths = [widths[0] if width is None else width for width in widths]
    head = nn.Sequential()
    for i in range(1, len(widths)):
        last = i == len(widths) - 1
        normalised = last_batch_norm if last else batch_norm
        head.append(nn.Linear(widths[i - 1], widths[i], bias=not normalised))
        if normalised:
            head.append(nn.BatchNorm1d(widths[i], affine=last_affine or not last))
        if not last:
            head.append(nn.ReLU(inplace=True))
    return head


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics come from each of `splits` parts of the batch apart, as on that many GPUs
    (MoCo's CIFAR-10 demonstration, facebookresearch/moco, branch `colab-notebook`): consecutive rows, as
    equal as the batch allows. The running statistics move once a pass, to the mean over the parts."""

    splits: int = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.splits == 1:
            return super().forward(x)
        least = 2 * self.splits  # one image alone has no variance
        if len(x) < least:
            way_out = f"use at least {least} or fewer splits"
            raise ValueError(f"a batch of {len(x)} cannot be normalised in {self.splits} parts; {way_out}")
        parts = x.tensor_split(self.splits)  # not chunk: that may give fewer parts, and a part of one image
        if not self.track_running_stats:
            return torch.cat([super(SplitBatchNorm2d, self).forward(part) for part in parts])
        self.num_batches_tracked += 1
        # momentum None: the plain average over all passes, as in BatchNorm2d
        moved = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        means, variances = self.running_mean.repeat(len(parts), 1), self.running_var.repeat(len(parts), 1)
        outputs = []
        for part, mean, variance in zip(parts, means, variances, strict=True):  # moves mean and variance
            outputs.append(F.batch_norm(part, mean, variance, self.weight, self.bias, True, moved, self.eps))
        self.running_mean.copy_(means.mean(dim=0))
        self.running_var.copy_(variances.mean(dim=0))
        return torch.cat(outputs)


def split_batchnorm(network: nn.Module, splits: int) -> nn.Module:
    """Make every BatchNorm2d of `network` a `SplitBatchNorm2d` of `splits` parts, in place; returns it."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            _refuse_fused(module)
            module.__class__, module.splits = SplitBatchNorm2d, splits
    return network


def _refuse_fused(module: nn.Module) -> None:
    """timm has BatchNorms that hold an activation too; it would be lost with the layer, without a word."""
    if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, SplitBatchNorm2d):
        raise ValueError(
            f"{type(module).__name__} is more than a BatchNorm and cannot be replaced; choose another "
            "network, or a recipe that leaves BatchNorm as it is"
        )


# Not timm's ScaledStdConv2d: its learnt gain is in no checkpoint of ours, and it has no linear layer.
class _StandardisedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, _standardised(self.weight), self.bias)


class _StandardisedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _standardised(self.weight), self.bias)


def _standardised(weight: Tensor) -> Tensor:
    """Each kernel, or row of a linear layer, with mean 0 and variance 1 / fan-in (arXiv:1903.10520)."""
    kernels = weight.flatten(1)  # (out, fan-in)
    fan_in = kernels.shape[1]
    return (F.layer_norm(kernels, (fan_in,), eps=1e-5) * fan_in**-0.5).view_as(weight)


def normalise_by(module: nn.Module, kind: str) -> nn.Module:
    """How a network is normalised throughout, in place: after Richemond et al. 2020 (arXiv:2010.10241).

    "batch" leaves it as it is, "none" takes each BatchNorm out, "group" puts GroupNorm of 16 groups for it
    (fewer where they do not divide the channels, or would leave a vector less than four numbers each) and
    standardises the weights of convolutions and linear layers. Raises ValueError for another kind."""
    if kind not in ("batch", "group", "none"):
        raise ValueError(f"normalisation {kind!r} is not known; choose one of: batch, group, none")
    standardised = {nn.Conv2d: _StandardisedConv2d, nn.Linear: _StandardisedLinear}
    if kind == "group":
        module.__class__ = standardised.get(type(module), type(module))
    for name, child in module.named_children():
        if kind == "batch" or not isinstance(child, nn.modules.batchnorm._BatchNorm):
            normalise_by(child, kind)
            continue
        _refuse_fused(child)
        if kind == "none":
            setattr(module, name, nn.Identity())
        else:
            channels, groups = child.num_features, 16
            least = 4 if isinstance(child, nn.BatchNorm1d) else 1  # one number would be its own mean
            while groups > 1 and (channels % groups or channels < groups * least):
                groups //= 2
            setattr(module, name, nn.GroupNorm(groups, channels))
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
