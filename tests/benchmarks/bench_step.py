"""A training step of each method: ours beside the bare model, lightly and byol-pytorch, end to end.

    ssl-lessons bench step [--methods SimCLR BYOL] [--size 64] [--rounds 2] [--json FILE]

The same ResNet-18 with the same heads, batch and view size for all. Ours is `pretrain` itself, epoch by
epoch (read, views, passes, optimiser, moving average). The bare model is the method's own networks, forward
and backward on random numbers that lie on the device already, without views, loss, optimiser or moving
average: it takes its turns between our epochs. lightly reads the JPEG files with its transforms in
`--workers` loader processes (default: one a core); byol-pytorch gets tensors that are ready. A peer that is
not installed, or a dataset without files, is left out with the reason.

The parts of a step are marked in a step that is written out here (`step_parts`) and read off PyTorch's
profiler, which slows a step by a few per cent.
"""

import json
import sys
import time
from contextlib import contextmanager
from statistics import median

import harness
import peers
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from ssl_lessons import fast, images, networks, policies
from ssl_lessons.devices import pick_device
from ssl_lessons.methods.byol import BYOL
from ssl_lessons.methods.moco import MoCo
from ssl_lessons.methods.relational import Relational
from ssl_lessons.methods.simclr import SimCLR
from ssl_lessons.methods.simsiam import SimSiam
from ssl_lessons.optim import build_optimizer
from ssl_lessons.training import pretrain

# With lightly's heads, so that both compute the same; 64 images in four views are as many as 128 in two.
MOCO = {"policy": policies.MOCO_V2, "head": (2048, 128), "splits": 1, "symmetric": True, "lr_batch": 256}
METHODS = {
    "SimCLR": (SimCLR, {}),
    "MoCo v2": (MoCo, MOCO),
    "BYOL": (BYOL, {}),
    "SimSiam": (SimSiam, {"head": (2048, 2048, 2048)}),
    "relational reasoning": (Relational, {"views": 4}),
}
WARM_UP = 2  # steps
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PARTS = ("read", "views", "forward", "backward", "optimizer", "after_step")
DOES = {"lightly": ("SimCLR", "MoCo v2", "BYOL", "SimSiam"), "byol-pytorch": ("BYOL",)}


def build(name: str, network: str, size: int):
    torch.manual_seed(0)
    make, fields = METHODS[name]
    stem = "imagenet" if network.startswith("resnet") else None
    return make(networks.build(network, size, stem), image_size=size, recipe="small_data", **fields)


def forward(method: nn.Module, views: list) -> torch.Tensor:
    """What the method's networks do in one step, and a scalar to go back from."""
    if isinstance(method, SimCLR):
        outputs = [method.projector(method.encoder(torch.cat(views)))]
    elif isinstance(method, Relational):
        features = method.encoder(torch.cat(views))
        pairs = len(views) * (len(views) - 1) * len(views[0])
        row = torch.arange(pairs, device=features.device) % len(features)
        outputs = [method.head.score(features, row, row.flip(0))]
    elif isinstance(method, MoCo):
        outputs = [method.projector(method.encoder(view)) for view in views]
        with torch.no_grad():
            _ = [method.key_projector(method.key_encoder(view)) for view in views]
    else:
        outputs = [method.predictor(method.projector(method.encoder(view))) for view in views]
        if isinstance(method, BYOL):
            _ = [method.targets(view) for view in views]
    return sum(output.float().square().mean() for output in outputs)


def bare_step(method, batch: int, context, device, steps: int) -> float:
    """Seconds of a step, the mean of some; a GPU is waited for at the end of them, as of an epoch of ours."""
    count = len(method.policies)
    shape = (batch, 3, method.image_size, method.image_size)
    views = [torch.randn(shape).to(device, memory_format=torch.channels_last) for _ in range(count)]
    learnt = [p for p in method.parameters() if p.requires_grad]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        with context():
            loss = forward(method, views)
        for parameter in learnt:
            parameter.grad = None
        loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / steps


