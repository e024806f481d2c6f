"""A grid carried out: every run a process of its own on this machine, or a task of a Dask cluster.

Each run has a folder: job.json (what was asked, how it ended), record.json, the executed notebook, its HTML
copy, job.log. Started again, a grid leaves alone what is finished and repeats what failed; a lesson that was
cut off goes on from its checkpoint. On a cluster all machines must see that folder, the notebook and the
package under the same paths; a worker started with `--nthreads 1` carries out one notebook at a time.
"""

import concurrent.futures as cf
import contextlib
import os
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ssl_lessons import jobs
from ssl_lessons.parameters import Unknown
from ssl_lessons.plans import Planned

PAUSE = 1.0  # seconds between two looks at the runs
Submit = Callable[[str], cf.Future]


def look(plan: list[Planned], out: Path) -> list[dict]:
    """What is known of each run: its job.json, "status" "waiting" where it has none of these parameters."""
    return [_known(one, out) or _fresh(one) for one in plan]


def _fresh(one: Planned) -> dict:
    asked = {"notebook": str(one.notebook), "parameters": one.parameters, "fingerprint": one.fingerprint}
    return {"name": one.name, **asked, "status": "waiting", "error": None, "seconds": None, "attempts": 0}


def _known(one: Planned, out: Path) -> dict | None:
    state = jobs.read_state(one.folder(out))
    if state.get("fingerprint") != one.fingerprint:
        return None
    problem = _unreadable(one.folder(out)) if state["status"] == "done" else None
    return {**state, "status": "failed", "error": problem} if problem else state


def _unreadable(folder: Path) -> str | None:
    """Why a run's record cannot be read, None if it can."""
    from ssl_lessons.records import RecordError, Run

    try:
        Run.open(folder)
    except RecordError as error:
        return str(error)
    return None


def run(
    plan: list[Planned], out: str | Path, width: int | None = None, scheduler: str | None = None
) -> list[dict]:
    """Carry out what is not finished of a plan, and print how it goes.

    Args:
        plan: from `plans.read`. out: the folder of the runs' folders, made if missing; one grid at a time.
        width: how many side by side; None: one for each GPU, else one.
        scheduler: address of a Dask scheduler, whose workers then carry out the runs.
    Returns:
        Each run's job.json, in the order of the plan, its "status" "done" or "failed".
    Raises:
        Unknown: no Dask, or no scheduler at that address. BlockingIOError: another grid writes into `out`.
    """
    from filelock import FileLock, Timeout

    out = Path(out).resolve()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_client(scheduler)) if scheduler else None
        out.mkdir(parents=True, exist_ok=True)
        try:  # held by this process: kill -9 lets go of it too
            stack.enter_context(FileLock(out / "grid.lock", timeout=0))
        except Timeout:
            raise BlockingIOError(
                f"another grid writes into {out} and holds its grid.lock: wait for it, or name another folder"
            ) from None
        submit, width = stack.enter_context(_cluster(client) if client else _here(width))
        states = {state["fingerprint"]: state for state in look(plan, out)}
        board = Board(width)
        futures = {}
        for one in plan:
            if (state := states[one.fingerprint])["status"] != "done":
                states[one.fingerprint] = _prepare(one, out, state["attempts"])
                futures[submit(str(one.folder(out)))] = one, state["attempts"]
        board.show(list(states.values()))
        while futures:
            ended, _ = cf.wait(futures, PAUSE, cf.FIRST_COMPLETED)
            for future in ended:
                one, before = futures.pop(future)
                if _bystander(future, one.folder(out), before):
                    futures[submit(str(one.folder(out)))] = one, before
                else:
                    states[one.fingerprint] = _conclude(one, future, out)
            for one, _ in futures.values():
                states[one.fingerprint] |= jobs.read_state(one.folder(out))
            board.show(list(states.values()))
    return list(states.values())


