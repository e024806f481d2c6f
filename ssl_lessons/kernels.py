"""What training computes in its own way on a CPU: the same sums, sooner.

Convolutions on maps of a few pixels. The last stage of a ResNet sees 2 x 2 pixels when a view has 64, and
1 x 1 when it has 32. A 3 x 3 kernel with a border of zeros then spends 20 of its 36 products, or 8 of its 9,
on zeros, and kernels made for large maps are slow there besides. Here each output pixel is one matrix
product: the input pixels that it sees (B, n·C) by the taps that meet them (n·C, O). `ssl-lessons bench
convolution` measures what that gains, and `bench step` what a training step has of it.

Linear layers in float32, on AMD's CPUs: PyTorch has one library for products and another for convolutions,
and there the second is the quicker one (`bench convolution` again).
"""

from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# About where `bench convolution` found this quicker than PyTorch's own kernel: one simple rule, not the best
# choice for each shape (its table marks what is used, and shows both sides of the limits).
MOST_PIXELS = {torch.float32: 4, torch.bfloat16: 9}  # of the output
LEAST_BATCH = {torch.float32: 128, torch.bfloat16: 1}  # images; to lay out the taps costs the same for few
LEAST_CHANNELS = 128  # of input and output


class Kernels:
    """Within it, the layers of a module compute by these kernels, in a backward pass with activation
    checkpoints too; results differ by rounding.

    An `nn.Conv2d` with zeros around its map takes `small_conv2d` where the output has few pixels
    (`MOST_PIXELS`), images and channels are many (`LEAST_BATCH`, `LEAST_CHANNELS`), and a border or a stride
    leaves something out. An `nn.Linear` in float32 is a convolution where products are slow. Layers whose
    `forward` is their own are left alone.
    """

    def __init__(self, module: nn.Module):
        self._taken = []
        for layer in module.modules():
            if "forward" in vars(layer):  # somebody else's
                continue
            forward = type(layer).forward
            if forward is nn.Linear.forward:
                self._taken.append((layer, partial(_linear, layer)))
            elif forward is nn.Conv2d.forward and type(layer)._conv_forward is nn.Conv2d._conv_forward:
                self._taken.append((layer, partial(_conv2d, layer)))

    def __enter__(self) -> None:
        for layer, forward in self._taken:
            layer.forward = forward

    def __exit__(self, *_) -> None:
        for layer, _ in self._taken:
            del layer.forward


