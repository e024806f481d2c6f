"""Encoders f(·), heads g(·), batch normalisation that cannot leak, and the moving average of a network.

Architectures are torchvision's or timm's own (or forty lines of convolutions), so that the weights a run
saves load into the plain network with `strict=True`. B images of C channels, H x W pixels; D features.
"""

import copy
import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_lessons.parameters import Parameter, Unknown, fit, known
from ssl_lessons.views import unnormalize


class Pixels(nn.Module):
    """Raw pixels: float (B, C, H, W) -> (B, C·H·W), of views above 48 pixels as 32 x 32 means: to judge the
    49,152 numbers of a view of 128 takes 12 GB and minutes."""

    def forward(self, images: Tensor) -> Tensor:
        return (images if images.shape[-1] <= 48 else F.adaptive_avg_pool2d(images, 32)).flatten(1)


class Colours(nn.Module):
    """Counted colours: normalised float (B, 3, H, W) -> float32 (B, 512), the share of pixels in each of
    8 x 8 x 8 boxes of RGB. Its root is taken, so that many pixels of one colour count less."""

    def forward(self, images: Tensor) -> Tensor:
        values = (unnormalize(images.float()) * 255).round().long()  # 0 … 255
        red, green, blue = (values // 32).unbind(1)  # 0 … 7, each (B, H, W)
        box = ((red * 8 + green) * 8 + blue).flatten(1)  # (B, H·W)
        ones = torch.ones(box.shape, device=box.device)
        counts = ones.new_zeros(len(box), 512).scatter_add_(1, box, ones)
        return (counts / box.shape[1]).sqrt()


class Conv4(nn.Module):
    """Four blocks of 3×3 convolution, BatchNorm, ReLU and 2×2 pooling, "Conv-4" of the few-shot literature:
    float (B, C, H, W) with H, W ≥ 16 -> (B, widths[-1]), the spatial mean of the last block."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), channels: int = 3):
        super().__init__()
        self.blocks = nn.Sequential()
        for width in widths:
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            norm, relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            self.blocks.append(nn.Sequential(conv, norm, relu, nn.MaxPool2d(2)))
            channels = width

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images).mean(dim=(2, 3))  # (B, C, H, W) -> (B, D)


def conv4(image_size: int = 48, stem: str | None = None) -> Conv4:
    """The small `Conv4`; `image_size` and `stem` are ignored, and there so that it can stand for a ResNet."""
    return Conv4()


def resnet18(image_size: int = 224, stem: str | None = None, architecture=torchvision.models.resnet18):
    """torchvision's ResNet-18, randomly initialised, 512 features at `avgpool`. `stem` is "imagenet" (7×7
    stride 2, pooling: the first block sees a quarter of the side) or "small" (3×3 stride 1, no pooling:
    SimCLR appendix B.9; 16 times the arithmetic). None: "small" up to 32 pixels."""
    stem = known("stem", stem or ("small" if image_size <= 32 else "imagenet"), ("imagenet", "small"))
    network = architecture(weights=None)
    if stem == "small":
        network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision
        network.maxpool = nn.Identity()
    return network


def resnet50(image_size: int = 224, stem: str | None = None) -> nn.Module:
    """torchvision's ResNet-50, 2,048 features at `avgpool`; stems as in `resnet18`."""
    return resnet18(image_size, stem, torchvision.models.resnet50)


def slim_resnet(blocks: Sequence[int] = (1, 1, 1, 1), width: int = 32, stem: str = "pool") -> nn.Module:
    """A narrow ResNet for views of 32 to 64 pixels, made of torchvision's blocks; 8 · `width` features.
    `blocks` in each of four stages, of 1, 2, 4 and 8 times `width` channels. The stem, a 3×3 convolution,
    halves the side once, by 2×2 pooling ("pool") or its "stride"; ImageNet's would divide it by four."""
    known("stem of a slim ResNet", stem, ("pool", "stride"))
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
    for conv in [part for part in network.modules() if isinstance(part, nn.Conv2d)]:  # as torchvision
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet10_half(image_size: int = 32, stem: str | None = None) -> nn.Module:
    """The network for runs of minutes, 1.2 million weights, 256 features: of ten that took about as long on
    two CPU cores none learnt clearly more, ResNet-18's depth less (data/results/TRIALS.md, "net")."""
    return slim_resnet(stem=stem or "pool")


