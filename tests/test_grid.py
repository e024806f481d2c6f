"""Grids of real processes, undisturbed, failing and killed, on this machine and on Dask's workers."""

import concurrent.futures as cf
import contextlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from toy import TWELVE, by_itself, write

from ssl_lessons import cli, grid, jobs, plans


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


def printed(out: Path) -> str:
    return out.with_suffix(".printed").read_text()


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
    """Processes that work for any run of a grid: the jobs' own and their kernels."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(jobs.MARK, "").startswith(str(out)):
                found.append(process)
    return found


def kernels(folder: Path) -> list[psutil.Process]:
    """The kernel of a run at work: a child of the job's own process."""
    return [process for process in at_work(folder) if "ipykernel_launcher" in " ".join(process.cmdline())]


def states(out: Path) -> dict[str, dict]:
    """job.json of each run, by the run's name."""
    found = [jobs.read_state(path.parent) for path in sorted(out.glob("*/job.json"))]
    return {state["name"]: state for state in found if state}


def records(out: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("*/record.json"))}


def numbers(out: Path) -> dict[str, list]:
    """What must not depend on how a grid went: each run's history and metrics."""
    return {name[:-9]: [record["history"], record["metrics"]] for name, record in records(out).items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, list]:
    """The same of twelve runs that nobody disturbs, executed one by one, without a grid."""
    found = {}
    for method, seed in itertools.product(*TWELVE.values()):
        record = by_itself(tmp_path_factory.mktemp("alone"), method=method, seed=seed)
        found[f"{method}-{seed}"] = [record["history"], record["metrics"]]
    return found


def assert_one_writer_at_a_time(out: Path) -> None:
    for path in out.glob("*/writers"):
        lines = path.read_text().split()
        changes = sum(one != other for one, other in zip(lines, lines[1:], strict=False))
        assert changes == len(set(lines)) - 1, f"{path} was written by two at once: {lines}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A grid of four runs that nobody disturbs: its file, its folder, and the lines that it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = write(folder, grid={"method": ["simclr", "moco"], "seed": [0, 1]})
    code, text = main(file, folder / "out", "--jobs", "2")
    assert code == 0, text
    return file, folder / "out", text.splitlines()


# ---- On this machine ---------------------------------------------------------------------------------------


