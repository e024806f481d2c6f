"""The benchmarks run, and say what they ought to: on toys, in real processes. No seconds are asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_lessons import lab
from ssl_lessons.lab import lesson
from ssl_lessons.records import TITLES, Run

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

import bench_lesson  # noqa: E402
import bench_memory  # noqa: E402
import bench_scale  # noqa: E402
import bench_step  # noqa: E402
import bench_views  # noqa: E402
import harness  # noqa: E402
import report  # noqa: E402

TOY = ["--network", "conv4", "--data", "shapes", "--size", "16", "--stored", "20"]
TOY += ["--batch", "16", "--steps", "2", "--rounds", "1"]


def bench(name, tmp_path, *arguments) -> tuple[dict, str]:
    """What `ssl-lessons bench NAME` wrote and printed."""
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "ssl_lessons", "bench", name, *arguments]
    command += ["--device", "cpu", "--json", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["machine"]["cores"] >= 1 and written["machine"]["versions"]["torch"]
    assert written["machine"]["device"] in done.stdout
    return written, done.stdout


def rows_of(table: str) -> list[list[str]]:
    """The cells of the rows of a text's Markdown tables, without their heads."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    heads = {i - 1 for i, line in enumerate(lines) if line.startswith("|---")}
    kept = [line for i, line in enumerate(lines) if i not in heads and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in kept]


def test_step_has_ours_the_bare_model_and_the_parts(tmp_path):
    methods = ["MoCo v2", "relational reasoning"]
    arguments = [*TOY, "--turns", "1", "--precisions", "fp32", "--peers", "lightly", "--methods", *methods]
    written, printed = bench("step", tmp_path, *arguments)
    assert [row["method"] for row in written["rows"]] == methods
    assert [row["batch"] for row in written["rows"]] == [16, 8]
    for row in written["rows"]:
        (ours,), (bare,) = row["seconds"]["ours"], row["seconds"]["bare"]
        assert row["over"]["bare"] == pytest.approx(ours / bare - 1)
        assert row["images_per_second"]["ours"] == pytest.approx(row["batch"] / ours)
        parts = written["parts"][f"{row['method']}, fp32"]
        assert list(parts) == list(bench_step.PARTS) and min(parts.values()) > 0
    assert "lightly" in written["skipped"]  # drawn shapes have no files that it could read
    rows = rows_of(bench_step.table(written))
    assert [row[0] for row in rows] == [*methods, "MoCo v2, fp32", "relational reasoning, fp32"]
    assert bench_step.table(written) in printed


def test_every_method_has_a_step_to_measure():
    """The bare model's pass reaches every weight that the method's own loss trains."""
    import torch

    for name in bench_step.METHODS:
        method = bench_step.build(name, "conv4", 16)
        views = [torch.randn(4, 3, 16, 16) for _ in method.policies]
        bench_step.forward(method, views).backward()
        missed = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert missed == [], name
    assert set(bench_step.METHODS) == {TITLES[name] for name in lab.METHODS}


def test_scale_finds_the_slopes(tmp_path):
    written, _ = bench("scale", tmp_path, "--series", "images", "queue", "--most", "4096", "--rounds", "1")
    images, queue = written["series"]
    assert images["x"] == [1000, 3000] and queue["x"] == [1024, 4096]
    assert images["timed"] == "an epoch" and queue["timed"] == "a step"
    for one in (images, queue):
        assert all(value > 0 for value in one["seconds"]) and set(one["slopes"]) == {"seconds", "bytes"}
    assert len(rows_of(bench_scale.table(written))) == 2


