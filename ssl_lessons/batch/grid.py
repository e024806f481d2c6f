"""Batch reruns: one notebook over combinations of its parameters, each run a papermill process in its folder.

    notebook: row.ipynb                     # its path from this file, or a lesson's number
    profile: smoke                          # of every run
    parameters: {epochs: 3}                 # of every run
    grid:                                   # every combination of these
      method: [simclr, moco, byol]
      seed: 0-2                             # a range of whole numbers, both ends included
    exclude:                                # but not these; a list means any of its values
      - {method: byol, seed: [0, 1]}
    override:                               # and these with something else, in this order
      - {when: {method: moco}, set: {epochs: 4}}

A run's folder holds job.json (what was asked, how it ended), run.log (what its cells printed), papermill.log,
the executed notebook with an HTML copy, and the lesson's record.json. Started again, a grid leaves finished
runs alone and repeats the others; a lesson that was cut off goes on from its checkpoint. On a cluster all
machines must see that folder, the notebook and the package under the same paths.
"""

import asyncio
import concurrent.futures as cf
import contextlib
import hashlib
import itertools
import json
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from ssl_lessons.parameters import Unknown, check, known, of_notebook
from ssl_lessons.records import TITLES, RecordError, Run, atomically

PACKAGE = Path(__file__).resolve().parent.parent
KEYS = ("notebook", "profile", "parameters", "grid", "exclude", "override")


@dataclass(frozen=True)
class Planned:
    """One run of a grid. `parameters` are those that it sets; the `fingerprint` is of all, defaults too."""

    name: str
    notebook: Path
    parameters: dict
    fingerprint: str

    def folder(self, out: str | Path) -> Path:
        return Path(out, f"{self.name}-{self.fingerprint[:8]}").resolve()


# ---- Lessons -----------------------------------------------------------------------------------------------


def notebooks() -> Path:
    """The folder of the lessons: of the checkout around the working directory, else of this file's checkout,
    else those that the installed package carries."""
    for folder in (Path.cwd(), *Path.cwd().parents, PACKAGE.parent):
        if (folder / "notebooks").is_dir() and (folder / "ssl_lessons").is_dir():
            return folder / "notebooks"
    return PACKAGE / "notebooks"


def find_lesson(name: str) -> Path:
    """A lesson's notebook by number ("03" or "3"), by name ("03_moco"), or any notebook by its path."""
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    lessons = {path.stem: path for path in sorted(notebooks().glob("[0-9][0-9]_*.ipynb"))}
    for stem, path in lessons.items():
        if name in (stem, path.name) or (name.isdigit() and int(name) == int(stem[:2])):
            return path.resolve()
    return lessons[known("lesson", name, lessons)]


def dataset(name: str, here: Path) -> str:
    """A name of the catalogue as it is, a folder of images (its path from `here`) as an absolute path."""
    from ssl_lessons import images

    folder = here / Path(name).expanduser()
    if name not in images.CATALOGUE and folder.is_dir():
        return str(folder.resolve())
    return known("dataset", name, [*images.CATALOGUE, "the path of a folder"])


def checked(notebook: Path, parameters: dict, here: Path) -> dict:
    """Parameters as a notebook's annotations say, its profile, dataset, method, … among the known ones.

    Args:
        here: where the path of a folder of images starts.
    Raises:
        Unknown: a name or a value that does not exist; the message lists what does.
    """
    from ssl_lessons import lab, networks

    values = check(parameters, of_notebook(notebook), f"parameter of {notebook.name}")
    if "profile" in values:  # which one "auto" means is part of what is run
        values["profile"] = lab.pick_profile(values["profile"])
    if values.get("dataset"):  # empty, like those below: the profile's own
        values["dataset"] = dataset(values["dataset"], here)
    methods = [values["method"]] if values.get("method") in lab.METHODS else lab.METHODS
    recipes = []
    for method in methods:
        recipes += sys.modules[lab.METHODS[method].__module__].RECIPES
    there = {"method": TITLES, "recipe": dict.fromkeys(recipes)}
    for name in there.keys() & values.keys():
        if values[name]:
            known(name, values[name], there[name])
    if values.get("network"):
        networks.check_name(values["network"], rulers=False)
    for name in {"lr", "temperature"} & values.keys():
        if values[name] is not None and "method" in values:
            kind = lab.METHODS.get(values["method"])
            if kind is None or not hasattr(next(iter(kind.recipes.values())), name):
                raise Unknown(f"method {values['method']!r} has no {name}; leave one of the two out")
    return values


