"""What the tests train on: noise, a network of four narrow layers, MoCo with a short queue."""

import os
from pathlib import Path

import torch

from ssl_lessons import networks
from ssl_lessons.images import ImageStore
from ssl_lessons.methods.moco import MoCo

HERE = Path(__file__).resolve().parent
# of processes that a test starts
ENV = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}", "OMP_NUM_THREADS": "1"}
CPU = {"device": "cpu", "precision": "fp32", "progress": "none"}


def noise(count=24, size=20, labels=True) -> ImageStore:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, size, 3, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3 if labels else None
    return ImageStore(images.transpose(1, 2), labels, ("a", "b", "c"), "noise", "train", f"{count}-{size}")


def moco(start=0, recipe="short", **fields) -> MoCo:
    torch.manual_seed(start)
    fields = {"queue": 20, "head": (16, 8), "temperature": 0.2, "batch_size": 8, "epochs": 2, **fields}
    return MoCo(networks.Conv4((4, 4, 8, 8)), image_size=16, recipe=recipe, **fields)


def losses(record) -> list[float]:
    return [row["loss"] for row in record["history"]]
