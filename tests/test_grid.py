"""Grids of real processes: finished, failing, killed and interrupted, here and on Dask's workers."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from filelock import FileLock
from toy import by_itself, write

from ssl_lessons import cli
from ssl_lessons.batch import grid

FOUR = {"method": ["simclr", "moco"], "seed": "0-1"}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("SSL_LESSONS_PROFILE", raising=False)


def start(file: Path, out: Path, *arguments: str) -> subprocess.Popen:
    """The command line in a process of its own; what it prints is kept beside `out`."""
    command = [sys.executable, "-m", "ssl_lessons", "grid", str(file), "--out", str(out), *arguments]
    with open(out.with_suffix(".printed"), "a") as printed:
        # A shell's background job ignores ctrl-C, and so would what it starts
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(command, stdout=printed, stderr=printed)
        finally:
            signal.signal(signal.SIGINT, before)


def main(file: Path, out: Path, *arguments: str) -> tuple[int, str]:
    """The command line in this process, which need not load torch again: exit code, what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        code = cli.main(["grid", str(file), "--out", str(out), *arguments])
    return code, text.getvalue()


def until(true, what: str, minutes: float = 15) -> None:
    """Wait for something to become true; the generous limit is for a hung machine, not for a slow one."""
    end = time.monotonic() + 60 * minutes
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def at_work(out: Path) -> list[psutil.Process]:
    """The papermill processes of a grid's runs, and their kernels."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "papermill" in process.cmdline() and str(out) in " ".join(process.cmdline()):
                found += [process, *process.children(recursive=True)]
    return found


def states(out: Path) -> dict[str, dict]:
    """job.json of each run, by the run's name."""
    found = [grid.read_state(path.parent) for path in sorted(out.glob("*/job.json"))]
    return {state["name"]: state for state in found if state}


def numbers(out: Path) -> dict[str, list]:
    """What must not depend on how a grid went: each run's history and metrics."""
    found = {}
    for path in out.glob("*/record.json"):
        record = json.loads(path.read_text())
        found[path.parent.name[:-9]] = [record["history"], record["metrics"]]
    return found


def alone(folder: Path) -> dict[str, list]:
    """The same of runs that nobody disturbs, executed here, without a grid."""
    found = {}
    for method in FOUR["method"]:
        for seed in (0, 1):
            place = folder / f"alone-{method}-{seed}"
            place.mkdir()
            record = by_itself(place, method=method, seed=seed)
            found[f"{method}-{seed}"] = [record["history"], record["metrics"]]
    return found


def assert_one_writer_at_a_time(out: Path) -> None:
    for path in out.glob("*/writers"):
        lines = path.read_text().split()
        changes = sum(one != other for one, other in zip(lines, lines[1:], strict=False))
        assert changes == len(set(lines)) - 1, f"{path} was written by two at once: {lines}"


# ---- On this machine ---------------------------------------------------------------------------------------


def test_one_failure_is_named_and_alone_repeated(tmp_path):
    wanted, out = tmp_path / "wanted", tmp_path / "out"
    planted = [{"when": {"method": "moco", "seed": 1}, "set": {"wanted": str(wanted)}}]
    file = write(tmp_path, grid=FOUR, override=planted)
    code, told = main(file, out, "--jobs", "2")
    assert code == 1 and "3 of 4 runs done" in told
    (folder,) = out.glob("moco-1-*")
    assert f"  moco-1: cell [4] failed with RuntimeError: {wanted} is not there" in told.splitlines()
    assert f"log: {folder / 'run.log'}" in told and "epoch 4" in (folder / "run.log").read_text()
    for page in (folder / "toy.ipynb", folder / "toy.html"):
        assert "RuntimeError" in page.read_text(), "what it reached is kept"
    found = {name: (state["status"], state["attempts"]) for name, state in states(out).items()}
    assert found.pop("moco-1") == ("failed", 1), "a failing cell is not tried twice"
    assert set(found.values()) == {("done", 1)}

    before = {path: path.stat().st_mtime_ns for path in out.glob("*-[0-9]-*/*") if path.parent != folder}
    wanted.touch()
    code, told = main(file, out)
    assert code == 0 and told.startswith("3 of 4 done")
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished runs are left alone"
    assert states(out)["moco-1"]["status"] == "done" and not at_work(out)
    assert numbers(out) == alone(tmp_path)

    rows = grid.results(out, grid.read(file))
    assert sorted(rows["name"]) == ["moco-0", "moco-1", "simclr-0", "simclr-1"]
    assert (rows["minutes"] > 0).all() and (rows["status"] == "done").all()
    assert dict(zip(rows["name"], rows["knn"], strict=True)) == {
        name: metrics["knn"]["value"] for name, (_, metrics) in numbers(out).items()
    }
    kept = pd.read_csv(out / "grid.csv")
    assert {"method", "seed", "profile", "knn", "minutes", "status", "folder"} <= set(kept.columns)
    assert sorted(kept["knn"]) == sorted(rows["knn"])
    code, told = main(file, out, "--dry-run")
    assert code == 0 and told.count("done  ") == 4


