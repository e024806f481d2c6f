"""A training step of each method: ours beside the bare model, lightly and byol-pytorch, end to end.

    ssl-lessons bench step [--methods SimCLR BYOL] [--size 64] [--rounds 2] [--json FILE] [--figure FILE]

The same ResNet-18 with the same heads, batch and view size for all. Ours is `pretrain` itself, epoch by
epoch (read, views, passes, optimiser, moving average). The bare model is the method's own networks, forward
and backward on random numbers that lie on the device already, without views, loss, optimiser or moving
average: it takes its turns between our epochs, once as PyTorch computes it and once with the kernels that
`pretrain` trains with (`devices.passes`; on a GPU they are the same, and it takes one turn). lightly reads
the JPEG files with its transforms in `--workers` loader processes (default: one a core); byol-pytorch gets
tensors that are ready. A peer that is not installed, or a dataset without files, is left out with the reason.
"""

import json
import sys
import time
from contextlib import nullcontext
from statistics import median

import harness
import peers
import torch
from torch import nn

from ssl_lessons import charts, networks, policies, profiling
from ssl_lessons.devices import autocast, passes, pick_device, prepare
from ssl_lessons.methods.byol import BYOL
from ssl_lessons.methods.moco import MoCo
from ssl_lessons.methods.relational import Relational
from ssl_lessons.methods.simclr import SimCLR
from ssl_lessons.methods.simsiam import SimSiam
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
    contexts = {"bare": lambda: autocast(device, spec["precision"])}
    if device.type == "cpu":
        contexts["bare, our kernels"] = lambda: passes(device, spec["precision"], bare)
    seconds: dict[str, list] = {name: [] for name in contexts}

    def bare_turn(_encoder) -> dict:
        for name, context in contexts.items():
            seconds[name].append(bare_step(bare, batch, context, device, spec["steps"]))
        return {}

    settings = {"device": str(device), "precision": spec["precision"], "progress": "none"}
    settings |= {"epochs": 1 + spec["turns"], "batch_size": batch, "stop_on_collapse": False}
    record = pretrain(method, store, monitor=bare_turn, **settings)
    seconds["ours"] = [row["seconds"] / spec["steps"] for row in record["history"]]
    found = {name: each[1:] for name, each in seconds.items()}  # the first turn of both is the warm-up
    if spec["profile"]:
        profiled = {
            "steps": min(3, spec["steps"]),
            "batch_size": batch,
            "device": str(device),
            "precision": spec["precision"],
        }
        found["profile"] = profiling.step_profile(method, store, **profiled)
    return found


def lightly(spec: dict, device) -> dict:
    from ssl_lessons import images

    folder = images.find(f"{spec['data']}2-160")
    if folder is None:
        return {"skipped": f"no files of {spec['data']}"}
    network = networks.tap(networks.build(spec["network"], spec["size"], "imagenet"), None, spec["size"])
    steps = spec["steps"] * spec["turns"]
    sizes = (network.width, spec["size"], spec["batch"], folder / "train", spec["workers"])
    context = context_of(device, spec["precision"])
    return {"lightly": peers.lightly_steps(spec["method"], network, *sizes, device, context, steps, WARM_UP)}


def byol_pytorch(spec: dict, device) -> dict:
    images = harness.store_for(spec["data"], spec["size"], spec["batch"]).images.contiguous().float() / 255
    network = networks.build(spec["network"], spec["size"], "imagenet")
    steps, context = spec["steps"] * spec["turns"], context_of(device, spec["precision"])
    seconds = peers.byol_pytorch_steps(
        network, "avgpool", spec["size"], images.to(device), device, context, steps, WARM_UP
    )
    return {"byol-pytorch": seconds}


def context_of(device, precision):
    """As `autocast`, but a new one each time: the peers enter it step by step."""
    return lambda: autocast(device, precision) if precision != "fp32" else nullcontext()


CHILDREN = {"ours": ours, "lightly": lightly, "byol-pytorch": byol_pytorch}


def child(spec: dict) -> None:
    device = pick_device(spec["device"])
    if spec["who"] == "ours":
        prepare(device)
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
    report |= {"rows": [], "profiles": {}, "skipped": {}}
    for method in args.methods:
        batch = args.batch // 2 if method == "relational reasoning" else args.batch
        seconds: dict[str, dict[str, list]] = {precision: {} for precision in args.precisions}
        for turn in range(args.rounds):
            for precision in args.precisions:
                for who in ("ours", *args.peers):
                    if method not in DOES.get(who, METHODS) or who in report["skipped"]:
                        continue
                    spec = {**settings, "method": method, "precision": precision, "batch": batch, "who": who}
                    found = harness.in_process(__file__, {**spec, "profile": turn + 1 == args.rounds})
                    if "skipped" in found:
                        report["skipped"][who] = found["skipped"]
                        continue
                    if profile := found.pop("profile", None):
                        report["profiles"][f"{method}, {precision}"] = profile
                    for name, each in found.items():
                        seconds[precision].setdefault(name, []).extend(each)
                    print(f"# {method} {precision} {who}: {each}", file=sys.stderr, flush=True)
        for precision, each in seconds.items():
            names = [name for name in ("ours", "bare", "bare, our kernels", *args.peers) if name in each]
            rates = {name: harness.rate(each[name], batch) for name in names}
            # ours and the bare model ran in turns: the ratio of each turn, then the median
            over = {
                name: median(a / b for a, b in zip(each["ours"], each[name], strict=True)) - 1
                for name in names
                if name.startswith("bare")
            }
            row = {"method": method, "precision": precision, "batch": batch, "images_per_second": rates}
            report["rows"].append({**row, "over": over, "seconds": each})
    harness.publish(args, report, lines(report), __doc__.splitlines()[0], lambda: figure(report))
    return 0


def lines(report: dict) -> list:
    heads = ("ours", "bare", "bare, our kernels", "lightly", "byol-pytorch")
    rows = [("images a second", "", *heads, "over", "over", "x lightly", "x lightly fp32", "x byol-pytorch")]
    plain = {r["method"]: r["images_per_second"] for r in report["rows"] if r["precision"] == "fp32"}
    for row in report["rows"]:
        rates = row["images_per_second"]
        base = plain.get(row["method"], {}).get("lightly")
        times = [rates["ours"] / other if other else None for other in (rates.get("lightly"), base)]
        times.append(rates["ours"] / rates["byol-pytorch"] if "byol-pytorch" in rates else None)
        shown = [f"{rates[name]:.1f}" if name in rates else "–" for name in heads]
        over = [row["over"].get(name) for name in ("bare", "bare, our kernels")]
        shown += [f"{part:+.1%}" if part is not None else "–" for part in over]
        shown += [f"{time:.2f}" if time else "–" for time in times]
        rows.append((row["method"], row["precision"], *shown))
    return rows + [(f"{who} was left out: {why}",) + ("",) * 11 for who, why in report["skipped"].items()]


def figure(report: dict):
    groups = {}
    for row in report["rows"]:
        rates = row["images_per_second"]
        named = {"ours": "ours", "bare": "bare model", "bare, our kernels": "bare model, our kernels"}
        named |= {peer: peer for peer in DOES}
        groups[f"{row['method']}\n{row['precision']}".replace("relational ", "relational\n")] = {
            title: rates.get(name) for name, title in named.items() if name in rates
        }
    return charts.grouped(groups, "source images a second")


if __name__ == "__main__":
    sys.exit(main())
