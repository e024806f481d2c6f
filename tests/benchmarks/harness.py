"""What the benchmarks share: options, the machine, measurements in a fresh process, table, JSON, figure.

Measurements run in processes of their own, so that no peer's threads, workers or freed memory stay for the
next (of `bench views`, the peers' pools); contenders take turns, and a figure is the median of its turns, if
the benchmark does not say otherwise. Nothing here asserts on seconds.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from ssl_lessons.cli import table

PEERS = ("torch", "torchvision", "lightly", "byol-pytorch", "kornia")


def options(text: str, **defaults) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take; `defaults` are numbers or words of this one, by name."""
    parser = argparse.ArgumentParser(description=text)
    for name, value in defaults.items():
        kind = {"nargs": "+", "type": type(value[0])} if isinstance(value, list) else {"type": type(value)}
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        parser.add_argument(f"--{name}", default=value, help=f"default: {shown}", **kind)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:0")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--figure", metavar="FILE", help="also draw them, PNG, SVG or PDF")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # what one process measures, as JSON
    return parser


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(device: str = "auto") -> dict:
    """Where the figures come from: device, cores, versions, and how busy it was before."""
    from ssl_lessons.devices import pick_device
    from ssl_lessons.records import device_name

    versions = {"python": platform.python_version()}
    for name in PEERS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": device_name(pick_device(device)),
        "cores": cores(),
        "versions": versions,
        "load_before": load,
        "date": time.strftime("%Y-%m-%d"),
    }


def store_for(data: str, size: int, count: int | None = None):
    """Training images of a dataset, spread over the split; "auto" is Imagenette where it is, else Shapes."""
    from ssl_lessons import images

    if data == "auto":
        try:
            return store_for("imagenette", size, count)
        except images.DataError as error:
            print(f"# drawn shapes instead: {str(error).splitlines()[0]}", file=sys.stderr)
            data = "shapes"
    store = images.load(data, "train", size=size, progress=False, download=False)
    if count is None or count >= len(store):
        return store
    return store.subset([i * len(store) // count for i in range(count)])


def in_process(script: str, spec: dict) -> dict:
    """What `script --child SPEC` prints as its last line, measured in a process of its own."""
    command = [sys.executable, script, "--child", json.dumps(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores()))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{spec} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Peak:
    """The most memory that this process held of its own while this ran.

    Bytes above the moment of entry; pages of files (a memory-mapped store) belong to the system's cache and
    are not counted, nor are processes that it started. Looked at every 10 ms, which takes microseconds.
    """

    def __enter__(self):
        self.most, self.ended = 0, threading.Event()
        self.start = held()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while not self.ended.wait(0.01):
            self.most = max(self.most, held())

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        self.bytes = max(self.most, held()) - self.start


def held() -> int:
    """Bytes of anonymous memory of this process."""
    import psutil

    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def rate(seconds: list[float], batch: int) -> float:
    """Source images a second at the median time of a step."""
    return batch / median(seconds)


def publish(args, report: dict, rows: list, title: str, draw) -> None:
    """Print the table, and write JSON and figure where they are asked for."""
    load = report["machine"]["load_before"]
    print(f"{title}\n{report['machine']['device']}" + (f"; load average {load:.1f}" if load else ""))
    print(table(rows))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"written: {args.json}")
    if args.figure:
        draw().savefig(args.figure)
        print(f"drawn: {args.figure}")