def test_a_slope_is_the_exponent():
    assert bench_scale.slope([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert bench_scale.slope([1, 2], [5, 5]) == pytest.approx(0, abs=1e-9)


def test_memory_names_its_parts(tmp_path):
    written, _ = bench("memory", tmp_path, *TOY, "--methods", "SimCLR")
    (row,) = written["rows"]
    assert row["images"] == 4000 * 3 * 20 * 20
    assert row["host"] > row["gradients"] > 0 and row["device"] is None
    (shown,) = rows_of(bench_memory.table(written))
    assert shown[0] == "SimCLR" and shown[5] == "–"


def test_views_skips_what_is_not_installed(tmp_path):
    arguments = ["--sizes", "16", "--repeats", "1", "--count", "8", "--data", "noise"]
    written, _ = bench("views", tmp_path, *arguments)
    results = written["sizes"]["16"]["results"]
    assert results["ours"]["views_per_second"] > 0 and results["torchvision"]["views_per_second"] > 0
    assert all("skipped" in one or one["views_per_second"] > 0 for one in results.values())
    ((size, *_, images),) = rows_of(bench_views.table(written))
    assert size == "16 px" and "not photographs" in images


def test_lesson_times_a_real_kernel_and_keeps_what_was_measured_before(tmp_path):
    earlier = {
        "lesson": "03",
        "profile": "class",
        "dataset": "imagenette",
        "device": "a GPU",
        "seconds": 60.0,
    }
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [earlier]}))
    written, _ = bench("lesson", tmp_path, "01", "--profile", "smoke")
    assert earlier in written["rows"] and len(written["rows"]) == 2
    (row,) = (row for row in written["rows"] if row != earlier)
    assert (row["lesson"], row["profile"], row["dataset"]) == ("01", "smoke", "shapes") and row["seconds"] > 1


def test_minutes_come_from_benchmarks_and_records(tmp_path, monkeypatch):
    row = {"lesson": "03", "profile": "smoke", "dataset": "shapes", "device": "CPU", "seconds": 30.0}
    facts = {"profile": "class", "dataset": {"name": "imagenette"}, "lesson_seconds": 90.0}
    record = Run.in_memory(**facts).record | {"device": "CPU"}
    (tmp_path / "04-imagenette-class.json").write_text(json.dumps(record))
    (tmp_path / "05-imagenette-class.json").write_text("{")  # damaged: passed over
    monkeypatch.setattr(lesson, "results_folder", lambda: tmp_path)
    table = bench_lesson.table({"rows": [row]})
    assert "| lesson | `smoke`, CPU | `class`, CPU |" in table
    assert rows_of(table) == [["03", "0.5 (shapes)", "–"], ["04", "–", "1.5 (imagenette)"]]


def test_the_page_shows_the_committed_benchmarks_and_nothing_else():
    page = (ROOT / "data" / "results" / "README.md").read_text(encoding="utf-8")
    for name in report.NAMES:
        shown = page.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()
        assert shown == report.section(name), "run `python tests/benchmarks/report.py`"


def test_filling_the_page_keeps_what_stands_around(tmp_path):
    for name in report.NAMES:
        committed = (harness.RESULTS / f"bench-{name}.json").read_text(encoding="utf-8")
        (tmp_path / f"bench-{name}.json").write_text(committed, encoding="utf-8")
    page = tmp_path / "README.md"
    marks = [f"above {name}\n<!-- {name} -->\nold\n<!-- /{name} -->\nbelow" for name in report.NAMES]
    page.write_text("\n".join(marks), encoding="utf-8")
    report.fill(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "\nold\n" not in text and text.count("\nbelow") == len(report.NAMES)
    assert all(f"above {name}\n" in text for name in report.NAMES)
    page.write_text(marks[0], encoding="utf-8")
    with pytest.raises(ValueError, match="must have the lines <!-- views -->"):
        report.fill(tmp_path)


def test_every_benchmark_is_committed_and_on_the_page():
    scripts = (ROOT / "tests" / "benchmarks").glob("bench_*.py")
    names = {path.stem.removeprefix("bench_") for path in scripts}
    files = {path.stem.removeprefix("bench-") for path in harness.RESULTS.glob("bench-*.json")}
    assert names == files == set(report.NAMES)