NETWORKS = {"conv4": conv4, "resnet10_half": resnet10_half, "resnet18": resnet18, "resnet50": resnet50}
RULERS = {"pixels": Pixels, "colours": Colours}  # no networks: what a method must beat


def check_name(name: str) -> None:
    """`Unknown`, a ValueError that lists near names, for what is neither in NETWORKS nor one of timm's."""
    names = near = [*NETWORKS]
    if name.startswith("timm/"):
        import timm  # here, because it takes a second to load

        # with tags, "timm/resnet18.a1_in1k", too: the last part names weights
        names = [f"timm/{model}" for model in timm.list_models() + timm.list_models(include_tags=True)]
        near = [*difflib.get_close_matches(name, names), *NETWORKS]
    if name not in names:
        raise Unknown(f"network {name!r} is not known; choose one of: {', '.join(near)}, or timm/NAME")


def build(name: str, image_size: int, stem: str | None = None) -> nn.Module:
    """A freshly initialised network for square views of `image_size` pixels: a name in NETWORKS or RULERS, or
    "timm/" and one of `timm.list_models()`, which gives pooled features and no logits. ValueError: as
    `check_name`, or a stem that does not fit."""
    if name in RULERS:
        return RULERS[name]()
    check_name(name)
    if name in NETWORKS:
        return NETWORKS[name](image_size, stem)
    import timm

    if stem not in (None, "imagenet"):
        raise ValueError(f"stem {stem!r} does not fit {name}, which has its own; leave it at None")
    name = name.removeprefix("timm/")
    # A transformer's position embedding is made for one size of image; a convolution takes any.
    size = {"img_size": image_size} if timm.models.get_pretrained_cfg(name).fixed_input_size else {}
    return timm.create_model(name, num_classes=0, **size)


