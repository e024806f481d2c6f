"""Batches of a store for the loop: at hand where the images lie on the device, else read ahead.

A store that outgrows its device (a GPU's memory; a CPU's RAM) stays in its memory-mapped file, or in pinned
memory. One thread then reads the next batches while the device works on this one, so that a step finds its
images there and need not wait for the disk or the copy. (From a quick disk, and where reading and training
share a CPU's cores, there is little to wait for: `ssl-lessons bench far` measures it.)
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ssl_lessons.images import ImageStore, ram

AHEAD = 2  # batches: one that is being copied, one that is being read


def resident(store: ImageStore, device: torch.device, budget: int | None = None) -> bool:
    """Whether a store's images lie on the device: on a CPU, whether they fit into `budget` bytes (None: half
    of the RAM, where the system's file cache keeps them)."""
    if device.type != "cpu":
        return store.images.device.type == device.type
    return store.images.numel() <= (ram() // 2 if budget is None else budget)


def batches(
    store: ImageStore, order: Tensor, batch_size: int, device: torch.device, ahead: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, images) of each whole batch of `order`: int64 (B,) and uint8 (B, 3, H, W) on `device`.

    Args:
        order: int64 (N,), the images' numbers; a last partial batch is left out.
        ahead: how many batches a thread reads ahead; 0 reads each when it is asked for. The batches are the
            same either way.
    Raises:
        OSError: whatever reading raised, in the step that needed that batch.
    """
    parts = order.split(batch_size)[: len(order) // batch_size]
    if not ahead:
        for rows in parts:
            yield rows, store.batch(rows, device)
        return
    pinned = device.type == "cuda"
    stream = torch.cuda.Stream(device) if pinned else None
    source = store.images.transpose(1, 2).numpy()  # (N, H, 3, W), the file's own memory

    def fetch(rows: Tensor):
        images = torch.empty(len(rows), *source.shape[1:], dtype=torch.uint8, pin_memory=pinned)
        for place, row in zip(images.numpy(), rows.tolist(), strict=True):  # of whatever layout, copied once
            place[...] = source[row]
        if not pinned:
            return images, None
        with torch.cuda.stream(stream):  # copied beside the computation, not in line with it
            images = images.to(device, non_blocking=True)
            return images, stream.record_event()

    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(fetch, rows) for rows in parts[:ahead])
        try:
            for step, rows in enumerate(parts):
                images, copied = waiting.popleft().result()
                if step + ahead < len(parts):
                    waiting.append(pool.submit(fetch, parts[step + ahead]))
                if copied is not None:
                    current = torch.cuda.current_stream(device)
                    current.wait_event(copied)
                    images.record_stream(current)  # its memory is not reused before this step is done with it
                yield rows, images.transpose(1, 2)
        finally:  # the loop was left early: read no more
            for future in waiting:
                future.cancel()