def _prepare(one: Planned, out: Path, attempts: int) -> dict:
    """Make a run's folder and write what is asked for; a folder with a damaged record is set aside."""
    folder = one.folder(out)
    if (folder / "record.json").exists() and (problem := _unreadable(folder)):
        aside = folder.with_name(f"{folder.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(aside)
        print(f"{one.name} starts from nothing: {problem} (its folder is now {aside.name})")
    folder.mkdir(exist_ok=True)
    return jobs.write_state(folder, {**_fresh(one), "attempts": attempts})


def _bystander(future: cf.Future, folder: Path, before: int) -> bool:
    """Whether Dask gave a run up that was not at work when its workers died, or only once.

    Dask counts a worker's death against every task that the worker held, those that only waited there too.
    """
    killed = not future.cancelled() and type(future.exception()).__name__ == "KilledWorker"
    return killed and jobs.read_state(folder).get("attempts", before) - before < 2


def _conclude(one: Planned, future: cf.Future, out: Path) -> dict:
    """What came of a run whose future has ended, written into its job.json where its process could not."""
    folder = one.folder(out)
    try:
        state = future.result()
        problem = _unreadable(folder) if state["status"] == "done" else None
        if state["status"] not in ("done", "failed"):
            problem = "it was stopped before its end"
    except cf.CancelledError:
        state, problem = jobs.read_state(folder), "the scheduler was lost, or cancelled the task"
    except Exception as error:  # a worker that died again and again
        state, problem = jobs.read_state(folder), f"{type(error).__name__}: {error}".rstrip(": ")
    return jobs.write_state(folder, {**state, "status": "failed", "error": problem}) if problem else state


# ---- Where runs are carried out ----------------------------------------------------------------------------


@contextlib.contextmanager
def _here(width: int | None) -> Iterator[tuple[Submit, int]]:
    """Side by side on this machine, each in its slot: a GPU, or a share of the cores."""
    gpus = _gpus()
    width = width or len(gpus) or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = gpus or width == 1 or "OMP_NUM_THREADS" in os.environ
    share = {} if free else {"OMP_NUM_THREADS": max(1, cores // width)}
    stop, slots = threading.Event(), queue.SimpleQueue()
    for slot in range(width):
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        slots.put({name: str(value) for name, value in {**share, **gpu}.items()})

    def one(folder: str) -> dict:
        env = slots.get()
        try:
            return jobs.carry_out(folder, env, stop.is_set)
        finally:
            slots.put(env)

    pool = cf.ThreadPoolExecutor(width)
    try:
        yield lambda folder: pool.submit(one, folder), width
    finally:  # after a ctrl-C they are in the middle
        stop.set()
        pool.shutdown(cancel_futures=True)


def _gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(gpu) for gpu in range(count)]


def _client(address: str):
    """A connection to a Dask scheduler; `Unknown` if there is none."""
    try:
        from distributed import Client
    except ImportError:
        raise Unknown('a scheduler needs Dask distributed: pip install "ssl-lessons[cluster]"') from None
    if not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://\S+:\d+", address):
        raise Unknown(f"scheduler {address!r} is not an address like tcp://host:8786")
    try:
        return Client(address, timeout=60, set_as_default=False)
    except (OSError, cf.TimeoutError) as error:
        raise Unknown(f"no Dask scheduler answers at {address!r} ({type(error).__name__}: {error})") from None


@contextlib.contextmanager
def _cluster(client) -> Iterator[tuple[Submit, None]]:
    """On the workers of a Dask scheduler, which gives the runs of a worker that dies to another.

    How often it does so before it holds the run itself to be the culprit is the scheduler's setting
    `distributed.scheduler.allowed-failures`, 3 where nobody changed it; such a run is failed, and no other.
    """
    print(f"{len(client.scheduler_info()['workers'])} workers at {client.scheduler.address}", flush=True)
    env = {name: os.environ[name] for name in ("SSL_LESSONS_DATA",) if name in os.environ}
    pool = client.get_executor(pure=False)  # two tasks of one name would be one
    try:
        yield lambda folder: pool.submit(_on_a_worker, folder, env), None
    finally:
        pool.shutdown(wait=False)  # cancels what still runs there


def _on_a_worker(folder: str, env: dict[str, str]) -> dict:
    """A task of Dask: the job's process on the worker's machine, ended when nobody waits for it any more.

    That is how a ctrl-C, or the death of the grid, reaches it; the death of the worker ends it by itself.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def released() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    env = {name: value for name, value in env.items() if name not in os.environ}  # its own come first
    return jobs.carry_out(folder, env, released)


# ---- How it goes -------------------------------------------------------------------------------------------


def span(seconds: float | None) -> str:
    """A time as a person says it: 40 s, 3.2 min, 5.1 h."""
    if seconds is None:
        return "unknown"
    unit, size = ("s", 1) if seconds < 60 else ("min", 60) if seconds < 5400 else ("h", 3600)
    return f"{seconds / size:.0f} s" if unit == "s" else f"{seconds / size:.1f} {unit}"


def first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]


def time_left(states: list[dict], ages: dict[str, float], width: int | None) -> float | None:
    """Seconds until all have ended, if the others take as long as the finished ones did; None before any has.

    Args:
        ages: {fingerprint: seconds} of the running ones. width: side by side; None: as many as run now.
    """
    took = [state["seconds"] for state in states if state["status"] == "done" and state["seconds"]]
    if not took:
        return None
    mean, waiting = sum(took) / len(took), sum(state["status"] == "waiting" for state in states)
    rest = [max(0.0, mean - age) for age in ages.values()]
    return (mean * waiting + sum(rest)) / max(1, min(width or len(rest), waiting + len(rest)))


def table(states: list[dict], ages: dict[str, float], width: int | None) -> list[str]:
    """How a grid stands: a line of counts with the time left, then the runs at work and the failed ones."""
    count = {kind: sum(s["status"] == kind for s in states) for kind in ("done", "failed", "waiting")}
    line = f"{count['done']} of {len(states)} done, {len(ages)} running, {count['failed']} failed, "
    lines = [f"{line}{count['waiting']} waiting; time left: {span(time_left(states, ages, width))}"]
    working = [s for s in states if s["fingerprint"] in ages]
    lines += [f"  running  {s['name']}  {span(ages[s['fingerprint']])}" for s in working]
    broken = [s for s in states if s["status"] == "failed"]
    return lines + [f"  failed   {s['name']}  {first_line(s['error'])}" for s in broken]


class Board:
    """Prints how a grid goes: on a terminal a table redrawn in place, elsewhere a line for each change."""

    def __init__(self, width: int | None):
        self.width = width
        self.begun: dict[str, float] = {}  # when a run was first seen at work, by this machine's clock
        self.told: dict[str, str] | None = None
        self.drawn = 0  # lines on the terminal

    def show(self, states: list[dict]) -> None:
        now = {s["fingerprint"]: "running" if s["status"] == "died" else s["status"] for s in states}
        begun = {key: self.begun.get(key, time.monotonic()) for key in now if now[key] == "running"}
        self.begun, told, self.told = begun, self.told, now
        ages = {key: time.monotonic() - since for key, since in begun.items()}
        lines = table(states, ages, self.width)
        if sys.stdout.isatty():
            size = shutil.get_terminal_size()
            lines = [line[: size.columns - 1] for line in lines[: size.lines - 2]]
            print(f"\x1b[{self.drawn}F\x1b[J" if self.drawn else "", "\n".join(lines), sep="", flush=True)
            self.drawn = len(lines)
        elif told is None:
            print(lines[0], flush=True)
        else:
            for state in (s for s in states if now[s["fingerprint"]] != told[s["fingerprint"]]):
                status = now[state["fingerprint"]]
                more = {"done": f" in {span(state['seconds'])}", "failed": f": {first_line(state['error'])}"}
                print(f"{state['name']} {status}{more.get(status, '')} ({lines[0]})", flush=True)


def account(states: list[dict], out: Path) -> str:
    """What came of a grid: how many are done, and of each failed run its name, its error and its log."""
    broken = [(s, out / f"{s['name']}-{s['fingerprint'][:8]}") for s in states if s["status"] == "failed"]
    lines = [f"{sum(s['status'] == 'done' for s in states)} of {len(states)} runs done, in {out}"]
    lines += [f"{len(broken)} failed; the same command tries them again:"] if broken else []
    for state, folder in broken:
        lines += [f"  {state['name']}: {first_line(state['error'])}", f"    log: {folder / 'job.log'}"]
    return "\n".join(lines)