class Encoder(nn.Module):
    """A network read out at one of its layers: float (B, C, H, W) → (B, width). Made by `tap`.

    `network` is the very module that was passed in: training the encoder trains it. What lies behind the
    layer does not run; a layer that runs more than once in a pass is read at its first run, and averaged over
    positions. BatchNorms in eval mode in a network that trains are frozen: `train()` leaves them so."""

    def __init__(self, network: nn.Module, layer: str | None, channels: int = 3):
        super().__init__()
        self.network, self.layer = network, layer  # layer None: the network's own output
        self.channels, self.width = channels, 0  # of the images; of the features, which `tap` finds
        self.axis = 1  # of the layer's output: where the features are
        self.plain_layout = False  # whether images and weights stay contiguous, as `view` needs them
        self.frozen: list[nn.Module] = []
        self.training = network.training  # one that is in eval mode as a whole is not frozen, but at rest

    def train(self, mode: bool = True) -> "Encoder":
        if self.training and self.network.training:  # else it is at rest as a whole
            norms = [part for part in self.modules() if isinstance(part, _BatchNorm)]
            self.frozen = [norm for norm in norms if not norm.training]
        super().train(mode)
        for norm in self.frozen:
            norm.eval()
        return self

    def output(self, images: Tensor) -> Tensor:
        """What the layer returns, (B, …) in any layout; ValueError for all but floats, a row an image."""
        layer = f"layer {self.layer!r}" if self.layer else "the network"

        class Reached(Exception):  # ends this pass, and not that of an encoder within the network
            pass

        def stop(module, inputs, output):
            raise Reached(output)

        # The hook lives for one pass only: the user's network is theirs, and copies of it carry no hook.
        version = None if images.is_inference() else images._version
        tapped = self.network.get_submodule(self.layer or "")
        try:
            with tapped.register_forward_hook(stop):
                self.network(images.contiguous() if self.plain_layout else images)
            raise ValueError(f"{layer} took no part in the forward pass; choose another layer")
        except Reached as reached:
            output = reached.args[0]
        if version is not None and images._version != version:  # another pass would see the changed view
            raise ValueError("the network changes its images in place; take inplace or x.sub_ out there")
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        if not getattr(kind, "is_floating_point", False):
            raise ValueError(f"{layer} returns a {kind}; choose a layer that returns one tensor of floats")
        if output.dim() < 2 or len(output) != len(images):
            raise ValueError(f"{layer} returns {tuple(output.shape)}, not a row for each of {len(images)}")
        learns = self.training and torch.is_grad_enabled() and not output.requires_grad
        if learns and any(parameter.requires_grad for parameter in self.parameters()):
            reason = "take no_grad and detach out of it, or a layer with weights that learn before it"
            raise ValueError(f"{layer} returns numbers without gradient; {reason}")
        if torch.is_autocast_enabled(output.device.type):
            return output
        return output.to(images.dtype)  # of a network with an autocast of its own

    def forward(self, images: Tensor) -> Tensor:
        output = self.output(images)
        positions = [axis for axis in range(1, output.dim()) if axis != self.axis]
        return output.mean(dim=positions) if positions else output


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


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, AveragedModel or torch.compile, whose saved
    names are its own. Its parts are unwrapped in place: compiled code calls no hook of a layer."""
    around = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    while isinstance(network, around) or hasattr(network, "_orig_mod"):
        network = network._orig_mod if hasattr(network, "_orig_mod") else network.module
    network._compiled_call_impl = None  # network.compile()
    for name, child in network.named_children():
        setattr(network, name, unwrapped(child))
    return network


def check_network(network: nn.Module) -> None:
    """ValueError for a network that cannot train beside heads and images in float32, on one device."""
    default = torch.get_default_dtype()
    if default != torch.float32:
        raise ValueError(f"torch's default dtype is {default}; torch.set_default_dtype(torch.float32) first")
    home = next(network.parameters(), torch.empty(0)).device
    for name, weight in network.named_parameters():
        fault = ""
        if nn.parameter.is_lazy(weight):
            fault = "has no shape yet (a lazy layer); pass one batch of images through the network first"
        elif weight.is_inference():
            fault = "was made in inference mode; build the network outside of it"
        elif weight.is_meta or weight.device != home:
            fault = f"is on {weight.device}, the first on {home}; move the network to one real device"
        elif weight.dtype != torch.float32 and weight.requires_grad:
            fault = f"is {weight.dtype}; call network.float() first (a run's precision is chosen in pretrain)"
        elif weight.requires_grad and not weight.isfinite().all():
            fault = "has values that are NaN or infinite; load or initialise it again"
        if fault:
            raise ValueError(f"the network's parameter {name} {fault}")
    for name, value in network.state_dict().items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex()
        if not plain or value.is_quantized:
            raise ValueError(f"the network keeps {value!r:.80} as {name}; a file takes plain tensors")


def tap(network: nn.Module, layer: str | int | None = None, image_size=64, channels=3) -> Encoder:
    """Turn any network on float (B, channels, image_size, image_size) into an encoder at one of its layers,
    and find how wide its output is. The network is not copied, and is `unwrapped`.
    layer: a name as in `network.named_modules()` ("encoder.layers.3"), or an index into its direct children.
    None: the pooling before an `fc` (torchvision's and timm's ResNets), else the network's own output, with a
    warning where that comes from a classifier. ValueError: a layer that is not there (the message lists those
    that are), takes no part or returns no row of floats for each image; a network as in `check_network`."""
    if not isinstance(network, nn.Module):
        raise ValueError(f"network is {network!r:.200}; give an nn.Module, say networks.build('conv4', 48)")
    image_size = fit("image_size", image_size, Parameter("int", ...))
    network = unwrapped(network)
    if isinstance(network, Encoder):  # of an earlier run: its names are those of the network in it
        layer = network.layer if layer is None else layer
        layer = layer.removeprefix("network.") if isinstance(layer, str) else layer
        channels, network = network.channels, network.network
    check_network(network)
    names = {module: name for name, module in network.named_modules()}
    layers = [name for name in names.values() if name]
    children = [name for name, _ in network.named_children()]
    if isinstance(layer, int):
        if not -len(children) <= layer < len(children):
            raise ValueError(f"layer {layer} is out of range of the children {', '.join(children)}")
        layer = children[layer]
    if layer is not None and layer not in layers:
        raise ValueError(f"layer {layer!r} is not in the network; choose one of: {', '.join(layers)}")

    encoder = Encoder(network, layer, channels)
    device = next(network.parameters(), torch.empty(0)).device
    example = torch.zeros(2, channels, image_size, image_size, device=device)
    ran: list[nn.Module] = []  # in this order

    def tried() -> Tensor:
        """A pass of the example, in the layout of a run's; else in the plain one."""
        ran.clear()
        encoder.plain_layout = False
        with nn.modules.module.register_module_forward_hook(lambda module, *_: ran.append(module)):
            try:
                return encoder.output(example.to(memory_format=torch.channels_last))
            except RuntimeError:  # x.view(B, -1) after a convolution
                ran.clear()
                encoder.plain_layout = True
                return encoder.output(example)

    # in train mode this pass would move the BatchNorm statistics
    with eval_mode(encoder), torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            output = tried()
            weighted = [i for i, part in enumerate(ran) if part._parameters and not part._modules]
            pooled = [i for i, part in enumerate(ran) if names.get(part) in ("avgpool", "global_pool")]
            if layer is None and "fc" in layers and len(pooled) == 1:
                after = [names.get(ran[i]) for i in weighted if i > pooled[0]]
                if after in ([], ["fc"]):  # else it is not the pooling that a classifier reads
                    encoder.layer = layer = names[ran[pooled[0]]]
                    output = tried()
        except ValueError:
            raise
        except Exception as error:  # whatever a network raises
            shape, reason = tuple(example.shape[1:]), str(error) or type(error).__name__
            fault = f"images {shape} do not fit: {reason}; are image_size and channels right?"
            raise ValueError(fault) from error
        encoder.axis = _axis(encoder, example, output)
    encoder.width = output.shape[encoder.axis]

    last = ran[weighted[-1]] if layer is None and weighted else None
    name = names.get(last, "")
    if isinstance(last, nn.Linear) or name.startswith("classifier"):  # SqueezeNet's is a convolution
        named = [part for part in ran[: weighted[-1]] if part in names]
        before = [part for part in named if not isinstance(part, nn.Dropout)]
        way_out = f", for example layer={names[before[-1]]!r}" if before else ""
        text = f"the network is read at its layer {name!r}; if it scores classes, name another{way_out}"
        warnings.warn(text, stacklevel=2)
    return encoder