def _conv2d(layer: nn.Conv2d, input: Tensor) -> Tensor:
    """The layer's output, by whichever kernel is quicker; what is unusual, or wrong, is left to PyTorch."""
    if layer.groups == 1 and layer.dilation == (1, 1) and _usual(layer, input):
        weight, step, border = layer.weight, layer.stride, layer.padding
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        room = (input.shape[i] + 2 * border[i - 2] - weight.shape[i] for i in (2, 3))
        rows, columns = (left // s + 1 for left, s in zip(room, step, strict=True))
        small = rows > 0 and columns > 0 and rows * columns <= MOST_PIXELS.get(dtype, 0)
        if small and (max(border) > 0 or max(step) > 1) and len(input) >= LEAST_BATCH[dtype]:
            # autocast casts for the operations it knows by name, and this is none of them
            return small_conv2d(input.to(dtype), weight, layer.bias, step, border)
    return nn.Conv2d.forward(layer, input)


def _usual(layer: nn.Conv2d, input: Tensor) -> bool:
    """A batch of maps on the CPU, enough channels that match, dtypes that fit, a border below the kernel's
    side (then no output pixel sees padding alone)."""
    weight, border = layer.weight, layer.padding
    if input.device.type != "cpu" or input.ndim != 4 or not len(input):
        return False
    if input.shape[1] != weight.shape[1] or min(weight.shape[:2]) < LEAST_CHANNELS:
        return False
    if layer.padding_mode != "zeros" or isinstance(border, str):
        return False
    if not all(0 <= b < k for b, k in zip(border, weight.shape[2:], strict=True)):
        return False
    dtypes = {each.dtype for each in (input, weight, layer.bias) if each is not None}
    return dtypes <= set(MOST_PIXELS) and (len(dtypes) == 1 or torch.is_autocast_enabled("cpu"))


def small_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """`F.conv2d` (dilation 1, groups 1), one matrix product for each output pixel.

    Args:
        x: floats (B, C, H, W), of any dtype and on any device.
        weight, bias: (O, C, kh, kw) and (O,) or None, in the dtype of `x` or to be cast to it. Quickest where
            the memory of `x` and `weight` is channels-last.
        stride: vertical and horizontal, >= 1.
        padding: of zeros, above and below, left and right; less than the kernel's side.
    Returns:
        (B, O, Ho, Wo), channels-last.
    Raises:
        ValueError: a padding that reaches the kernel's side.
    """
    batch, channels, height, width = x.shape
    out, _, *kernel = weight.shape
    if not all(0 <= border < side for border, side in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding {padding} reaches the sides {tuple(kernel)} of the kernel; use F.conv2d")
    flat = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # (B, H·W, C)
    pixels = flat.unbind(1)  # H·W of (B, C)
    rows, columns = (_reach(x.shape[i], weight.shape[i], stride[i - 2], padding[i - 2]) for i in (2, 3))
    meet = {a * kernel[1] + b for row in rows for _, a in row for column in columns for _, b in column}
    taps = weight.permute(0, 2, 3, 1).flatten(1, 2).unbind(1)  # kh·kw of (O, C)
    taps = [tap.to(x.dtype) if t in meet else None for t, tap in enumerate(taps)]
    bias = bias if bias is None else bias.to(x.dtype)
    made = []
    for row in rows:
        for column in columns:
            seen = [i * width + j for i, _ in row for j, _ in column]
            met = [a * kernel[1] + b for _, a in row for _, b in column]
            whole = len(seen) == height * width  # all of them, in their order: no copy
            inputs = flat.flatten(1) if whole else torch.cat([pixels[p] for p in seen], 1)  # (B, n·C)
            made.append(product(inputs, torch.cat([taps[t] for t in met], 1), bias))  # (B, O)
    return torch.stack(made, 1).view(batch, len(rows), len(columns), out).permute(0, 3, 1, 2)


def _reach(length: int, kernel: int, stride: int, padding: int) -> list[list[tuple[int, int]]]:
    """For each output pixel along one side: the (input pixel, tap) pairs that are not in the padding."""
    outputs = range((length + 2 * padding - kernel) // stride + 1)
    starts = (o * stride - padding for o in outputs)
    return [[(s + tap, tap) for tap in range(kernel) if 0 <= s + tap < length] for s in starts]


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, K) by weight (O, K), transposed: (B, O); in float32 by a 1 x 1 convolution over a row of pixels.

    The pixels are the rows of the larger matrix: a convolution copies its kernel into an order of its own,
    in each pass, but reads its map as it lies.
    """
    if x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if len(x) >= len(weight):
        return _over_row(x, weight, bias)
    found = _over_row(weight, x).t()  # (B, O), not contiguous
    return found if bias is None else found + bias


def _over_row(pixels: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """(n, K) and (m, K) -> (n, m): pixels with K channels each, under m kernels."""
    row = pixels.reshape(1, 1, *pixels.shape).permute(0, 3, 1, 2)  # (1, K, 1, n), channels-last
    taps = kernel.reshape(len(kernel), 1, 1, -1).permute(0, 3, 1, 2)  # (m, K, 1, 1)
    return F.conv2d(row, taps, bias).permute(0, 2, 3, 1).reshape(len(pixels), -1)


def _linear(layer: nn.Linear, input: Tensor) -> Tensor:
    """The layer's output; as a convolution where products are slow: two-dimensional, float32, no autocast."""
    given = [each for each in (input, layer.weight, layer.bias) if each is not None]
    plain = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in given)
    usual = input.ndim == 2 and input.shape[1] == layer.weight.shape[1]
    usual = usual and len(input) >= LEAST_BATCH[torch.float32]
    if plain and usual and products_are_slow() and not torch.is_autocast_enabled("cpu"):
        return product(input, layer.weight, layer.bias).contiguous()
    return nn.Linear.forward(layer, input)


@cache
def products_are_slow() -> bool:
    """Whether PyTorch's library for products in float32 is the slower one: on AMD's CPUs, named by Linux."""
    names = Path("/proc/cpuinfo")
    return names.exists() and "AuthenticAMD" in names.read_text()
