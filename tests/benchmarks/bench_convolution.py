"""A convolution on a map of few pixels, as `pretrain` computes it beside PyTorch's own, forward and backward.

    ssl-lessons bench convolution [--batches 64 128 256] [--rounds 3] [--json FILE] [--figure FILE]

Mostly the convolutions of ResNet-18's last stages at views of 32 to 128 pixels; and linear layers of the
heads, as convolutions. The two take turns in one process, both from float32 weights (cast under autocast
where the precision says so). The limits of `kernels`, and its `products_are_slow`, are drawn about
where ours is quicker, for CPUs alone; cases beyond them are shown too.
"""

import json
import sys
import time
from statistics import median

import harness
import torch
import torch.nn.functional as F

from ssl_lessons import charts, devices, kernels

# channels in, channels out, side of the input, side of the kernel, stride
CASES = [(512, 512, side, 3, 1) for side in (1, 2, 3, 4)] + [(256, 512, 2, 3, 2), (256, 512, 4, 3, 2)]
CASES += [(256, 256, side, 3, 1) for side in (2, 3, 4)] + [(128, 128, 2, 3, 1), (64, 64, 2, 3, 1)]
CASES += [(256, 512, 4, 1, 2), (2048, 512, 2, 1, 1)]
# a linear layer is a kernel of one tap on one pixel
CASES += [(512, 2048, 1, 1, 1), (512, 4096, 1, 1, 1), (2048, 2048, 1, 1, 1)]
REPEATS = 6  # of each way in a turn, two of them to warm up


def is_linear(case) -> bool:
    return case[2:] == (1, 1, 1)


def pixels(case) -> int:
    """How many the output has; a 3 x 3 kernel has a border of one pixel, a 1 x 1 none."""
    _, _, side, kernel, stride = case
    return ((side + 2 * (kernel // 2) - kernel) // stride + 1) ** 2


def label(case) -> str:
    into, out, side, kernel, stride = case
    if is_linear(case):
        return f"linear {into}→{out}"
    return f"{into}→{out}, {side} x {side}, kernel {kernel}" + (f", stride {stride}" if stride > 1 else "")


def turns(case, batch: int, precision: str, rounds: int, device) -> dict[str, list[float]]:
    into, out, side, kernel, stride = case
    layout = {"memory_format": torch.channels_last}
    x = torch.randn(batch, into, side, side).to(device, devices.PRECISIONS[precision], **layout)
    weight = torch.randn(out, into, kernel, kernel).to(device, **layout)
    where = (None, (stride, stride), (kernel // 2, kernel // 2))
    ways = {
        "PyTorch": lambda: F.conv2d(x, weight, *where),
        "ours": lambda: kernels.small_conv2d(x, weight, *where),
    }
    if is_linear(case):
        x, weight = x.flatten(1), weight.flatten(1)
        ways = {"PyTorch": lambda: F.linear(x, weight), "ours": lambda: kernels.product(x, weight, None)}
    x.requires_grad_(), weight.requires_grad_()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            for repeat in range(REPEATS):
                started = time.perf_counter()
                with devices.autocast(device, precision):
                    output = way()
                torch.autograd.grad(output, (x, weight), torch.ones_like(output))
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repeat >= 2:
                    seconds[name].append(time.perf_counter() - started)
    return seconds


def used(case, batch: int, precision: str) -> bool:
    """Whether a training step on a CPU takes ours."""
    into, out, _, kernel, stride = case
    dtype = devices.PRECISIONS[precision]
    if batch < kernels.LEAST_BATCH.get(dtype, 1):
        return False
    if is_linear(case):
        return precision == "fp32" and kernels.products_are_slow()
    few = pixels(case) <= kernels.MOST_PIXELS.get(dtype, 0)
    return few and min(into, out) >= kernels.LEAST_CHANNELS and (kernel > 1 or stride > 1)


def child(spec: dict) -> None:
    device = devices.pick_device(spec["device"])
    devices.prepare(device)
    settings = (spec["batch"], spec["precision"], spec["rounds"], device)
    print(json.dumps([turns(tuple(case), *settings) for case in spec["cases"]]))


def main(argv=None) -> int:
    parser = harness.options(__doc__.splitlines()[0], batches=[64, 128, 256], rounds=3, channels=4096)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    args = parser.parse_args(argv)
    if args.child:
        child(json.loads(args.child))
        return 0
    settings = {"rounds": args.rounds, "device": args.device}
    report = {"machine": harness.machine(args.device), "settings": settings, "rows": []}
    cases = [case for case in CASES if max(case[:2]) <= args.channels]
    for precision in args.precisions:
        for batch in args.batches:
            some = [case for case in cases if precision == "fp32" or not is_linear(case)]
            spec = {**settings, "batch": batch, "precision": precision, "cases": some}
            for case, seconds in zip(some, harness.in_process(__file__, spec), strict=True):
                row = {"convolution": label(case), "batch": batch, "precision": precision}
                row |= {name: median(each) for name, each in seconds.items()}
                report["rows"].append({**row, "used": used(case, batch, precision)})
    rows = [("forward and backward, ms", "", "batch", "PyTorch", "ours", "PyTorch / ours", "used on a CPU")]
    for row in report["rows"]:
        times = [f"{1e3 * row[name]:.2f}" for name in ("PyTorch", "ours")]
        ratio = f"{row['PyTorch'] / row['ours']:.2f}"
        case = (row["convolution"], row["precision"], str(row["batch"]))
        rows.append((*case, *times, ratio, "yes" if row["used"] else "no"))
    harness.publish(args, report, rows, __doc__.splitlines()[0], lambda: figure(report))
    return 0


def figure(report: dict):
    """The largest batch."""
    bars: dict[str, dict[str, float]] = {}
    most = max(row["batch"] for row in report["rows"])
    for row in report["rows"]:
        if row["batch"] == most:
            name = row["convolution"].replace(", ", "\n").replace("linear ", "linear\n")
            bars.setdefault(name, {})[row["precision"]] = row["PyTorch"] / row["ours"]
    drawn = charts.grouped(bars, "PyTorch's time / ours")
    drawn.axes[0].tick_params(axis="x", labelsize=7)
    drawn.axes[0].axhline(1, color=charts.GREY, linewidth=1, linestyle="--")
    return drawn


if __name__ == "__main__":
    sys.exit(main())
