"""What a machine has, what the lessons would do with it, and what is broken.

A file of its own because it must also work where torch does not: nothing heavy is imported at the top.
"""

import os
import platform
import shutil
import sys
from importlib import metadata, util
from typing import NamedTuple

NOTEBOOK_PACKAGES = ("jupyterlab", "papermill", "nbconvert", "ipykernel")


class Finding(NamedTuple):
    """One line of the report; `status` is "ok", "warning" or "broken", and only the last stops a lesson."""

    status: str
    name: str
    detail: str


def examine() -> list[Finding]:
    """All findings about this Python and this machine, in a second or two; never raises for what it finds."""
    findings = [_python(), Finding("ok", "cpu", f"{os.cpu_count()} cores, {_memory()} of memory"), _torch()]
    if findings[-1].status == "ok":
        findings += _machine()
    missing = [name for name in NOTEBOOK_PACKAGES if not util.find_spec(name)]
    notebooks = Finding("warning", "notebooks", f"missing: pip install {' '.join(missing)}")
    return [*findings, _fastprogress(), notebooks if missing else Finding("ok", "notebooks", "ready")]


def _python() -> Finding:
    good = sys.version_info >= (3, 10)
    detail = f"{platform.python_version()}, {platform.platform()}"
    return (
        Finding("ok", "python", detail)
        if good
        else Finding("broken", "python", f"{detail}; 3.10 is the oldest")
    )


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return "an unknown amount"


def _torch() -> Finding:
    """Whether torch and torchvision are a pair: a mismatched torchvision lacks its compiled operators."""
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        remedy = "install them together: pip install --upgrade torch torchvision"
        return Finding("broken", "torch", f"torch and torchvision are not a pair ({error}); {remedy}")
    return Finding("ok", "torch", f"{torch.__version__} with torchvision {torchvision.__version__}")


def _machine() -> list[Finding]:
    """What needs a working torch to be told: device, profile, data."""
    import torch

    from ssl_lessons import images, lab, training

    device = training.pick_device("auto")
    detail = f"{device}, precision {training.pick_precision('auto', device)}"
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        bf16 = "computes bf16" if card.major >= 8 else "no bf16, so fp16 with loss scaling"
        detail += f"; {card.name}, {card.total_memory / 2**30:.1f} GiB, {bf16}"
    findings = [Finding("ok", "device", detail)]
    try:
        findings.append(Finding("ok", "profile", f"{lab.pick_profile()} is what 'auto' means here"))
    except ValueError as error:  # SSL_LESSONS_PROFILE names none
        findings.append(Finding("broken", "profile", str(error)))
    root = images.data_root()
    there = root if root.exists() else next(place for place in root.parents if place.exists())
    try:
        where = (
            f"{root}{'' if root.exists() else ' (not there yet)'}, decoded images in {images.cache_root()}"
        )
        findings.append(Finding("ok", "data root", where))
    except (OSError, RuntimeError) as error:  # nowhere to write
        findings.append(Finding("broken", "data root", str(error)))
    free = shutil.disk_usage(there).free / 2**30
    return [*findings, Finding("ok" if free > 2 else "warning", "disk", f"{free:.1f} GiB free")]


def _fastprogress() -> Finding:
    try:
        release = metadata.version("fastprogress")
    except metadata.PackageNotFoundError:
        return Finding("broken", "fastprogress", "missing: pip install fastprogress")
    numbers = tuple(int(part) for part in release.split(".")[:3] if part.isdigit())
    if (1, 1, 0) <= numbers < (1, 1, 5):
        return Finding(
            "broken", "fastprogress", f"{release} fails on Colab: pip install --upgrade fastprogress"
        )
    return Finding("ok", "fastprogress", release)
