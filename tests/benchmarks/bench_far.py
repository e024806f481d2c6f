"""Training from a store that outgrows its device, beside the same images lying on it.

    ssl-lessons bench far [--images 40000] [--part 10] [--json FILE]

Synthetic images in a memory-mapped file, and an artificial budget of a tenth of them. `far` reads batches
ahead from the file; before each of its epochs the file is dropped from the system's cache, so that every
image comes from the disk. `far, not ahead` reads each batch when its step begins. `resident` has the images
in memory. They take turns in one process, epoch by epoch.
"""

import json
import os
import sys
import tempfile
from statistics import median

import bench_scale
import harness
import torch

from ssl_lessons import charts, feed, training
from ssl_lessons.devices import pick_device, pick_precision, prepare
from ssl_lessons.training import pretrain


def drop(path: str) -> None:
    """Forget the cached pages of a file, as far as the system allows."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(spec: dict) -> None:
    device = pick_device(spec["device"])
    prepare(device)
    batch, size = spec["batch"], spec["stored"]
    make = {"network": spec["network"], "size": spec["size"], "method": "SimCLR"}
    settings = {"epochs": 1, "batch_size": batch, "device": str(device), "progress": "none"}
    settings |= {"stop_on_collapse": False}
    rates: dict[str, list] = {"resident": [], "far": [], "far, not ahead": []}
    with tempfile.TemporaryDirectory() as folder:
        bench_scale.synthetic(spec["images"], size, folder)
        path = f"{folder}/images.bin"
        for turn in range(spec["rounds"] + 1):
            for name, found in rates.items():
                drop(path)  # before it is mapped: pages in use cannot be dropped
                store = bench_scale.reopen(path, spec["images"], size)
                budget = store.images.numel() // spec["part"]
                if name == "resident":
                    store.images = store.images.clone(memory_format=torch.preserve_format)
                    budget = None
                training.AHEAD = 0 if "not" in name else feed.AHEAD
                record = pretrain(bench_scale.build(make), store, budget=budget, **settings)
                if turn:  # the first is the warm-up
                    found.append(len(store) // batch * batch / record["history"][0]["seconds"])
                del store
    print(json.dumps(rates))


def main(argv=None) -> int:
    parser = harness.options(__doc__.splitlines()[0], images=40000, stored=48, size=32, batch=128, part=10)
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each (default: 3)")
    parser.add_argument("--network", default="conv4", help="conv4 (default), resnet18 or resnet50")
    args = parser.parse_args(argv)
    if args.child:
        child(json.loads(args.child))
        return 0
    names = ("images", "stored", "size", "batch", "part", "rounds", "network", "device")
    settings = {name: getattr(args, name) for name in names}
    settings["precision"] = pick_precision("auto", pick_device(args.device))
    report = {"machine": harness.machine(args.device), "settings": settings}
    report["bytes"] = args.images * 3 * args.stored**2
    report["budget"] = report["bytes"] // args.part
    rates = harness.in_process(__file__, settings)
    report["turns"] = rates
    report |= {name: median(found) for name, found in rates.items()}
    share = {name: report[name] / report["resident"] for name in rates}
    rows = [("", "images a second", "of resident")]
    rows += [(name, f"{report[name]:.0f}", f"{share[name]:.1%}") for name in rates]
    text = f"{report['bytes'] / 2**20:.0f} MiB of images, a budget of {report['budget'] / 2**20:.0f} MiB"
    title = f"{__doc__.splitlines()[0]} {text}"
    harness.publish(args, report, rows, title, lambda: figure(report, list(rates)))
    return 0


def figure(report: dict, names: list[str]):
    return charts.grouped({name: {"": report[name]} for name in names}, "images a second")


if __name__ == "__main__":
    sys.exit(main())