def test_a_grid_that_is_killed_and_interrupted_ends_with_the_same_records(tmp_path):
    """kill -9 in the midst of a run, then ctrl-C in the midst of one, then left alone."""
    out = tmp_path / "out"
    file = write(tmp_path, grid=FOUR, parameters={"seconds": 4.0})

    def printed() -> str:
        return out.with_suffix(".printed").read_text()

    for number, (how, code) in enumerate(((signal.SIGKILL, -9), (signal.SIGINT, 130)), 1):
        before = len(list(out.glob("*/writers")))
        process = start(file, out, "--jobs", "2")
        until(lambda before=before: len(list(out.glob("*/writers"))) > before or not before, "a run at work")
        until(lambda: at_work(out) and list(out.glob("*/writers")), "an epoch")
        until(lambda number=number: printed().count("side by side") == number, "this grid, past its imports")
        time.sleep(1)
        process.send_signal(how)
        assert process.wait() == code, out.with_suffix(".printed").read_text()
        if how == signal.SIGINT:
            until(lambda: not at_work(out), "the end of all runs", minutes=1)
            assert "stopped; the same command goes on" in out.with_suffix(".printed").read_text()
        assert len(numbers(out)) < 4, "too late to disturb"
    assert main(file, out, "--jobs", "2")[0] == 0
    assert numbers(out) == alone(tmp_path)
    assert_one_writer_at_a_time(out)
    assert not at_work(out)


def test_two_never_write_into_one_folder(tmp_path, capsys):
    file, out = write(tmp_path, grid={"seed": [0]}), tmp_path / "out"
    out.mkdir()
    with FileLock(out / "grid.lock"):
        assert cli.main(["grid", str(file), "--out", str(out)]) == 1
    assert "grid.lock" in capsys.readouterr().err
    (one,) = grid.read(file)
    one.folder(out).mkdir()
    with FileLock(one.folder(out) / "job.lock"):
        code, told = main(file, out)
    assert code == 1 and "another process works in" in told


def test_a_damaged_record_is_a_failed_run(tmp_path):
    (one,) = grid.read(write(tmp_path, grid={"seed": [0]}))
    folder = one.folder(tmp_path)
    folder.mkdir()
    grid.write_state(folder, {"name": one.name, "status": "done", "parameters": {}, "seconds": 1.0})
    (folder / "record.json").write_text("{")
    (row,) = grid.results(tmp_path, [one]).to_dict("records")
    assert row["status"] == "failed" and "record.json is damaged" in row["error"]


def test_each_slot_has_its_gpu_or_its_share_of_the_cores(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert grid.slots(None, 9) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert grid.slots(3, 9) == [{"CUDA_VISIBLE_DEVICES": each} for each in ("5", "GPU-7", "5")]
    assert grid.slots(3, 1) == [{"CUDA_VISIBLE_DEVICES": "5"}], "no more than there are runs"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert grid.slots(None, 9) == [{}]
    assert grid.slots(2, 9) == [{}, {}], "OMP_NUM_THREADS is the user's"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(7), raising=False)
    assert grid.slots(3, 9) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert grid.slots(10**9, 9) == [{"OMP_NUM_THREADS": "1"}] * 9


# ---- By Dask -----------------------------------------------------------------------------------------------


def test_a_cluster_carries_out_the_same_runs(tmp_path):
    """Two workers; one run kills its kernel each time, and is the only one that fails."""
    from distributed import LocalCluster

    out = tmp_path / "out"
    deadly = [{"when": {"method": "moco", "seed": 1}, "set": {"deadly": True}}]
    file = write(tmp_path, grid=FOUR, override=deadly)
    two = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    with LocalCluster(**two) as cluster:
        code, told = main(file, out, "--scheduler", cluster.scheduler_address)
    assert code == 1 and "3 of 4 runs done" in told and "moco-1: " in told, told
    whole = alone(tmp_path)
    del whole["moco-1"]
    assert numbers(out) == whole and not at_work(out)


def test_who_only_reads_a_runs_file_is_not_ended(tmp_path):
    given = tmp_path / "parameters.yaml"
    given.touch()
    reader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(given)])
    try:
        grid._end(tmp_path)
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()