def test_every_run_is_kept_whole_and_none_is_repeated(undisturbed, alone, capsys):
    file, out, lines = undisturbed
    assert numbers(out) == {name: alone[name] for name in ("simclr-0", "simclr-1", "moco-0", "moco-1")}
    found = {path.name for path in out.iterdir() if path.is_dir()}
    assert len(found) == 4
    for name in found:
        state = jobs.read_state(out / name)
        assert (state["status"], state["attempts"], state["error"]) == ("done", 1, None)
        assert f"{state['parameters']['method']}-{state['parameters']['seed']}" == state["name"]
        assert state["parameters"]["profile"] == "smoke" and name.endswith(state["fingerprint"][:8])
        for file_name in ("toy.html", "job.log"):
            assert "epoch 4" in (out / name / file_name).read_text(), file_name
        nbformat.validate(nbformat.read(out / name / "toy.ipynb", as_version=4))
        assert records(out)[name]["starts"] == 1
    assert lines[0] == "0 of 4 done, 0 running, 0 failed, 4 waiting; time left: unknown"
    assert sum(" done in " in line for line in lines) == 4 and "4 of 4 runs done" in lines[-1]
    assert not at_work(out)

    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    assert cli.main(["grid", str(file), "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] and len(answer["runs"]) == 4
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*")} == before
    assert cli.main(["grid", str(file), "--out", str(out), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("done  ") == 4


def test_one_failure_is_accounted_for_and_alone_repeated(tmp_path):
    wanted, out = tmp_path / "wanted", tmp_path / "out"
    planted = [{"when": {"seed": 1}, "set": {"wanted": str(wanted)}}]
    file = write(tmp_path, grid={"seed": [0, 1, 2]}, override=planted, parameters={"seconds": 0.1})
    code, told = main(file, out, "--jobs", "2")
    assert code == 1
    account = told[told.index("2 of 3 runs done") :].splitlines()
    folder = next(out.glob("1-*"))
    assert account[1:3] == [
        "1 failed; the same command tries them again:",
        f"  1: cell [4] failed with RuntimeError: {wanted} is not there",
    ]
    assert account[3].strip() == f"log: {folder / 'job.log'}"
    assert (
        "RuntimeError" in (folder / "job.log").read_text()
        and "RuntimeError" in (folder / "toy.html").read_text()
    )
    assert {name: state["status"] for name, state in states(out).items()} == {
        "0": "done",
        "1": "failed",
        "2": "done",
    }
    assert states(out)["1"]["attempts"] == 1, "a failing cell is not tried twice"
    assert len(records(out)) == 2

    before = {path: path.stat().st_mtime_ns for path in out.glob("[02]-*/*")}
    wanted.touch()
    assert main(file, out)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("[02]-*/*")} == before
    assert states(out)["1"]["status"] == "done" and len(records(out)) == 3
    assert next(out.glob("1-*")) == folder and records(out)[folder.name]["starts"] == 2


def test_a_process_that_dies_is_started_once_more(tmp_path):
    """One run's own process is killed, another's kernel; the third kills its kernel each time."""
    out = tmp_path / "out"
    deadly = [{"when": {"seed": 2}, "set": {"deadly": "kernel", "epochs": 1}}]
    file = write(tmp_path, grid={"seed": [0, 1, 2]}, override=deadly, parameters={"seconds": 2.0})
    pool = cf.ThreadPoolExecutor(1)
    ended = pool.submit(main, file, out, "--jobs", "2")
    for seed, kernel in ((0, False), (1, True)):
        until(lambda seed=seed: list(out.glob(f"{seed}-*/writers")), f"the first epoch of run {seed}")
        folder = next(out.glob(f"{seed}-*"))
        (victim,) = kernels(folder)
        (victim if kernel else victim.parent()).kill()
    assert ended.result()[0] == 1
    found = states(out)
    assert [found[str(seed)]["attempts"] for seed in (0, 1, 2)] == [2, 2, 2]
    assert [found[str(seed)]["status"] for seed in (0, 1, 2)] == ["done", "done", "failed"]
    assert "died" in found["2"]["error"] and "for the second time" in found["2"]["error"]
    for name, record in records(out).items():
        assert record["starts"] == 2 and len(record["history"]) == 4, f"{name} went on from its checkpoint"
    assert_one_writer_at_a_time(out)
    assert not at_work(out)


def test_a_grid_that_is_killed_ends_with_the_same_records(alone, tmp_path):
    """kill -9 at a random moment, then ctrl-C at another, then left alone."""
    out, moment = tmp_path / "out", random.Random()
    file = write(tmp_path)
    for how, code, goal in (
        (signal.SIGKILL, -9, moment.randint(0, 4)),
        (signal.SIGINT, 130, moment.randint(5, 8)),
    ):
        process, wait = start(file, out, "--jobs", "2"), moment.uniform(0, 2)
        until(
            lambda goal=goal: len(records(out)) >= goal and at_work(out), f"{goal} records and a run at work"
        )
        time.sleep(wait)
        process.send_signal(how)
        assert process.wait() == code, printed(out)
        until(lambda: not at_work(out), "the end of all jobs")
        assert len(records(out)) < 12, f"{how} after {goal} records and {wait:.2f} s came too late to disturb"
    assert "interrupted" in printed(out)
    assert start(file, out, "--jobs", "2").wait() == 0, printed(out)
    assert numbers(out) == alone and len(alone) == 12
    assert_one_writer_at_a_time(out)
    assert not at_work(out)


def test_two_grids_never_share_a_folder(undisturbed, capsys):
    from filelock import FileLock

    file, out, _ = undisturbed
    with FileLock(out / "grid.lock"):
        assert cli.main(["grid", str(file), "--out", str(out)]) == 1
    assert "grid.lock" in capsys.readouterr().err


def test_a_damaged_record_starts_from_nothing_and_a_stray_process_is_ended(tmp_path):
    """The stray is what an attempt that outlived its grid would be: two must never write into a folder."""
    (one,) = plans.read(write(tmp_path, grid={"seed": [0]}, parameters={"seconds": 0.1}))
    folder = one.folder(tmp_path / "out")
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{")
    jobs.write_state(folder, {**grid.look([one], tmp_path / "out")[0], "status": "done", "attempts": 1})
    (state,) = grid.look([one], tmp_path / "out")
    assert state["status"] == "failed" and "record.json is damaged" in state["error"]
    stray = [sys.executable, "-c", "import time; time.sleep(600)"]
    stray = subprocess.Popen(stray, env={**os.environ, jobs.MARK: str(folder)})
    until(lambda: jobs.strays(folder), "the stray")
    (state,) = grid.run([one], tmp_path / "out")
    assert state["status"] == "done" and state["attempts"] == 2
    assert not psutil.pid_exists(stray.pid)
    (aside,) = (tmp_path / "out").glob("*.damaged-*")
    assert (aside / "record.json").read_text() == "{"
    assert json.loads((folder / "record.json").read_text())["starts"] == 1


def test_each_slot_has_its_gpu_or_its_share_of_the_cores(monkeypatch):
    import torch

    given = []
    monkeypatch.setattr(jobs, "carry_out", lambda folder, env, stopped: given.append(env) or time.sleep(0.2))

    def environments(width) -> tuple[int, list[dict]]:
        given.clear()
        with grid._here(width) as (submit, chosen):
            for future in [submit("x") for _ in range(chosen)]:
                future.result()
        return chosen, sorted(given, key=str)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environments(None) == (2, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert environments(3) == (3, [{"CUDA_VISIBLE_DEVICES": each} for each in ("5", "5", "GPU-7")])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert environments(None) == (1, [{}])
    assert environments(2) == (2, [{}, {}]), "OMP_NUM_THREADS is the user's"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(7), raising=False)
    assert environments(3) == (3, [{"OMP_NUM_THREADS": "2"}] * 3)


# ---- By Dask -----------------------------------------------------------------------------------------------


def test_the_death_of_a_dask_worker_costs_one_retry_and_no_result(alone, tmp_path):
    """Two workers. First the grid is killed, and nothing of it may go on there; then one worker is killed in
    the middle of a run, and another run kills every worker that it gets."""
    import dask
    from distributed import LocalCluster

    out, plan = tmp_path / "out", {"grid": {"method": ["simclr", "moco", "byol"], "seed": [0, 1]}}
    plan["exclude"] = [{"method": ["moco", "byol"], "seed": 1}]
    plan["override"] = [{"when": {"method": "byol"}, "set": {"deadly": "worker", "epochs": 1}}]
    file = write(tmp_path, **plan)
    once = dask.config.set({"distributed.scheduler.allowed-failures": 1})
    two = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    with once, LocalCluster(**two) as cluster:
        process = start(file, out, "--scheduler", cluster.scheduler_address)
        until(lambda: at_work(out), "a run at work")
        process.kill()
        until(
            lambda: process.poll() is not None and not at_work(out), "the end of the tasks that nobody wants"
        )
        before = {name: state["attempts"] for name, state in states(out).items()}
        process = start(file, out, "--scheduler", cluster.scheduler_address)
        folder = next(out.glob("simclr-0-*"))
        until(lambda: kernels(folder), "the kernel of a run")
        worker = kernels(folder)[0].parents()[1]
        assert worker.pid in [nanny.pid for nanny in cluster.workers.values()]
        worker.kill()
        assert process.wait() == 1, printed(out)
    found = states(out)
    assert {name for name, state in found.items() if state["status"] == "failed"} == {"byol-0"}, printed(out)
    assert "KilledWorker" in found["byol-0"]["error"] and len(numbers(out)) == 3
    tried = {name: state["attempts"] - before[name] for name, state in found.items()}
    # The last waited for the worker that was killed, or not: in Dask's eyes that is a first death of its own
    assert tried.pop("byol-0") in (2, 3) and tried == {"simclr-0": 2, "simclr-1": 1, "moco-0": 1}
    assert numbers(out).items() <= alone.items()
    assert_one_writer_at_a_time(out)
    assert not at_work(out)


# ---- How it goes -------------------------------------------------------------------------------------------


def test_the_time_left_is_reckoned_from_the_finished_runs():
    def state(status: str, seconds=None) -> dict:
        return {"fingerprint": "a", "status": status, "seconds": seconds}

    waiting = [state("waiting")] * 4
    assert grid.time_left(waiting, {}, 2) is None
    done = [state("done", 50.0), state("done", 70.0), state("failed", 1000.0)]
    assert grid.time_left([*done, *waiting], {"a": 20.0, "b": 300.0}, 2) == (4 * 60 + 40) / 2
    assert grid.time_left([*done, *waiting], {"a": 20.0, "b": 60.0}, None) == (4 * 60 + 40) / 2, (
        "as many as run"
    )
    assert grid.time_left([*done, state("waiting")], {}, 8) == 60, "not an eighth: there is but one"
    assert grid.time_left(done, {}, 2) == 0
    assert [grid.span(s) for s in (None, 7.4, 90, 7200)] == ["unknown", "7 s", "1.5 min", "2.0 h"]


def test_a_terminal_sees_one_table_redrawn(monkeypatch, capsys):
    names = ("a", "b", "c")
    waiting = [
        {"name": n, "fingerprint": n, "status": "waiting", "seconds": None, "error": None} for n in names
    ]
    later = [
        {**waiting[0], "status": "running"},
        {**waiting[1], "status": "failed", "error": "no\nmore"},
        waiting[2],
    ]
    board = grid.Board(2)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    board.show(waiting)
    assert capsys.readouterr().out == "0 of 3 done, 0 running, 0 failed, 3 waiting; time left: unknown\n"
    board.show(later)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "\x1b[1F\x1b[J0 of 3 done, 1 running, 1 failed, 1 waiting; time left: unknown"
    assert lines == ["  running  a  0 s", "  failed   b  no"]
    board.show(later)
    assert capsys.readouterr().out.startswith("\x1b[3F\x1b[J0 of 3 done")
