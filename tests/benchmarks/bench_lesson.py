"""Minutes that each lesson takes in a profile, from a fresh kernel to its last cell.

    ssl-lessons bench lesson [03 04] [--profile smoke] [--json data/results/bench-lesson.json]

Each lesson is executed by `papermill` in a process of its own. A training that an earlier run left on disk
counts with the seconds that it took then (the record's `lesson_seconds`). With --json, lessons measured
before stay in the file. The table also has what the committed records say of the lessons' own runs.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

from ssl_lessons import lab

NOTEBOOKS = harness.RESULTS.parents[1] / "notebooks"


def measure(notebook: Path, profile: str, dataset: str | None) -> dict:
    """Seconds and dataset of one lesson, executed in its own folder; its record goes to a temporary one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "papermill", str(notebook), f"{folder}/executed.ipynb"]
        command += ["--cwd", str(notebook.parent), "--no-progress-bar"]
        for name, value in {"profile": profile, "run_dir": folder, "dataset": dataset}.items():
            if value:
                command += ["-r", name, value]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        wall = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"{notebook.name} failed in profile {profile}:\n{done.stderr[-2000:]}")
        record = json.loads((Path(folder) / "record.json").read_text(encoding="utf-8"))
    return {"seconds": max(wall, record["lesson_seconds"]), "dataset": record["dataset"]["name"]}


def main(argv=None) -> int:
    parser = harness.options(__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", help="numbers (default: all)")
    parser.add_argument("--profile", default="smoke", choices=lab.PROFILES)
    parser.add_argument("--dataset", help="default: the profile's")
    args = parser.parse_args(argv)
    notebooks = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    known = [notebook.stem[:2] for notebook in notebooks]
    for number in args.lessons:
        if number not in known:
            parser.error(f"there is no lesson {number!r}; choose from: {', '.join(known)}")
    machine = harness.machine(args.device)
    report = {"machine": machine, "rows": []}
    if args.json and Path(args.json).exists():
        report["rows"] = json.loads(Path(args.json).read_text(encoding="utf-8"))["rows"]
    for notebook in notebooks:
        number = notebook.stem[:2]
        if args.lessons and number not in args.lessons:
            continue
        row = {"lesson": number, "profile": args.profile, **measure(notebook, args.profile, args.dataset)}
        row |= {"device": machine["device"], "date": machine["date"], "torch": machine["versions"]["torch"]}
        same = ("lesson", "profile", "dataset", "device")
        report["rows"] = [r for r in report["rows"] if any(r[key] != row[key] for key in same)] + [row]
        print(f"# {row}", file=sys.stderr, flush=True)
        if args.json:  # after each: a long series may be cut off
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    report["rows"].sort(key=lambda row: (row["lesson"], lab.PROFILES.index(row["profile"])))
    harness.publish(args, report, table(report))
    return 0


def table(report: dict) -> str:
    """A row a lesson, a column a profile and device; from `bench lesson` and the committed records."""
    minutes = report["rows"] + lab.lesson.recorded_minutes()
    columns = {(row["profile"], row["device"]) for row in minutes}
    columns = sorted(columns, key=lambda column: (lab.PROFILES.index(column[0]), column[1]))
    rows = []
    for lesson in sorted({row["lesson"] for row in minutes}):
        cells = []
        for column in columns:
            runs = [r for r in minutes if r["lesson"] == lesson and (r["profile"], r["device"]) == column]
            shown = [f"{run['seconds'] / 60:.1f} ({run['dataset']})" for run in runs]
            cells.append(", ".join(shown) or "–")
        rows.append((lesson, *cells))
    heads = ("lesson", *(f"`{profile}`, {device}" for profile, device in columns))
    text = "Minutes for a whole lesson; seed 0."
    return f"{text}\n\n{harness.table(heads, rows)}"


if __name__ == "__main__":
    sys.exit(main())
