"""Peak memory of each method's training, and what of it the images, the weights and the gradients take.

    ssl-lessons bench memory [--size 64] [--batch 128] [--json FILE]

Each method in a process of its own. Host memory is what the process came to hold of its own, from before the
method was built to the peak of its training (`harness.Peak`); on a GPU the device's own count is beside it.
"""

import json
import sys
from statistics import median

import bench_step
import harness

from ssl_lessons.devices import pick_device, pick_precision
from ssl_lessons.training import pretrain


def child(spec: dict) -> None:
    device = pick_device(spec["device"])
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
    on_device = (
        some if device.type == "cuda" else store
    )  # a GPU gets these; on a CPU the whole file is mapped
    sizes = {
        "host": peak.bytes,
        "device": record["history"][-1]["peak_memory"] if device.type == "cuda" else None,
        "images": on_device.images.numel(),
        "weights": weights,
        "gradients": copies * learnt,
        "step": median(row["seconds"] / spec["steps"] for row in record["history"][1:]),
    }
    print(json.dumps(sizes))


def table(report: dict) -> str:
    s = report["settings"]
    rows = []
    for row in report["rows"]:
        sizes = [row[name] for name in ("images", "weights", "gradients", "host", "device")]
        shown = [f"{size / 2**20:,.0f}" if size else "–" for size in sizes]
        rows.append((row["method"], *shown, f"{row['step']:.3f}"))
    heads = ("MiB", "images", "weights", "gradients, moments", "added by the run", "device peak", "a step, s")
    text = (
        f"Peak memory of training, {s['data']} stored at {s['stored']} px, {s['network']}, views of "
        f"{s['size']} px, batch {s['batch']} {harness.HALF}, {s['precision']}, seed 0; the images' "
        "file lies in the system's cache beside it. Moments: SGD's momentum, or the two of Adam, with "
        f"which relational reasoning trains. {harness.where(report)}"
    )
    return f"{text}\n\n{harness.table(heads, rows)}"


def main(argv=None) -> int:
    parser = harness.options(__doc__.splitlines()[0], size=64, stored=80, batch=128, steps=4)
    parser.add_argument("--rounds", type=int, default=2, help="processes for each figure (default: 2)")
    parser.add_argument("--methods", nargs="+", default=list(bench_step.METHODS), choices=bench_step.METHODS)
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16")
    parser.add_argument("--network", default="resnet18", help="conv4, resnet18 (default) or resnet50")
    parser.add_argument("--data", default="imagenette", help="imagenette (default), imagewoof or shapes")
    args = parser.parse_args(argv)
    if args.child:
        child(json.loads(args.child))
        return 0
    names = ("size", "stored", "steps", "network", "data", "device")
    settings = {name: getattr(args, name) for name in names}
    settings["precision"] = pick_precision(args.precision, pick_device(args.device))
    report = {"machine": harness.machine(args.device), "settings": {**settings, "batch": args.batch}}
    report["rows"] = []
    for method in args.methods:
        batch = args.batch // 2 if method == "relational reasoning" else args.batch
        spec = {**settings, "method": method, "batch": batch}
        turns = [harness.in_process(__file__, spec) for _ in range(args.rounds)]
        row = {"method": method, "batch": batch, **turns[-1]}
        row["host"] = max(turn["host"] for turn in turns)
        row["step"] = median(turn["step"] for turn in turns)
        report["rows"].append(row)
        print(f"# {row}", file=sys.stderr, flush=True)
    harness.publish(args, report, table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
