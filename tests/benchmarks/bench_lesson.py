"""Minutes that each lesson takes in a profile, from a fresh kernel to its last cell.

    ssl-lessons bench lesson [03 04] [--profile smoke] [--json data/results/bench-lesson.json] [--figure FILE]

Each lesson is executed as `ssl-lessons run` does it. A training that an earlier run left on disk counts with
the seconds that it took then (the record's `lesson_seconds`). With --json, lessons measured before stay in
the file. The table of README.md (`ssl-lessons leaderboard --into README.md`) and the first lines of each
lesson read that file.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import harness

from ssl_lessons import charts, lab
from ssl_lessons.batch import grid


def measure(notebook: Path, profile: str, dataset: str | None) -> dict:
    parameters = {"profile": profile, **({"dataset": dataset} if dataset else {})}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        state = grid.carry_out(grid.planned(notebook, parameters, notebook.stem), Path(folder))
        wall = time.perf_counter() - started
        if state["error"]:
            raise SystemExit(f"{notebook.name} failed in profile {profile}: {state['error']}")
        record = json.loads((Path(folder) / "record.json").read_text(encoding="utf-8"))
    return {"seconds": max(wall, record["lesson_seconds"]), "dataset": record["dataset"]["name"]}


def main(argv=None) -> int:
    parser = harness.options(__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", help="numbers or names (default: all)")
    parser.add_argument("--profile", default="smoke", choices=lab.PROFILES)
    parser.add_argument("--dataset", help="default: the profile's")
    args = parser.parse_args(argv)
    machine = harness.machine(args.device)
    report = {"machine": machine, "rows": []}
    if args.json and Path(args.json).exists():
        report["rows"] = json.loads(Path(args.json).read_text(encoding="utf-8"))["rows"]
    every = sorted(grid.notebooks().glob("[0-9][0-9]_*.ipynb"))
    for notebook in [grid.find_lesson(name) for name in args.lessons] or every:
        found = measure(notebook, args.profile, args.dataset)
        row = {"lesson": notebook.stem[:2], "profile": args.profile, **found}
        row |= {"device": machine["device"], "date": machine["date"], "torch": machine["versions"]["torch"]}
        same = ("lesson", "profile", "dataset", "device")
        report["rows"] = [r for r in report["rows"] if any(r[key] != row[key] for key in same)] + [row]
        print(f"# {row}", file=sys.stderr, flush=True)
        if args.json:  # after each: a long series may be cut off
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    report["rows"].sort(key=lambda row: (row["lesson"], lab.PROFILES.index(row["profile"])))
    rows = [("lesson", "profile", "dataset", "minutes", "device")]
    for row in report["rows"]:
        rows.append(
            (row["lesson"], row["profile"], row["dataset"], f"{row['seconds'] / 60:.1f}", row["device"])
        )
    harness.publish(args, report, rows, __doc__.splitlines()[0], lambda: figure(report))
    return 0


def figure(report: dict):
    groups: dict[str, dict] = {}
    for row in report["rows"]:
        groups.setdefault(row["lesson"], {})[row["profile"]] = row["seconds"] / 60
    return charts.grouped(groups, "minutes")


if __name__ == "__main__":
    sys.exit(main())
