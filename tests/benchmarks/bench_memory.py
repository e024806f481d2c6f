"""Peak memory of each method's training, and what of it the images, the weights and the activations take.

    ssl-lessons bench memory [--size 64] [--batch 128] [--json FILE] [--figure FILE]

Each method in a process of its own. Host memory is what the process came to hold of its own, from before the
method was built to the peak of its training (`harness.Peak`); on a GPU the device's own count is beside it.
Each is measured twice: with freed memory kept for the next step, as `pretrain` sets it on a CPU, and without.
"""

import json
import sys
from statistics import median

import bench_step
import harness

from ssl_lessons import charts, devices
from ssl_lessons.training import pretrain


def child(spec: dict) -> None:
    device = devices.pick_device(spec["device"])
    if not spec["keep"]:
        devices.keep_freed_memory = lambda: False
    devices.prepare(device)
    batch = spec["batch"]
    store = harness.store_for(spec["data"], spec["stored"])
    some = store.subset(range(spec["steps"] * batch))
    settings = {"batch_size": batch, "device": str(device), "precision": spec["precision"]}
    settings |= {"progress": "none", "stop_on_collapse": False}
    with harness.Peak() as peak:
        method = bench_step.build(spec["method"], spec["network"], spec["size"])
        record = pretrain(method, some, epochs=3, **settings)
    weights = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    learnt = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    copies = 3 if method.recipe.optimizer.startswith("adam") else 2  # the gradient; one moment, or Adam's two
    lying = some if device.type == "cuda" else store  # what is sent there; the whole file is mapped
    found = {
        "host": peak.bytes,
        "device": record["history"][-1]["peak_memory"] if device.type == "cuda" else None,
        "images": lying.images.numel(),
        "weights": weights,
        "gradients": copies * learnt,
        "seconds": [row["seconds"] / spec["steps"] for row in record["history"][1:]],
    }
    print(json.dumps(found))


def main(argv=None) -> int:
    parser = harness.options(__doc__.splitlines()[0], size=64, stored=80, batch=128, steps=4)
    parser.add_argument("--rounds", type=int, default=2, help="processes for each figure (default: 2)")
    parser.add_argument("--methods", nargs="+", default=list(bench_step.METHODS), choices=bench_step.METHODS)
    parser.add_argument("--precision", default="auto", choices=("auto", *devices.PRECISIONS))
    parser.add_argument("--network", default="resnet18", help="conv4, resnet18 (default) or resnet50")
    parser.add_argument("--data", default="imagenette", help="imagenette (default), imagewoof or shapes")
    args = parser.parse_args(argv)
    if args.child:
        child(json.loads(args.child))
        return 0
    device = devices.pick_device(args.device)
    names = ("size", "stored", "steps", "network", "data", "device")
    settings = {name: getattr(args, name) for name in names}
    settings |= {"precision": devices.pick_precision(args.precision, device)}
    report = {"machine": harness.machine(args.device), "settings": {**settings, "batch": args.batch}}
    report["rows"] = []
    for method in args.methods:
        batch = args.batch // 2 if method == "relational reasoning" else args.batch
        row: dict = {"method": method, "batch": batch}
        spec = {**settings, "method": method, "batch": batch}
        turns = {"kept": [], "given_back": []}
        for _ in range(args.rounds):
            for mode, found in turns.items():
                found.append(harness.in_process(__file__, {**spec, "keep": mode == "kept"}))
        for mode, found in turns.items():
            seconds = [one for each in found for one in each.pop("seconds")]
            row[mode] = {**found[-1], "host": max(each["host"] for each in found), "step": median(seconds)}
        row["gain"] = row["given_back"]["step"] / row["kept"]["step"] - 1
        report["rows"].append(row)
        print(f"# {row}", file=sys.stderr, flush=True)
    heads = ("images", "weights", "gradients, moments", "host peak", "given back", "device peak")
    rows = [("MiB", *heads, "a step, s", "given back, s")]
    for row in report["rows"]:
        kept, back = row["kept"], row["given_back"]
        sizes = [kept[name] for name in ("images", "weights", "gradients", "host")]
        shown = [f"{size / 2**20:.0f}" if size else "–" for size in (*sizes, back["host"], kept["device"])]
        rows.append((row["method"], *shown, f"{kept['step']:.3f}", f"{back['step']:.3f}"))
    harness.publish(args, report, rows, __doc__.splitlines()[0], lambda: figure(report))
    return 0


def figure(report: dict):
    """What a run adds; the images' file lies in the system's cache (or on the device) beside it."""
    bars = {}
    for row in report["rows"]:
        kept = row["kept"]
        most = kept["device"] or kept["host"] + kept["images"]
        parts = {"images": kept["images"], "weights": kept["weights"]}
        parts["gradients, moments"] = kept["gradients"]
        parts["activations and the rest"] = max(0, most - sum(parts.values()))
        bars[row["method"]] = {name: size / 2**20 for name, size in parts.items()}
    return charts.stacked(bars, "peak memory of training, images included (MiB)")


if __name__ == "__main__":
    sys.exit(main())