def planned(notebook: Path, parameters: dict, name: str) -> Planned:
    """A run of a notebook with parameters that are `checked`."""
    values = {key: one.default for key, one in of_notebook(notebook).items()} | parameters
    values.pop("run_dir", None)
    text = json.dumps([notebook.name, values], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Planned(re.sub(r"[^\w.+=-]+", "_", name)[:100], notebook, parameters, fingerprint)


# ---- The plan ----------------------------------------------------------------------------------------------


def read(file: str | Path) -> list[Planned]:
    """The runs of a grid's YAML file, in the order of its values, every name and value in it checked.

    Raises:
        Unknown: a key, notebook, parameter or value that does not exist, a rule that matches no run, two runs
            alike; the message names it, and what there is.
    """
    file = Path(file)
    asked, here = _load(file), file.resolve().parent
    notebook = _notebook(str(asked.get("notebook")), here)
    declared = of_notebook(notebook)
    if "run_dir" not in declared:
        raise Unknown(f"{notebook.name} has no parameter run_dir: its records would lie in one place")
    del declared["run_dir"]
    profile = {"profile": asked["profile"]} if "profile" in asked else {}
    fixed = _named(asked.get("parameters") or {}, "parameters", notebook, declared)
    axes = _named(asked.get("grid"), "grid", notebook, declared)
    for name in (fixed.keys() & axes.keys()) | (profile.keys() & {*fixed, *axes}):
        raise Unknown(f"parameter {name!r} is set in two places of {file}")
    common = {"profile": "auto"} if "profile" in declared else {}
    common |= profile | fixed
    values = [_values(name, value) for name, value in axes.items()]
    runs = [{**common, **dict(zip(axes, each, strict=True))} for each in itertools.product(*values)]

    excluded = []
    for rule in asked.get("exclude") or []:
        excluded += _matching(_named(rule, "exclude", notebook, declared), runs, declared)
    runs = [run for run in runs if run not in excluded]
    if not runs:
        raise Unknown(f"{file}: every run is excluded")
    for rule in asked.get("override") or []:
        if not isinstance(rule, dict) or set(rule) != {"when", "set"}:
            raise Unknown(f"override {rule!r} must be {{when: {{name: value}}, set: {{name: value}}}}")
        for run in _matching(_named(rule["when"], "override", notebook, declared), runs, declared):
            run.update(_named(rule["set"], "override", notebook, declared))

    plan: dict[str, Planned] = {}
    for run in runs:
        run = checked(notebook, run, here)
        one = planned(notebook, run, "-".join(Path(str(run[name])).name for name in axes))
        if one.fingerprint in plan:
            raise Unknown(f"two runs of {file} are the same: {plan[one.fingerprint].parameters} and {run}")
        plan[one.fingerprint] = one
    return list(plan.values())


def _load(file: Path) -> dict:
    try:
        asked = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        there = ", ".join(map(str, sorted((notebooks() / "grids").glob("*.yaml"))))
        raise Unknown(f"there is no file {file}; a grid is, for example: {there}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise Unknown(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(asked, dict):
        raise Unknown(f"{file} must be a mapping with the keys {', '.join(KEYS)}")
    for key in asked:
        known(f"key of {file.name}", key, KEYS)
    return asked


def _notebook(name: str, here: Path) -> Path:
    path = here / name
    if path.suffix != ".ipynb":
        return find_lesson(name)
    known("notebook", path.name, sorted(other.name for other in path.parent.glob("*.ipynb")))
    return path.resolve()


def _named(value, where: str, notebook: Path, declared: dict) -> dict:
    if not isinstance(value, dict) or (where == "grid" and not value):
        raise Unknown(f"{where}: {value!r} must be names with values")
    for name in value:
        known(f"parameter of {notebook.name} in {where}", name, declared)
    return value


def _values(name: str, value) -> list:
    """The values of an axis: a list, or a range of whole numbers as "0-2"."""
    if isinstance(value, str) and (ends := re.fullmatch(r"(\d+)-(\d+)", value)):
        value = list(range(int(ends[1]), int(ends[2]) + 1))
    if not isinstance(value, list) or not value:
        raise Unknown(f"grid: {name} {value!r} must be a list of values, or a range such as 0-2")
    return value


def _matching(rule: dict, runs: list[dict], declared: dict) -> list[dict]:
    """The runs that a rule is for: each of its values must be some run's, and one run must fit all."""
    found = runs
    for name, wanted in rule.items():
        wanted = wanted if isinstance(wanted, list) else [wanted]
        there = [run.get(name, declared[name].default) for run in runs]
        for value in wanted:
            if value not in there:
                listed = ", ".join(dict.fromkeys(map(repr, there)))
                raise Unknown(f"{rule!r}: {name} {value!r} is no run's; there are: {listed}")
        found = [run for run in found if run.get(name, declared[name].default) in wanted]
    if not found:
        raise Unknown(f"{rule!r} matches no run: none has all of these")
    return found


# ---- One run -----------------------------------------------------------------------------------------------


def carry_out(
    one: Planned,
    folder: Path,
    env: dict[str, str] | None = None,
    alive: Path | None = None,
    say: Callable[[str], object] | None = None,
) -> dict:
    """Execute one run's notebook in a papermill process, and keep it, with an HTML copy, whatever happens.

    The working directory is the notebook's own, as in Jupyter; a parameter `run_dir` is set to `folder`. A
    process or kernel that dies is started once more; a cell that fails would fail again, and is not repeated.

    Args:
        env: replaces variables of the environment. alive: a file; once it is gone, the run is stopped.
        say: is given what the notebook prints.
    Returns:
        job.json as it is then: "status" is "done" or "failed", "error" says why; a stopped run is "running".
    """
    from nbconvert import HTMLExporter

    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / one.notebook.name
    state = {
        **vars(one),
        "notebook": str(one.notebook),
        "attempts": 0,
        **read_state(folder),
        "status": "running",
    }
    try:  # on a cluster an earlier grid's run may be about to stop
        lock = FileLock(folder / "job.lock").acquire(timeout=10)
    except Timeout:
        error = f"another process works in {folder}: wait for it, or end it"
        return {**state, "status": "failed", "error": error}
    with lock:
        _end_stray(state, folder)
        for last_try in (False, True):
            begun = time.monotonic()
            state |= {"attempts": state["attempts"] + 1, "host": platform.node()}
            code = _papermill(one, folder, state, env or {}, alive, say)
            if code and alive and not alive.exists():
                return state
            state |= {"status": "done", "error": None, "seconds": time.monotonic() - begun}
            if code == 0:
                break
            error, died = _error(executed, code, folder / "papermill.log")
            state |= {"status": "failed", "error": error}
            if last_try or not died:
                break
        if executed.exists():
            page, _ = HTMLExporter().from_filename(str(executed))
            executed.with_suffix(".html").write_text(page, encoding="utf-8")
        return write_state(folder, state)


def _papermill(one: Planned, folder: Path, state: dict, env: dict, alive: Path | None, say) -> int:
    """The process of a run, from its start to its end; returns its exit code, negative for a signal."""
    executed, log = folder / one.notebook.name, folder / "run.log"
    executed.unlink(missing_ok=True)  # of an earlier try
    place = {"run_dir": str(folder)} if "run_dir" in of_notebook(one.notebook) else {}
    (folder / "parameters.yaml").write_text(yaml.safe_dump({**place, **one.parameters}), encoding="utf-8")
    command = [sys.executable, "-m", "papermill", one.notebook, executed, "-f", folder / "parameters.yaml"]
    command += ["--cwd", one.notebook.parent, "--no-progress-bar", "--stdout-file", "-", "--stderr-file", "-"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "SSL_LESSONS_PROGRESS": "lines", **env}
    if one.notebook.is_relative_to(PACKAGE):  # what lessons share does not belong into the installed package
        env.setdefault("SSL_LESSONS_RUNS", str(folder.parent))
    env.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else every kernel starts with a warning
    with (
        open(log, "ab") as cells,
        open(folder / "papermill.log", "ab") as own,
        open(log, encoding="utf-8", errors="replace") as printed,
    ):
        printed.seek(0, os.SEEK_END)
        streams = {"stdin": subprocess.DEVNULL, "stdout": cells, "stderr": own}
        process = subprocess.Popen([*map(str, command)], env=env, **streams)
        try:
            write_state(folder, {**state, "pid": process.pid})
            while process.poll() is None and (alive is None or alive.exists()):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
                if say:
                    say(printed.read())
            if say:
                say(printed.read())  # what came in its last moment
        finally:  # stopped, or a ctrl-C: its kernel ends with it
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
    return process.returncode


def _error(executed: Path, code: int, log: Path) -> tuple[str, bool]:
    """Why a run failed, and whether its process or kernel died rather than one of its cells."""
    try:
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    except (FileNotFoundError, ValueError):  # killed before papermill had written it, or while it did
        cells = []
    for cell in cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                first = output["evalue"].strip().split("\n")[0]
                return f"cell [{cell['execution_count']}] failed with {output['ename']}: {first}", False
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}", True
    lines = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
    return lines[-1], True


def _end_stray(state: dict, folder: Path) -> None:
    """End a process that outlived its grid (kill -9): two must never write into a folder."""
    import psutil

    if state.get("host") != platform.node():
        return
    with contextlib.suppress(psutil.Error, KeyError):
        process = psutil.Process(state["pid"])
        if str(folder / "parameters.yaml") in process.cmdline():
            family = [process, *process.children(recursive=True)]
            for each in family:
                each.kill()
            psutil.wait_procs(family, timeout=10)


def read_state(folder: Path) -> dict:
    """What a run's folder says of it in job.json; {} where that is missing or damaged."""
    try:
        state = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(folder: Path, state: dict) -> dict:
    """Replace job.json at once; returns `state`."""
    text = json.dumps(state, indent=1, ensure_ascii=False, default=str) + "\n"
    atomically(folder / "job.json", lambda path: path.write_text(text, encoding="utf-8"))
    return state


# ---- All runs ----------------------------------------------------------------------------------------------


def results(out: str | Path, plan: list[Planned] | None = None) -> pd.DataFrame:
    """A row for each run: its name, status, parameters, metrics, minutes, error and folder.

    Args:
        plan: whose runs to look at, in this order; None: all that are in the folder.
    """
    if plan is None:
        folders = {path.parent: read_state(path.parent) for path in sorted(Path(out).glob("*/job.json"))}
    else:
        folders = {}
        for one in plan:
            waiting = {"name": one.name, "parameters": one.parameters, "status": "waiting"}
            folders[one.folder(out)] = {**waiting, **read_state(one.folder(out))}
    rows = []
    for folder, state in folders.items():
        row = {"name": state["name"], "status": state["status"], **state["parameters"]}
        error, seconds = state.get("error"), state.get("seconds")
        if state["status"] == "done":
            try:
                metrics = Run.open(folder).record["metrics"]
                row |= {name: metric["value"] for name, metric in metrics.items()}
            except RecordError as problem:
                row["status"], error = "failed", str(problem)
        rows.append({**row, "minutes": seconds and seconds / 60, "error": error, "folder": str(folder)})
    return pd.DataFrame(rows)


# ---- Where runs are carried out ----------------------------------------------------------------------------

_SLOT = threading.local()  # of a thread: the environment of the runs that it waits for


def _carry_out(one: Planned, folder: Path, alive: Path) -> dict:
    return carry_out(one, folder, getattr(_SLOT, "env", None), alive)


@contextlib.contextmanager
def _here(jobs: int | None) -> Iterator[tuple[cf.Executor, int]]:
    """On this machine: threads that wait for processes, each with a GPU, or with a share of the cores."""
    gpus = _gpus()
    jobs = jobs or len(gpus) or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = gpus or jobs == 1 or "OMP_NUM_THREADS" in os.environ
    environments = queue.SimpleQueue()
    for slot in range(jobs):
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        environments.put(gpu if free else {"OMP_NUM_THREADS": str(max(1, cores // jobs))})

    def take() -> None:
        _SLOT.env = environments.get()

    pool = cf.ThreadPoolExecutor(jobs, initializer=take)
    try:
        yield pool, jobs
    finally:
        pool.shutdown(cancel_futures=True)


def _gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(gpu) for gpu in range(count)]


@contextlib.contextmanager
def _dask(address: str) -> Iterator[tuple[cf.Executor, int]]:
    """On the workers of a Dask scheduler; one started with `--nthreads 1` carries out one run at a time."""
    try:
        from distributed import Client
    except ImportError:
        raise Unknown('a scheduler needs Dask distributed: pip install "ssl-lessons[cluster]"') from None
    if not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://\S+:\d+", address):
        raise Unknown(f"scheduler {address!r} is not an address like tcp://host:8786")
    try:
        client = Client(address, timeout=60, set_as_default=False)
    except (OSError, cf.TimeoutError, asyncio.TimeoutError) as error:  # two classes before Python 3.11
        raise Unknown(f"no Dask scheduler answers at {address!r} ({type(error).__name__}: {error})") from None
    with client:
        pool = client.get_executor(pure=False)  # two tasks of one name would be one
        try:
            yield pool, max(1, sum(client.nthreads().values()))
        finally:
            pool.shutdown(wait=False)


def _ended(future: cf.Future, one: Planned, folder: Path) -> dict:
    """What came of a run, written into its job.json where its process could not."""
    try:
        return future.result()
    except Exception as error:  # a worker that died again and again, a scheduler that was lost
        folder.mkdir(parents=True, exist_ok=True)
        asked = {**vars(one), "notebook": str(one.notebook)}
        told = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        return write_state(folder, {**asked, **read_state(folder), **told})


def run(
    plan: list[Planned], out: str | Path, jobs: int | None = None, scheduler: str | None = None
) -> pd.DataFrame:
    """Carry out what is not finished of a plan, and print how it goes; `results`, kept as grid.csv too.

    Args:
        plan: from `read`. out: the folder of the runs' folders, made if missing; one grid at a time.
        jobs: how many side by side; None: one for each GPU, else one.
        scheduler: address of a Dask scheduler, whose workers then carry out the runs.
    Raises:
        Unknown: no Dask, or no scheduler at that address. BlockingIOError: another grid writes into `out`.
    """
    out = Path(out).resolve()
    with contextlib.ExitStack() as stack:
        pool, jobs = stack.enter_context(_dask(scheduler) if scheduler else _here(jobs))
        out.mkdir(parents=True, exist_ok=True)
        try:  # held by this process: kill -9 lets go of it too
            stack.enter_context(FileLock(out / "grid.lock", timeout=0))
        except Timeout:
            raise BlockingIOError(
                f"another grid writes into {out} and holds its grid.lock: wait for it, or name another folder"
            ) from None
        alive = out / f"{os.getpid()}-{time.time_ns()}.alive"
        for stale in out.glob("*.alive"):  # of a grid that was killed
            stale.unlink()
        alive.touch()
        before = results(out, plan)
        waiting = [one for one, status in zip(plan, before["status"], strict=True) if status != "done"]
        print(f"{len(plan) - len(waiting)} of {len(plan)} done; {jobs} side by side", flush=True)
        futures = {pool.submit(_carry_out, one, one.folder(out), alive): one for one in waiting}
        try:
            bar = tqdm(cf.as_completed(futures), total=len(futures), unit="run")  # tells the time left
            for future in bar:
                one = futures[future]
                state = _ended(future, one, one.folder(out))
                said = f": {state['error']}" if state["status"] == "failed" else ""
                bar.write(f"{state['name']} {state['status']}{said}")
        finally:  # after a ctrl-C they are in the middle
            alive.unlink(missing_ok=True)
    rows = results(out, plan)
    atomically(out / "grid.csv", lambda path: rows.to_csv(path, index=False))
    return rows