def ours(spec: dict, device) -> dict:
    """Our epochs and the bare model's turns between them, in one process."""
    method = build(spec["method"], spec["network"], spec["size"])
    bare = build(spec["method"], spec["network"], spec["size"])
    bare.to(device, memory_format=torch.channels_last).train()
    batch = spec["batch"]
    store = harness.store_for(spec["data"], spec["stored"], spec["steps"] * batch)
    seconds: dict[str, list] = {"bare": []}

    def bare_turn(_encoder) -> dict:
        context = context_of(device, spec["precision"])
        seconds["bare"].append(bare_step(bare, batch, context, device, spec["steps"]))
        return {}

    settings = {"device": str(device), "precision": spec["precision"], "progress": "none"}
    settings |= {"epochs": 1 + spec["turns"], "batch_size": batch, "stop_on_collapse": False}
    record = pretrain(method, store, monitor=bare_turn, **settings)
    seconds["ours"] = [row["seconds"] / spec["steps"] for row in record["history"]]
    result = {name: turns[1:] for name, turns in seconds.items()}  # the first turn of both is the warm-up
    result["parts"] = step_parts(method, store, batch, device, spec["precision"])
    return result


def step_parts(method, store, batch: int, device, precision: str) -> dict[str, float]:
    """Milliseconds of each of `PARTS` in a step, the mean of up to three.

    On a GPU each part waits for its kernels: the shares are true, and the step as a whole is slower.
    """
    optimizer = build_optimizer(method)
    generator = torch.Generator().manual_seed(0)
    context = context_of(device, precision)

    @contextmanager
    def part(name: str):
        with record_function(f"step: {name}"):
            yield
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def step(rows):
        with part("read"):
            batch_of_images = store.batch(rows, device)
        with part("views"):
            views = method.augment(batch_of_images, generator)
        with part("forward"), context():
            loss, _ = method(views)
        with part("backward"):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with part("optimizer"):
            optimizer.step()
        with part("after_step"):
            method.after_step(0.5)

    method.train()
    batches = torch.arange(len(store)).split(batch)[:3]
    with fast.small_maps(method, device, precision):  # as in `pretrain`
        for rows in batches:  # warm-up
            step(rows)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for rows in batches:
                step(rows)
    totals = {event.key: event.cpu_time_total for event in profiler.key_averages()}  # microseconds
    return {name: totals[f"step: {name}"] / 1e3 / len(batches) for name in PARTS}


def lightly(spec: dict, device) -> dict:
    folder = images.find(f"{spec['data']}2-160")
    if folder is None:
        return {"skipped": f"no files of {spec['data']}"}
    network = networks.tap(networks.build(spec["network"], spec["size"], "imagenet"), None, spec["size"])
    steps = spec["steps"] * spec["turns"]
    sizes = (network.width, spec["size"], spec["batch"], folder / "train", spec["workers"])
    context = context_of(device, spec["precision"])
    return {"lightly": peers.lightly_steps(spec["method"], network, *sizes, device, context, steps, WARM_UP)}


def byol_pytorch(spec: dict, device) -> dict:
    pixels = harness.store_for(spec["data"], spec["size"], spec["batch"]).images.contiguous().float() / 255
    network = networks.build(spec["network"], spec["size"], "imagenet")
    steps, context = spec["steps"] * spec["turns"], context_of(device, spec["precision"])
    seconds = peers.byol_pytorch_steps(
        network, "avgpool", spec["size"], pixels.to(device), device, context, steps, WARM_UP
    )
    return {"byol-pytorch": seconds}


def context_of(device, precision):
    """What makes an autocast context; a new one each time, since it is entered step by step."""
    return lambda: torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


CHILDREN = {"ours": ours, "lightly": lightly, "byol-pytorch": byol_pytorch}


def child(spec: dict) -> None:
    device = pick_device(spec["device"])
    try:
        found = CHILDREN[spec["who"]](spec, device)
    except ModuleNotFoundError as error:
        found = {"skipped": f"not installed ({error.name})"}
    print(json.dumps(found))


