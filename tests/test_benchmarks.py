"""The benchmarks run, and say what they ought to: on toys, in real processes. No seconds are asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_lessons import lab, speed
from ssl_lessons.lab import lesson

ROOT = Path(__file__).resolve().parent.parent
TOY = [
    "--network",
    "conv4",
    "--data",
    "shapes",
    "--size",
    "16",
    "--stored",
    "20",
    "--batch",
    "16",
    "--steps",
    "2",
]


def bench(name, tmp_path, *arguments) -> tuple[dict, str]:
    """What `ssl-lessons bench NAME` wrote and printed; its figure must be a picture."""
    out, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    command = [sys.executable, "-m", "ssl_lessons", "bench", name, *arguments]
    command += ["--device", "cpu", "--json", str(out), "--figure", str(picture)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["machine"]["cores"] >= 1 and found["machine"]["versions"]["torch"]
    assert found["machine"]["device"] in done.stdout
    return found, done.stdout


def test_step_has_ours_and_the_bare_model_of_every_method(tmp_path):
    arguments = [*TOY, "--turns", "1", "--rounds", "1", "--precisions", "fp32", "--peers", "lightly"]
    found, told = bench("step", tmp_path, *arguments)
    assert [row["method"] for row in found["rows"]] == [*lesson.METHODS.values()] or len(found["rows"]) == 5
    for row in found["rows"]:
        rates = row["images_per_second"]
        assert rates["ours"] > 0 and rates["bare"] > 0 and row["method"] in told
        for name in ("bare", "bare, our kernels"):
            (ours,), (bare,) = row["seconds"]["ours"], row["seconds"][name]
            assert row["over"][name] == pytest.approx(ours / bare - 1)
        assert rates["ours"] == pytest.approx(row["batch"] / ours)
        parts = found["profiles"][f"{row['method']}, fp32"]["parts"]
        assert parts["forward"] > 0 and parts["views"] > 0
    assert "lightly" in found["skipped"]  # drawn shapes have no files that it could read
    assert speed.step(found).count("\n|") == 2 + 5


def test_scale_finds_the_slopes(tmp_path):
    found, _ = bench("scale", tmp_path, "--series", "images", "queue", "--most", "4096", "--rounds", "1")
    images, queue = found["series"]
    assert images["x"] == [1000, 3000] and queue["x"] == [1024, 4096]
    assert images["timed"] == "an epoch" and queue["timed"] == "a step"
    for one in (images, queue):
        assert all(value > 0 for value in one["seconds"]) and set(one["slopes"]) == {"seconds", "bytes"}
    assert speed.scale(found).count("\n|") == 2 + 2


def test_a_slope_is_the_exponent():
    code = "from bench_scale import slope; print(slope([1, 10, 100], [3, 30, 300]), slope([1, 2], [5, 5]))"
    folder = ROOT / "tests" / "benchmarks"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    linear, flat = map(float, done.stdout.split())
    assert linear == pytest.approx(1) and flat == pytest.approx(0, abs=1e-9)


def test_convolution_has_both_ways_of_every_case(tmp_path):
    found, told = bench("convolution", tmp_path, "--batches", "128", "--rounds", "1", "--channels", "256")
    rows = found["rows"]
    assert all(row["PyTorch"] > 0 and row["ours"] > 0 and row["convolution"] in told for row in rows)
    used = {p: [row["used"] for row in rows if row["precision"] == p] for p in ("fp32", "bf16")}
    # 4, 9 and 16 pixels of 256 channels; 4 pixels of 128 and of 64
    assert used == {"fp32": [True, False, False, True, False], "bf16": [True, True, False, True, False]}
    assert speed.convolution(found).count("\n|") == 2 + 5


def test_memory_names_its_parts(tmp_path):
    found, _ = bench("memory", tmp_path, *TOY, "--rounds", "1", "--methods", "SimCLR")
    (row,) = found["rows"]
    assert row["kept"]["images"] == 4000 * 3 * 20 * 20
    assert row["kept"]["host"] > row["kept"]["gradients"] > 0 and row["kept"]["device"] is None
    assert "SimCLR" in speed.memory(found)


def test_far_has_a_budget_below_its_images(tmp_path):
    found, _ = bench("far", tmp_path, "--images", "600", "--stored", "20", "--size", "16", "--rounds", "1")
    assert found["bytes"] == 600 * 3 * 20 * 20 and found["budget"] == found["bytes"] // 10
    assert all(found[name] > 0 for name in ("resident", "far", "far, not ahead"))
    assert "of resident" in speed.far(found)


def test_views_skips_what_is_not_installed(tmp_path):
    found, told = bench(
        "views", tmp_path, "--sizes", "16", "--repeats", "1", "--count", "8", "--data", "noise"
    )
    results = found["sizes"]["16"]["results"]
    assert results["ours"]["views_per_second"] > 0 and results["torchvision"]["views_per_second"] > 0
    assert all("skipped" in one or one["views_per_second"] > 0 for one in results.values())
    assert "| 16 px |" in speed.views(found)


def test_lesson_times_a_real_kernel_and_keeps_what_was_measured_before(tmp_path):
    earlier = {
        "lesson": "03",
        "profile": "class",
        "dataset": "imagenette",
        "device": "a GPU",
        "seconds": 60.0,
    }
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [earlier]}))
    found, told = bench("lesson", tmp_path, "01", "--profile", "smoke")
    assert earlier in found["rows"] and len(found["rows"]) == 2
    (row,) = (row for row in found["rows"] if row != earlier)
    assert (row["lesson"], row["profile"], row["dataset"]) == ("01", "smoke", "shapes") and row["seconds"] > 1


def test_minutes_come_from_benchmarks_and_records(tmp_path):
    rows = [{"lesson": "03", "profile": "smoke", "dataset": "shapes", "device": "CPU", "seconds": 30.0}]
    (tmp_path / "bench-lesson.json").write_text(json.dumps({"rows": rows}))
    record = {"profile": "class", "dataset": {"name": "imagenette"}, "device": "CPU", "lesson_seconds": 90.0}
    (tmp_path / "04-imagenette-class.json").write_text(json.dumps(record))
    (tmp_path / "05-imagenette-class.json").write_text("{")  # damaged: passed over
    table = speed.minutes(tmp_path)
    assert "| lesson | `smoke`, CPU | `class`, CPU |" in table
    assert "| 03 | 0.5 | – |" in table and "| 04 | – | 1.5 |" in table and "| 05 |" not in table


def test_readme_shows_the_committed_benchmarks_and_nothing_else():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, content in (("speed", speed.readme), ("minutes", speed.minutes)):
        shown = text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()
        assert shown == content()


def test_a_benchmark_that_is_not_committed_is_an_error_that_lists_the_others():
    with pytest.raises(lab.LessonError, match="no benchmark 'nothing' is committed; choose one of: .*views"):
        lab.benchmark("nothing")
    assert lab.benchmark("views")["sizes"]


def test_every_benchmark_is_committed():
    scripts = (ROOT / "tests" / "benchmarks").glob("bench_*.py")
    names = {path.stem.removeprefix("bench_") for path in scripts}
    assert {name for name in names if speed.committed(name) is None} == set()