def _axis(encoder: Encoder, example: Tensor, output: Tensor) -> int:
    """Which axis of a layer's output (B, …) holds the features: the one that does not grow with the image.
    Where that does not tell (a network for one size, pooled maps): the last of tokens (B, T, D) and of square
    maps (B, h, h, D), else the first, (B, D, h, w)."""
    shape = output.shape
    long = [axis for axis in range(1, output.dim()) if shape[axis] > 1]
    if len(long) < 2:
        return long[0] if long else 1
    with suppress(Exception):  # whatever a network for images of one size raises
        larger = encoder.output(example.repeat(1, 1, 2, 2)).shape
        fixed = [axis for axis in long if larger[axis] == shape[axis]]
        if len(fixed) == 1:
            return fixed[0]
    channels_last = output.dim() == 4 and shape[1] == shape[2] != shape[3]
    return output.dim() - 1 if channels_last or output.dim() == 3 else 1


def mlp(widths: Sequence[int | None], batch_norm=False, last_batch_norm=False, last_affine=True):
    """A projection head g(·): linear layers of the given `widths` with ReLU between them.
    `mlp([512, 512, 128])` is MoCo v2's and SimCLR v1's head; a width None is that of the input, one width
    alone no head at all. With `batch_norm` each hidden layer is normalised before its ReLU (and needs no
    bias), with `last_batch_norm` the output too, without scale and shift where `last_affine` is False."""
    widths = [widths[0] if width is None else width for width in widths]
    head = nn.Sequential()
    for i in range(1, len(widths)):
        last = i == len(widths) - 1
        normalized = last_batch_norm if last else batch_norm
        head.append(nn.Linear(widths[i - 1], widths[i], bias=not normalized))
        if normalized:
            head.append(nn.BatchNorm1d(widths[i], affine=last_affine or not last))
        if not last:
            head.append(nn.ReLU(inplace=True))
    return head


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with the statistics of each of `splits` parts of the batch (consecutive rows, as equal as can
    be) apart, as on that many GPUs: MoCo's CIFAR-10 demonstration, facebookresearch/moco, branch
    `colab-notebook`. The running statistics move once a pass, to the mean over the parts."""

    splits: int = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.splits == 1:
            return super().forward(x)
        if len(x) < 2 * self.splits:  # one image alone has no variance
            raise ValueError(f"a batch of {len(x)} is too small for {self.splits} splits, of 2 at least each")
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


def _refuse_fused(norm: _BatchNorm) -> None:
    """timm has BatchNorms that hold an activation too, which would be lost with the layer."""
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, SplitBatchNorm2d):
        raise ValueError(f"{type(norm).__name__} is more than a BatchNorm; choose a recipe that leaves it be")


# Not timm's ScaledStdConv2d: its learnt gain is in no checkpoint of ours, and it has no linear layer.
class _StandardizedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, _standardized(self.weight), self.bias)


class _StandardizedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _standardized(self.weight), self.bias)


def _standardized(weight: Tensor) -> Tensor:
    """Each kernel, or row of a linear layer, with mean 0 and variance 1 / fan-in (arXiv:1903.10520)."""
    kernels = weight.flatten(1)  # (out, fan-in)
    fan_in = kernels.shape[1]
    return (F.layer_norm(kernels, (fan_in,), eps=1e-5) * fan_in**-0.5).view_as(weight)


def normalise_by(module: nn.Module, kind: str) -> nn.Module:
    """How a network is normalised throughout, in place: after Richemond et al. 2020 (arXiv:2010.10241).
    "batch" leaves it as it is, "none" takes each BatchNorm out, "group" puts GroupNorm of 16 groups for it
    (fewer where they do not divide the channels, or leave a vector less than four numbers each) and
    standardises the weights of convolutions and linear layers."""
    known("normalisation", kind, ("batch", "group", "none"))
    if kind == "batch":
        return module
    if kind == "group":
        standardized = {nn.Conv2d: _StandardizedConv2d, nn.Linear: _StandardizedLinear}
        module.__class__ = standardized.get(type(module), type(module))
    for name, child in module.named_children():
        if not isinstance(child, _BatchNorm):
            normalise_by(child, kind)
            continue
        _refuse_fused(child)
        channels, groups = child.num_features, 16
        least = 4 if isinstance(child, nn.BatchNorm1d) else 1  # numbers in a group
        while groups > 1 and (channels % groups or channels < least * groups):
            groups //= 2
        setattr(module, name, nn.GroupNorm(groups, channels) if kind == "group" else nn.Identity())
    return module


def momentum_copy(network: nn.Module) -> nn.Module:
    """A copy that gradients never reach: the start of a momentum encoder or a target network."""
    for part in network.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor) and not value.is_leaf:
                # a weight computed from others, as in torch's older weight_norm: anew in the next pass
                setattr(part, name, value.detach())
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """θ_target ← m·θ_target + (1 − m)·θ_online for every parameter (MoCo eq. 2, BYOL eq. 1), in place; m in
    [0, 1]. Buffers are left alone: the target's BatchNorm statistics come from its own passes, as in the
    official code of both papers."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum {momentum} is not in [0, 1]")
    targets = list(target.parameters())
    if targets:  # a head of no layers has none, and _foreach wants at least one
        torch._foreach_lerp_(targets, list(online.parameters()), 1 - momentum)
