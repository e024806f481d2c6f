"""How time and memory grow with images, batch, view size, queue and K views: slopes, not points.

    ssl-lessons bench scale [--series images batch] [--json FILE]

Synthetic images (random bytes in a memory-mapped file), each point in a process of its own: `pretrain` warms
up, then trains on. Memory is the most that the process held of its own above what it held before the images
were opened; pages of the images' file are not counted, they are the system's cache. A slope is that of a
straight line through the logarithms: 1 is linear, 0 is flat. A point is the smallest of its processes (and of
their epochs): what else the machine does can only add.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
import torch

from ssl_lessons import networks
from ssl_lessons.devices import pick_device, pick_precision
from ssl_lessons.images import ImageStore
from ssl_lessons.methods.moco import MoCo
from ssl_lessons.methods.relational import Relational
from ssl_lessons.methods.simclr import SimCLR
from ssl_lessons.training import pretrain

SMALL = {"network": "conv4", "size": 32, "batch": 128, "steps": 8, "epochs": 2}
LARGE = {"network": "resnet18", "size": 64, "batch": 64, "steps": 3, "epochs": 2}
# what grows, its label, its values, and what stays the same
SERIES = {
    "images": ("images", [1000, 3000, 10_000, 30_000, 100_000], {**SMALL, "method": "SimCLR", "epochs": 1}),
    "batch": ("batch (images)", [16, 32, 64, 128, 256], {**LARGE, "method": "SimCLR"}),
    "size": ("side of a view (pixels)", [32, 64, 96, 128], {**LARGE, "method": "SimCLR", "batch": 32}),
    "queue": ("queue length K (keys)", [1024, 4096, 16_384, 65_536], {**SMALL, "method": "MoCo"}),
    "views": (
        "views K of an image",
        [2, 4, 8, 16, 32],
        {**SMALL, "method": "Relational", "batch": 32, "steps": 3},
    ),
}


def synthetic(count: int, size: int, folder: str) -> ImageStore:
    """Random bytes in a file, opened as a dataset's cache is: a memory map, read as it is needed."""
    path, shape = Path(folder) / "images.bin", (count, size, 3, size)
    generator = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, count, 2000):
            some = (min(2000, count - start), *shape[1:])
            file.write(generator.integers(0, 256, some, np.uint8).tobytes())
    rows = torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape))
    return ImageStore(rows.transpose(1, 2), None, (), "synthetic", "train", f"{count}-{size}")


def build(spec: dict):
    torch.manual_seed(0)
    network = networks.build(
        spec["network"], spec["size"], "imagenet" if spec["network"] != "conv4" else None
    )
    if spec["method"] == "MoCo":
        return MoCo(network, image_size=spec["size"], recipe="short", queue=spec["queue"])
    if spec["method"] == "Relational":
        return Relational(network, image_size=spec["size"], recipe="short", views=spec["views"])
    return SimCLR(network, image_size=spec["size"], recipe="short")


def child(spec: dict) -> None:
    device = pick_device(spec["device"])
    method = build(spec)
    images = spec.get("images") or spec["steps"] * spec["batch"]
    settings = {"batch_size": spec["batch"], "device": str(device), "progress": "none"}
    settings |= {"stop_on_collapse": False}
    with tempfile.TemporaryDirectory() as folder, harness.Peak() as peak:
        store = synthetic(images, spec["size"], folder)
        some = store.subset(range(2 * spec["batch"]))
        pretrain(method, some, epochs=1, **settings)  # warm-up: first calls cost more
        record = pretrain(method, store, epochs=spec["epochs"], **settings)
    seconds = min(row["seconds"] for row in record["history"])
    whole = spec.get("images")  # an epoch; else a step
    memory = record["history"][-1]["peak_memory"] if device.type == "cuda" else peak.bytes
    print(json.dumps({"seconds": seconds if whole else seconds / spec["steps"], "bytes": memory}))


def slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit([math.log(one) for one in x], [math.log(max(1e-9, one)) for one in y], 1)[0])


def main(argv=None) -> int:
    parser = harness.options(__doc__.splitlines()[0], rounds=2)
    parser.add_argument("--series", nargs="+", default=list(SERIES), choices=list(SERIES))
    parser.add_argument("--most", type=float, default=math.inf, help="leave out points above this value")
    args = parser.parse_args(argv)
    if args.child:
        child(json.loads(args.child))
        return 0
    settings = {"rounds": args.rounds, "precision": pick_precision("auto", pick_device(args.device))}
    report = {"machine": harness.machine(args.device), "settings": settings, "series": []}
    for name in args.series:
        label, values, fixed = SERIES[name]
        points: dict[float, list] = {value: [] for value in values if value <= args.most}
        for _ in range(args.rounds):
            for value, found in points.items():
                spec = {**fixed, name: value, "device": args.device}
                found.append(harness.in_process(__file__, spec))
                print(f"# {name} {value}: {found[-1]}", file=sys.stderr, flush=True)
        series = {"name": name, "label": label, "timed": "an epoch" if name == "images" else "a step"}
        series |= {"fixed": fixed, "x": list(points)}
        for what in ("seconds", "bytes"):
            series[what] = [min(one[what] for one in found) for found in points.values()]
        series["slopes"] = {what: slope(series["x"], series[what]) for what in ("seconds", "bytes")}
        report["series"].append(series)
    harness.publish(args, report, table(report))
    return 0


def table(report: dict) -> str:
    """How time and memory grow: first and last value, and the exponent between them."""
    units = {"network": "{}", "size": "{} px", "batch": "batch {}"}
    rows = []
    for one in report["series"]:
        ends = f"{one['x'][0]:,} → {one['x'][-1]:,}"
        time = f"{one['timed']}: {one['seconds'][0]:.2f} → {one['seconds'][-1]:.2f}"
        memory = f"{one['bytes'][0] / 2**20:,.0f} → {one['bytes'][-1] / 2**20:,.0f}"
        slopes = one["slopes"]
        fixed = [unit.format(one["fixed"][name]) for name, unit in units.items() if name != one["name"]]
        exponents = (f"{slopes['seconds']:.2f}", f"{slopes['bytes']:.2f}")
        rows.append((one["label"], ends, ", ".join(fixed), time, exponents[0], memory, exponents[1]))
    heads = ("what grows", "from → to", "of", "seconds", "exponent", "memory added, MiB", "exponent")
    s = report["settings"]
    text = (
        f"How a run grows, synthetic images, {s['precision']}, seed 0 (1 is linear, 0 flat); the smallest of "
        f"{s['rounds']} processes. {harness.where(report)}"
    )
    return f"{text}\n\n{harness.table(heads, rows)}"


if __name__ == "__main__":
    sys.exit(main())
