"""What the benchmarks share: options, the machine, measurements in a fresh process, a table, JSON.

Measurements run in processes of their own, so that no peer's threads, workers or freed memory stay for the
next (of `bench views`, the peers' pools); contenders take turns, and a figure is the median of its turns, if
the benchmark does not say otherwise. Nothing here asserts on seconds. What is written to
`data/results/bench-NAME.json` also goes into the tables of `data/results/README.md` (`report.py`).
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

RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"
PEERS = ("torch", "torchvision", "lightly", "byol-pytorch", "kornia")
HALF = "(relational reasoning: half of it, four views each)"  # what its batch is, in the captions


# ---- Options and the machine -------------------------------------------------------------------------------


def options(text: str, **defaults) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take; `defaults` are numbers or words of this one, by name."""
    parser = argparse.ArgumentParser(description=text)
    for name, value in defaults.items():
        if isinstance(value, list):
            shown = " ".join(map(str, value))
            parser.add_argument(
                f"--{name}", default=value, nargs="+", type=type(value[0]), help=f"default: {shown}"
            )
        else:
            parser.add_argument(f"--{name}", default=value, type=type(value), help=f"default: {value}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:0")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
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
    return {
        "device": device_name(pick_device(device)),
        "cores": cores(),
        "versions": versions,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
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


# ---- Measuring ---------------------------------------------------------------------------------------------


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


# ---- Printing ----------------------------------------------------------------------------------------------


def table(heads, rows) -> str:
    """A Markdown table; the first column is words, the others are numbers."""
    lines = ["|" + "|".join(f" {cell} " for cell in row) + "|" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---|" + "--:|" * (len(heads) - 1), *lines[1:]])


def where(report: dict, *packages: str) -> str:
    """Device, date, load and versions of a report; and what has changed since, where its file says so."""
    found = report["machine"]
    versions = [
        f"{name} {found['versions'][name]}" for name in ("torch", *packages) if found["versions"][name]
    ]
    load = found.get("load_before")
    busy = "" if load is None else f", load average before {load:.1f}"
    note = f" {report['note']}" if "note" in report else ""
    return f"{found['device']}, {found['date']}{busy}; {', '.join(versions)}.{note}"


def publish(args, report: dict, text: str) -> None:
    """Print a benchmark's table, and write its JSON where it is asked for."""
    print(text)
    if not args.json:
        return
    target = Path(args.json).resolve()
    target.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.json}")
    if target.parent == RESULTS:
        import report as page  # here: it imports the benchmarks, which import this file

        page.fill()
