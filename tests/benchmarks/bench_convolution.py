"""A convolution on a map of few pixels: `small_conv2d` beside PyTorch's own, forward and backward.

    ssl-lessons bench convolution [--batch 256] [--rounds 3] [--json FILE] [--figure FILE]

The convolutions of ResNet-18's last stages at views of 32 to 128 pixels. The two take turns in one process.
Where ours is the quicker one decides `small_maps.MOST_PIXELS`, which is for CPUs alone.
"""

import json
import sys
import time
from statistics import median

import harness
import torch
import torch.nn.functional as F
from torch import nn

from ssl_lessons import charts, devices
from ssl_lessons.small_maps import MOST_PIXELS, small_conv2d

# channels in, channels out, side of the input, side of the kernel, stride
CASES = [(512, 512, side, 3, 1) for side in (1, 2, 3, 4)] + [(256, 512, 2, 3, 2), (256, 512, 4, 3, 2)]
CASES += [(256, 512, 4, 1, 2), (256, 256, 2, 3, 1), (256, 256, 3, 3, 1), (256, 256, 4, 3, 1)]
REPEATS = 6  # of each way in a turn, two of them to warm up


def pixels(case) -> int:
    """How many the output has; a 3 x 3 kernel has a border of one pixel, a 1 x 1 none."""
    _, _, side, kernel, stride = case
    return ((side + 2 * (kernel // 2) - kernel) // stride + 1) ** 2


def label(case) -> str:
    into, out, side, kernel, stride = case
    return f"{into}→{out}, {side} x {side}, kernel {kernel}" + (f", stride {stride}" if stride > 1 else "")


def turns(case, batch: int, precision: str, rounds: int, device) -> dict[str, list[float]]:
    into, out, side, kernel, stride = case
    dtype, layout = devices.PRECISIONS[precision], torch.channels_last
    x = torch.randn(batch, into, side, side).to(device, dtype, memory_format=layout).requires_grad_()
    weight = nn.Parameter(torch.randn(out, into, kernel, kernel).to(device, memory_format=layout))
    step, border = (stride, stride), (kernel // 2, kernel // 2)
    ways = {
        "PyTorch": lambda: F.conv2d(x, weight.to(dtype), None, step, border),
        "ours": lambda: small_conv2d(x, weight.to(dtype), None, step, border),
    }
    gradient = torch.randn_like(ways["PyTorch"]())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            for repeat in range(REPEATS):
                weight.grad = None
                started = time.perf_counter()
                way().backward(gradient)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repeat >= 2:
                    seconds[name].append(time.perf_counter() - started)
    return seconds


def child(spec: dict) -> None:
    device = devices.pick_device(spec["device"])
    devices.prepare(device)
    print(
        json.dumps(
            [turns(c, spec["batch"], spec["precision"], spec["rounds"], device) for c in spec["cases"]]
        )
    )


def main(argv=None) -> int:
    parser = harness.options(__doc__.splitlines()[0], batch=256, rounds=3, channels=512)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    args = parser.parse_args(argv)
    if args.child:
        child(json.loads(args.child))
        return 0
    settings = {"batch": args.batch, "rounds": args.rounds, "device": args.device}
    report = {"machine": harness.machine(args.device), "settings": settings, "rows": []}
    cases = [case for case in CASES if max(case[:2]) <= args.channels]
    for precision in args.precisions:
        found = harness.in_process(__file__, {**settings, "precision": precision, "cases": cases})
        for case, seconds in zip(cases, found, strict=True):
            row = {"convolution": label(case), "pixels": pixels(case), "precision": precision}
            row |= {name: median(each) for name, each in seconds.items()}
            row["used"] = row["pixels"] <= MOST_PIXELS.get(devices.PRECISIONS[precision], 0)
            report["rows"].append(row)
    rows = [("forward and backward, ms", "", "PyTorch", "ours", "PyTorch / ours", "used on a CPU")]
    for row in report["rows"]:
        times = [f"{1e3 * row[name]:.2f}" for name in ("PyTorch", "ours")]
        ratio = f"{row['PyTorch'] / row['ours']:.2f}"
        rows.append((row["convolution"], row["precision"], *times, ratio, "yes" if row["used"] else "no"))
    harness.publish(args, report, rows, __doc__.splitlines()[0], lambda: figure(report))
    return 0


def figure(report: dict):
    bars: dict[str, dict[str, float]] = {}
    for row in report["rows"]:
        name = row["convolution"].replace(", ", "\n")
        bars.setdefault(name, {})[row["precision"]] = row["PyTorch"] / row["ours"]
    return charts.grouped(bars, "PyTorch's time / ours")


if __name__ == "__main__":
    sys.exit(main())
