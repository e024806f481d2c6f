"""Where a run computes and in which arithmetic, and what makes it fast there."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h


class TrainingError(Exception):
    """A run that cannot start or go on; the message says why, what is kept, and what to try."""


def pick_device(name: str = "auto") -> torch.device:
    """The device meant by a name; "auto" is the GPU where there is one (CUDA's or a Mac's), else the CPU, as
    `accelerate launch --cpu` wants it. TrainingError: a name that PyTorch does not know, a GPU that it does
    not see."""
    if name == "auto":
        if parse_flag_from_env("ACCELERATE_USE_CPU"):
            return torch.device("cpu")
        if torch.cuda.is_available():
            return torch.device("cuda")
        # torch 2.4 has no autocast on a Mac's GPU, which the losses switch off
        mac = torch.backends.mps.is_available() and torch.amp.is_autocast_available("mps")
        return torch.device("mps" if mac else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(f"device {name!r} is not known; choose auto, cpu, cuda, cuda:0 or mps") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count()}
    counts["mps"] = int(torch.backends.mps.is_available())
    if (device.index or 0) >= counts.get(device.type, 0):
        there = f"{counts.get(device.type) or 'no'} {device.type}"
        raise TrainingError(f"PyTorch sees {there} for device {name!r}; choose auto or cpu")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """The arithmetic for the passes: "fp32", "bf16" or "fp16". "auto" is what the device computes natively:
    bf16 on GPUs from compute capability 8 and on CPUs with AVX512-BF16; fp16 with loss scaling on older GPUs
    (a T4 only emulates bf16); else fp32."""
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
        return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"
    if name not in PRECISIONS:
        raise TrainingError(f"precision {name!r} is not known; choose one of: auto, {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type == "cpu":
        raise TrainingError("precision 'fp16' needs a GPU; choose fp32 or bf16 on a CPU")
    return name


def _cpu_has_bf16() -> bool:
    flags = Path("/proc/cpuinfo")  # elsewhere than on Linux: fp32, which is never wrong
    return flags.exists() and "avx512_bf16" in flags.read_text()


def autocast(device: torch.device, precision: str):
    """The context in which forward passes run at that precision, also within an autocast of the caller's."""
    if precision == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def prepare(device: torch.device) -> None:
    """Make training on this device faster, for the whole process; no result changes beyond rounding. On a
    GPU, cuDNN tries its algorithms once for each shape. On a CPU with glibc, a step's memory is kept for the
    next, which would pay again for pages that must be mapped and cleared."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    elif device.type == "cpu" and sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library, such as musl
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            mallopt(_M_TRIM_THRESHOLD, -1)  # never


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the most that tensors held on a GPU, or this whole process on a CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
