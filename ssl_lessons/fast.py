"""What a CPU needs to be quick: wide convolutions on maps of a few pixels, in bfloat16.

The last stage of a ResNet-18 sees 2 x 2 pixels where a view has 64, one where it has 32. A 3 x 3 kernel with
a border of zeros then spends more than half of its products on zeros. Here each output pixel is one matrix
product, of the pixels that it sees with the taps that meet them. `bench step` measures a step with it.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MOST_PIXELS = 4  # of an output map
LEAST_CHANNELS = 512  # out: below, as in resnet10_half, next to nothing is gained


def small_maps(network: nn.Module, device: torch.device, precision: str):
    """The context in which a network's convolutions are computed so, by autocast, where that pays."""
    wide = any(isinstance(layer, nn.Conv2d) and _fits(layer.weight) for layer in network.modules())
    return _SmallMaps() if wide and device.type == "cpu" and precision == "bf16" else nullcontext()


def _fits(weight: Tensor) -> bool:
    return len(weight) >= LEAST_CHANNELS and weight.shape[2:] == (3, 3)


class _SmallMaps(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.conv2d and not kwargs and torch.is_autocast_enabled("cpu") and _is_small(*args):
            return small_conv2d(args[0], args[1], args[3][0])
        return function(*args, **(kwargs or {}))


def _is_small(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> bool:
    usual = (padding, dilation, groups) == ((1, 1), (1, 1), 1) and stride in ((1, 1), (2, 2))
    if not usual or bias is not None or x.ndim != 4 or not _fits(weight) or x.shape[1] != weight.shape[1]:
        return False
    height, width = ((side - 1) // stride[0] + 1 for side in x.shape[2:])
    return 0 < height * width <= MOST_PIXELS and len(x) > 0


def small_conv2d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """`F.conv2d` with padding 1 in bfloat16: floats (B, C, H, W) and (O, C, 3, 3) to bfloat16
    (B, O, ⌈H / stride⌉, ⌈W / stride⌉), channels-last; results differ by rounding."""
    pixels = x.bfloat16().permute(0, 2, 3, 1)  # (B, H, W, C)
    taps = weight.bfloat16().permute(0, 2, 3, 1)  # (O, 3, 3, C)
    rows, columns = (_reach(side, stride) for side in x.shape[2:])
    outputs = []
    for seen_rows, tap_rows in rows:
        for seen_columns, tap_columns in columns:
            seen = pixels[:, seen_rows, seen_columns].flatten(1)  # (B, n·C)
            outputs.append(F.linear(seen, taps[:, tap_rows, tap_columns].flatten(1)))  # (B, O)
    return torch.stack(outputs, 1).unflatten(1, (len(rows), len(columns))).permute(0, 3, 1, 2)


def _reach(length: int, stride: int) -> list[tuple[slice, slice]]:
    """For each output pixel along one side: the pixels that it sees, and the taps that meet them."""
    starts = range(-1, length - 1, stride)
    return [(slice(max(s, 0), min(s + 3, length)), slice(max(-s, 0), min(3, length - s))) for s in starts]