def main(argv=None) -> int:
    parser = harness.options(__doc__.splitlines()[0], size=64, stored=80, batch=128, steps=5, turns=2)
    parser.add_argument("--rounds", type=int, default=2, help="processes for each figure (default: 2)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--network", default="resnet18", help="conv4, resnet18 (default) or resnet50")
    parser.add_argument("--data", default="imagenette", help="imagenette (default), imagewoof or shapes")
    parser.add_argument("--workers", type=int, default=harness.cores(), help="lightly's loader processes")
    parser.add_argument("--peers", nargs="*", default=["lightly", "byol-pytorch"], help="none: only ours")
    args = parser.parse_args(argv)
    if args.child:
        child(json.loads(args.child))
        return 0
    shared = ("network", "data", "size", "stored", "workers", "steps", "turns", "device")
    settings = {name: getattr(args, name) for name in shared}
    report = {"machine": harness.machine(args.device), "settings": {**settings, "batch": args.batch}}
    report["settings"]["rounds"] = args.rounds
    report |= {"rows": [], "parts": {}, "skipped": {}}
    for method in args.methods:
        batch = args.batch // 2 if method == "relational reasoning" else args.batch
        seconds: dict[str, dict[str, list]] = {precision: {} for precision in args.precisions}
        for _ in range(args.rounds):
            for precision in args.precisions:
                for who in ("ours", *args.peers):
                    if method not in DOES.get(who, METHODS) or who in report["skipped"]:
                        continue
                    spec = {**settings, "method": method, "precision": precision, "batch": batch, "who": who}
                    found = harness.in_process(__file__, spec)
                    if "skipped" in found:
                        report["skipped"][who] = found["skipped"]
                        continue
                    if "parts" in found:
                        report["parts"][f"{method}, {precision}"] = found.pop("parts")
                    for name, each in found.items():
                        seconds[precision].setdefault(name, []).extend(each)
                    print(f"# {method} {precision} {who}: {each}", file=sys.stderr, flush=True)
        for precision, each in seconds.items():
            names = [name for name in ("ours", "bare", *args.peers) if name in each]
            rates = {name: harness.rate(each[name], batch) for name in names}
            # ours and the bare model ran in turns: the ratio of each turn, then the median
            over = {"bare": median(a / b for a, b in zip(each["ours"], each["bare"], strict=True)) - 1}
            row = {"method": method, "precision": precision, "batch": batch, "images_per_second": rates}
            report["rows"].append({**row, "over": over, "seconds": each})
    harness.publish(args, report, table(report))
    return 0


def table(report: dict) -> str:
    """Images a second beside the bare model and the peers; below it, the parts of a step."""
    s = report["settings"]
    turns = s["rounds"] * s["turns"]
    text = (
        f"Source images a second, {s['data']}, {s['network']}, views of {s['size']} px, batch {s['batch']} "
        f"{harness.HALF}, seed 0, medians of {turns} turns (the peers': of {turns * s['steps']} steps); "
        f"lightly with {s['workers']} loader processes on its JPEG files, byol-pytorch on ready tensors. "
        "*Over bare*: how much longer our step takes than the bare model, the median of paired turns. "
        f"{harness.where(report, 'torchvision', 'lightly', 'byol-pytorch')}"
    )
    heads = ("method", "precision", "ours", "bare model", "over bare", "lightly", "ours / lightly")
    heads += ("byol-pytorch", "ours / byol-pytorch")
    rows = []
    for row in report["rows"]:
        rates = row["images_per_second"]
        cells = [f"{rates['ours']:.0f}", f"{rates['bare']:.0f}", f"{row['over']['bare']:+.1%}"]
        for peer in DOES:
            if peer in rates:
                cells += [f"{rates[peer]:.0f}", f"{rates['ours'] / rates[peer]:.2f}"]
            else:
                cells += ["–", "–"]
        rows.append((row["method"], row["precision"], *cells))
    parts = []
    for name, milliseconds in report["parts"].items():
        whole = sum(milliseconds.values())
        shares = [f"{milliseconds[part] / whole:.1%}" for part in PARTS]
        parts.append((name, f"{whole:.0f}", *shares))
    paragraphs = [text, harness.table(heads, rows)]
    if report["skipped"]:
        paragraphs.append("Left out: " + "; ".join(f"{who}: {why}" for who, why in report["skipped"].items()))
    paragraphs.append("The same step by part, under PyTorch's profiler.")
    paragraphs.append(harness.table(("method, precision", "ms", *PARTS), parts))
    return "\n\n".join(paragraphs)


if __name__ == "__main__":
    sys.exit(main())
