"""Convolution on maps of a few pixels, on a CPU: the same sums without the products with padding.

The last stage of a ResNet sees 2 x 2 pixels when a view has 64, and 1 x 1 when it has 32. A 3 x 3 kernel
with a border of zeros then spends 20 of its 36 products, or 8 of its 9, on zeros, and kernels made for large
maps are slow there besides. Here each output pixel is one matrix product: the input pixels that it sees
(B, n·C) by the taps that meet them (n·C, O). `ssl-lessons bench convolution` measures what that gains, and
`bench step` what a training step has of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Where `bench convolution` found this quicker than PyTorch's own kernel.
MOST_PIXELS = {torch.float32: 4, torch.bfloat16: 9}  # of the output
LEAST_CHANNELS = 64  # of input and output: below, there is little to save


class SmallMaps(TorchFunctionMode):
    """Within it, a `conv2d` on a CPU with few output pixels (`MOST_PIXELS`) is `small_conv2d`.

    Any module, torchvision's among them, computes so without being touched; results differ by rounding.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """`F.conv2d`, by whichever of the two is quicker."""
    stride, pad, spread = (_pair(each) for each in (stride, padding, dilation))
    autocast = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
    usual = input.device.type == "cpu" and input.ndim == 4 and groups == 1 and spread == (1, 1)
    if usual and not isinstance(padding, str) and min(weight.shape[:2]) >= LEAST_CHANNELS:
        room = (input.shape[i] + 2 * pad[i - 2] - weight.shape[i] for i in (2, 3))
        rows, columns = (left // step + 1 for left, step in zip(room, stride, strict=True))
        narrow = pad[0] < weight.shape[2] and pad[1] < weight.shape[3]  # no output pixel sees padding alone
        if narrow and min(rows, columns) > 0 and rows * columns <= MOST_PIXELS.get(dtype, 0):
            # autocast casts for the operations it knows by name
            return small_conv2d(input.to(dtype), weight, bias, stride, pad)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def small_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """`F.conv2d`, one matrix product for each output pixel: (B, C, H, W) -> (B, O, Ho, Wo), channels-last.

    Args:
        weight, bias: (O, C, kh, kw) and (O,) or None, in the dtype of `x` or to be cast to it. Quickest where
            the memory of `x` and `weight` is channels-last.
        padding: of zeros, on each side; less than the kernel's side.
    """
    batch, _, height, width = x.shape
    out, _, _, side = weight.shape
    flat = x.permute(0, 2, 3, 1).reshape(batch, height * width, -1)  # (B, H·W, C)
    pixels = flat.unbind(1)  # H·W of (B, C)
    rows, columns = (_reach(x.shape[i], weight.shape[i], stride[i - 2], padding[i - 2]) for i in (2, 3))
    meet = {a * side + b for row in rows for _, a in row for column in columns for _, b in column}
    taps = weight.permute(0, 2, 3, 1).flatten(1, 2).unbind(1)  # kh·kw of (O, C)
    taps = [tap.to(x.dtype) if t in meet else None for t, tap in enumerate(taps)]
    bias = bias if bias is None else bias.to(x.dtype)
    made = []
    for row in rows:
        for column in columns:
            seen = [i * width + j for i, _ in row for j, _ in column]
            met = [a * side + b for _, a in row for _, b in column]
            whole = len(seen) == height * width  # all of them, in their order: no copy
            inputs = flat.flatten(1) if whole else torch.cat([pixels[p] for p in seen], 1)  # (B, n·C)
            made.append(_product(inputs, torch.cat([taps[t] for t in met], 1), bias))  # (B, O)
    return torch.stack(made, 1).view(batch, len(rows), len(columns), out).permute(0, 3, 1, 2)


def _reach(length: int, kernel: int, stride: int, padding: int) -> list[list[tuple[int, int]]]:
    """For each output pixel along one side: the (input pixel, tap) pairs that are not in the padding."""
    outputs = range((length + 2 * padding - kernel) // stride + 1)
    starts = (o * stride - padding for o in outputs)
    return [[(s + tap, tap) for tap in range(kernel) if 0 <= s + tap < length] for s in starts]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, K) by weight (O, K), transposed: (B, O).

    In float32 as a 1 x 1 convolution over a row of B pixels: PyTorch has another library for convolutions
    than for products, which on AMD's CPUs is about twice as quick.
    """
    if x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    row = x.view(1, 1, *x.shape).permute(0, 3, 1, 2)  # (1, K, 1, B), channels-last
    kernel = weight.view(len(weight), 1, 1, -1).permute(0, 3, 1, 2)  # (O, K, 1, 1)
    return F.conv2d(row, kernel, bias).permute(0, 2, 3, 1).view(len(x), -1)


def _pair(value) -> tuple:
    """(vertical, horizontal) of what `conv2d` takes: a number, one or two in a row, or a word."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * 2 if len(values) == 1 else values
