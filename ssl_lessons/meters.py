"""What a run costs its device: peak memory, and energy where the device keeps count of it."""

import sys
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")  # Linux: energy counters of Intel and AMD processors


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


def joules(device: torch.device) -> float | None:
    """Energy that the device has used since some moment in the past, all programs together; None if unknown.

    The difference of two readings is what the time between them cost; a counter that starts over makes it
    negative. A GPU is read through NVML (`pip install nvidia-ml-py`), a CPU through Linux's RAPL counters,
    which many systems let only root read.
    """
    try:
        if device.type == "cuda":
            import pynvml

            pynvml.nvmlInit()
            identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(identity)
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3  # from mJ
        packages = [int((p / "energy_uj").read_text()) for p in RAPL.glob("intel-rapl:?")]
        return sum(packages) / 1e6 if packages else None
    except Exception:  # no driver, no library, no permission: a run goes on without the number
        return None
