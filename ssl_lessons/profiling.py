"""Where the time of a training step goes: `pretrain` itself under PyTorch's profiler."""

import copy
import os
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from ssl_lessons.devices import PARTS, keep_freed_memory, pick_device
from ssl_lessons.images import ImageStore
from ssl_lessons.methods.base import Method
from ssl_lessons.training import pretrain

# What the operations of the forward and backward pass are, by words in PyTorch's names for them.
KINDS = {
    "convolution": ("convolution", "conv2d"),
    "normalisation": ("batch_norm", "group_norm", "layer_norm"),
    "activation, pooling": ("relu", "clamp_min", "threshold", "pool", "mean"),
    "linear, loss": ("mm", "linear", "softmax", "nll_loss", "cross_entropy", "cosine", "norm", "sigmoid"),
}
OTHER = "other operations"
# Bytes that a CPU's process takes up and frees before it is watched, in four blocks, where freed memory is
# kept. What the profiler notes down breaks the blocks that a step would use again; new ones then lie here,
# and not on pages that the kernel must first clear, which would be counted as the operation's time.
ROOM = 1 << 30


def step_profile(
    method: Method,
    store: ImageStore,
    *,
    steps: int = 4,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, dict[str, float]]:
    """Milliseconds of a training step by part, and of its passes by kind of operation.

    A copy of the method is trained for one epoch of `steps` batches to warm up, then for one under the
    profiler, which slows it by a few per cent; the method itself is left alone.

    Args:
        store: at least `steps` batches of images.
    Returns:
        {"parts": {name: ms}, "kinds": {name: ms}}. Parts are `devices.PARTS` and "rest", what the loop itself
        takes; together they are the whole step. Kinds split the time of forward and backward by what the
        operations are: `KINDS` and `OTHER`. On a GPU a part's time is that of its kernels (see
        `devices.part`), a kind's that of its kernels alone.
    Raises:
        ValueError: fewer images than that.
    """
    device = pick_device(device)
    batch_size = batch_size or min(method.recipe.batch_size, len(store) // steps)
    if len(store) < steps * batch_size:
        raise ValueError(
            f"{store.name} has {len(store)} images, less than {steps} steps of {batch_size}; lower one"
        )
    learner, some = copy.deepcopy(method), store.subset(range(steps * batch_size))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    watch = profile(activities=activities, acc_events=True)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else a line of its log lands in a lesson at each start
    started: list[bool] = []

    def between_epochs(_encoder) -> dict:
        if not started:
            started.append(True)
            if device.type == "cpu" and keep_freed_memory():
                blocks = [torch.ones(ROOM // 4, dtype=torch.uint8) for _ in range(4)]
                del blocks
            watch.start()
        return {}

    settings = {"batch_size": batch_size, "device": str(device), "precision": precision}
    try:
        record = pretrain(
            learner,
            some,
            epochs=2,
            monitor=between_epochs,
            progress="none",
            stop_on_collapse=False,
            **settings,
        )
    finally:
        if started:
            watch.stop()
    whole = 1e3 * record["history"][-1]["seconds"] / steps
    return _account(watch.events(), whole, steps, device)


def _account(events, whole: float, steps: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Sum the profiler's events (times in microseconds) into parts and kinds, in ms a step."""
    parts = dict.fromkeys(PARTS, 0.0)
    spans = []  # of the passes, on the clock that all events share
    for event in events:
        name = event.name.removeprefix("step: ")
        if event.name.startswith("step: ") and event.device_type == torch.autograd.DeviceType.CPU:
            parts[name] += event.cpu_time_total / 1e3 / steps
            if name in ("forward", "backward"):
                spans.append((event.time_range.start, event.time_range.end))
    parts["rest"] = max(0.0, whole - sum(parts.values()))
    kinds: dict[str, float] = defaultdict(float)
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU or event.name.startswith("step: "):
            continue
        if any(start <= event.time_range.start <= end for start, end in spans):
            own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
            kinds[_kind(event.name)] += own / 1e3 / steps
    return {"parts": parts, "kinds": {name: kinds[name] for name in (*KINDS, OTHER)}}


def _kind(operation: str) -> str:
    words = operation.lower()
    return next((kind for kind, marks in KINDS.items() if any(mark in words for mark in marks)), OTHER)
