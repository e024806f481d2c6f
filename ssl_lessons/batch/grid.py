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

import ast
import concurrent.futures as cf
import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from ssl_lessons.batch.leaderboard import for_csv
from ssl_lessons.parameters import Parameter, Unknown, check, known, of_notebook, printable
from ssl_lessons.records import TITLES, RecordError, Run, atomically, digest

PACKAGE = Path(__file__).resolve().parent.parent
KEYS = ("notebook", "profile", "parameters", "grid", "exclude", "override")
MOST_RUNS = 10_000  # of one grid


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


def find_lesson(name: str, here: Path = Path()) -> Path:
    """A lesson's notebook by its number ("03", "3") or name ("03_moco"), any by its path from `here`."""
    if name.endswith(".ipynb") and (here / name).is_file():
        return (here / name).resolve()
    lessons = {path.stem: path for path in sorted(notebooks().glob("[0-9][0-9]_*.ipynb"))}
    for stem, path in lessons.items():
        if name in (stem, path.name) or (name.isdecimal() and int(name) == int(stem[:2])):
            return path.resolve()
    beside = sorted(path.name for path in here.glob("*.ipynb") if path.is_file())
    return known("notebook", name, [*beside, *lessons])


def dataset(name: str, here: Path) -> str:
    """A name of the catalogue as it is, a folder of images (its path from `here`) as an absolute path."""
    from ssl_lessons import images

    path = here / os.path.expanduser(name)
    if name not in images.CATALOGUE and path.is_dir():
        return str(path.resolve())
    return known("dataset", name, [*images.CATALOGUE, "the path of a folder"])


def meant(parameters: dict, here: Path) -> dict:
    """Checked parameters, with a profile in place of "auto" and the whole path (from `here`) of a folder of
    images. `Unknown` for a name that does not exist, and for a rate or temperature that a method lacks."""
    from ssl_lessons import lab, networks

    values = {name: value for name, value in parameters.items() if value not in (None, "")}
    method, changed = lab.METHODS.get(values.get("method")), {}
    if "profile" in values:  # which one "auto" means is part of what is run
        changed["profile"] = lab.pick_profile(values["profile"])
    if "dataset" in values:
        changed["dataset"] = dataset(values["dataset"], here)
    if "network" in values:
        networks.check_name(values["network"])
    if "method" in values:
        known("method", values["method"], TITLES)
        for name in {"lr", "temperature"} & values.keys():
            if not (method and hasattr(next(iter(method.recipes.values())), name)):
                raise Unknown(f"method {values['method']!r} has no {name}; leave one of the two out")
    if "recipe" in values:
        methods = [method] if method else lab.METHODS.values()
        known("recipe", values["recipe"], dict.fromkeys(name for one in methods for name in one.recipes))
    return parameters | changed


def planned(notebook: Path, declared: dict[str, Parameter], parameters: dict, name: str) -> Planned:
    """A run of a notebook: what it declares, and the checked parameters that it is given."""
    values = {key: one.default for key, one in declared.items()} | parameters
    values.pop("run_dir", None)
    text = json.dumps([notebook.name, values], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.+=-]+", "_", name)[:100].encode()[:200].decode(errors="ignore")  # a folder's name
    return Planned(name, notebook, parameters, fingerprint)


# ---- The plan ----------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML without what grows without end (aliases, depth) or is lost (the first of two equal keys)."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"*{self.peek_event().anchor} is an alias; write the values out")
        if len(self.states) > 50:  # what the parser is in the midst of
            raise yaml.YAMLError("it is over 50 levels deep")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands there twice")
        return super().construct_mapping(node, deep)

    def resolve(self, kind, value, implicit):
        tag = super().resolve(kind, value, implicit)
        if tag.endswith((":int", ":float")) and re.match(r"[+-]?0[0-9_]|.*:", value):
            return "tag:yaml.org,2002:str"  # read by its annotation: YAML 1.1 makes 8 of 010, and 90 of 1:30
        return tag


def read(file: str | Path) -> list[Planned]:
    """The runs of a grid's YAML file, in the order of its values. `Unknown` names what does not exist or fit,
    and what there is; so it does for a rule that matches no run, two runs alike, more than `MOST_RUNS`."""
    file = Path(file)
    asked, here = _load(file), file.resolve().parent
    notebook = find_lesson(str(asked.get("notebook")), here)
    declared = of_notebook(notebook)
    if not declared.pop("run_dir", None):
        raise Unknown(f"{notebook.name} has no parameter run_dir: its records would lie in one place")

    def fitted(values, place: str, lists: bool = False) -> dict:
        """{name: value} as annotated; with `lists` {name: values}, and a rule's one value is a list of it."""
        if not isinstance(values, dict) or (lists and not values):
            raise Unknown(f"{place}: {values!r:.200} must be names with values")
        for name in values.keys() & {"name", "status", "minutes", "error", "folder"}:
            raise Unknown(f"{notebook.name} has a parameter {name!r}, as grid.csv has a column: rename it")
        what = f"parameter of {notebook.name} in {place}"
        if not lists:
            return check(values, declared, what)
        fits = {}
        for name, value in values.items():
            several = _listed(name, value) if place == "grid" or isinstance(value, list) else [value]
            fits[name] = [check({name: item}, declared, what)[name] for item in several]
        return fits

    profile = fitted({"profile": asked["profile"]} if "profile" in asked else {}, "profile")
    fixed = fitted(asked.get("parameters") or {}, "parameters")
    axes = fitted(asked.get("grid"), "grid", lists=True)
    for name in (fixed.keys() & axes.keys()) | (profile.keys() & {*fixed, *axes}):
        raise Unknown(f"parameter {name!r} is set in two places of {file}")
    count = math.prod(map(len, axes.values()))
    if count > MOST_RUNS:
        raise Unknown(f"{file} asks for {count:,} runs; a grid has at most {MOST_RUNS:,}: split it")
    common = ({"profile": "auto"} if "profile" in declared else {}) | profile | fixed
    runs = [common | dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    excluded = set()
    for rule in asked.get("exclude") or []:
        excluded.update(map(id, _matching(fitted(rule, "exclude", lists=True), runs, declared)))
    runs = [run for run in runs if id(run) not in excluded]
    if not runs:
        raise Unknown(f"{file}: every run is excluded")
    for rule in asked.get("override") or []:
        if not isinstance(rule, dict) or set(rule) != {"when", "set"}:
            raise Unknown(f"override {rule!r:.200} must be {{when: {{name: value}}, set: {{name: value}}}}")
        for run in _matching(fitted(rule["when"], "override", lists=True), runs, declared):
            run.update(fitted(rule["set"], "override"))

    plan: dict[str, Planned] = {}
    for run in runs:
        run = meant(run, here)
        one = planned(notebook, declared, run, "-".join(Path(str(run[name])).name for name in axes))
        if one.fingerprint in plan:
            raise Unknown(f"two runs of {file} are the same: {plan[one.fingerprint].parameters} and {run}")
        plan[one.fingerprint] = one
    return list(plan.values())


def _load(file: Path) -> dict:
    if not file.is_file():
        examples = ", ".join(map(str, sorted((notebooks() / "grids").glob("*.yaml"))))
        raise Unknown(f"there is no file {file}; a grid is, for example: {examples}")
    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > 100_000:  # PyYAML would take seconds
            raise ValueError("it is longer than 100,000 characters")
        asked = yaml.load(text, _Loader)
    except Exception as error:  # PyYAML's own, and whatever it meets in the 31st of February or `!!int x`
        raise Unknown(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(asked, dict):
        raise Unknown(f"{file} must be a mapping with the keys {', '.join(KEYS)}")
    for key in asked:
        known(f"key of {file.name}", key, KEYS)
        if key in ("exclude", "override") and not isinstance(asked[key] or [], list):
            raise Unknown(f"{key}: {asked[key]!r:.200} must be a list of names with values")
    return asked


def _listed(name: str, values) -> list | range:
    """The values of an axis: a list, or a range of whole numbers as "0-2"."""
    ends = re.fullmatch(r"(\d{1,9})-(\d{1,9})", values) if isinstance(values, str) else None
    numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else values
    if not isinstance(numbers, list | range) or not numbers:
        raise Unknown(f"grid: {name} {values!r:.200} must be a list of values, or a range such as 0-2")
    if len(numbers) > MOST_RUNS:
        raise Unknown(f"grid: {name} has {len(numbers):,} values; a grid has at most {MOST_RUNS:,} runs")
    return numbers


def _matching(rule: dict[str, list], runs: list[dict], declared: dict) -> list[dict]:
    """The runs that a rule is for: each of its values must be some run's, and one run must fit all."""
    matching = runs
    for name, wanted in rule.items():
        there = [run.get(name, declared[name].default) for run in runs]
        for value in wanted:
            if value not in there:
                listed = ", ".join(dict.fromkeys(map(repr, there)))
                raise Unknown(f"{rule!r:.200}: {name} {value!r} is no run's; there are: {listed:.1000}")
        matching = [run for run in matching if run.get(name, declared[name].default) in wanted]
    if not matching:
        raise Unknown(f"{rule!r:.200} matches no run: none has all of these")
    return matching


# ---- One run -----------------------------------------------------------------------------------------------


def carry_out(
    one: Planned, folder: Path, env: dict | None = None, alive: Path | None = None, say=None, minutes=None
) -> dict:
    """Execute one run's notebook in a papermill process, and keep it, with an HTML copy, whatever happens.

    It runs where it lies, as in Jupyter, with `run_dir` set to `folder`. A process or kernel that dies is
    started once more; a cell that fails would fail again, and is not repeated. `env` replaces variables of
    the environment; `say` is called with what the notebook prints. The run is ended as failed once the file
    `alive` is gone, and after `minutes`. Returns job.json: "status" is "done" or "failed", "error" says why.
    """
    from nbconvert import HTMLExporter
    from nbformat.reader import NotJSONError

    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / one.notebook.name
    state = {**vars(one), "code": code_of(one.notebook)}
    try:  # on a cluster an earlier grid's run may be about to stop
        lock = FileLock(folder / "job.lock").acquire(timeout=10)
    except Timeout:
        error = f"another process works in {folder}: wait for it, or end it"
        return {**state, "status": "failed", "error": error}
    with lock:
        _end(folder)  # what a grid that was killed has left
        for attempt in (1, 2):
            write_state(folder, {**state, "status": "running", "attempts": attempt})
            begun = time.monotonic()
            error, died = _papermill(one, folder, env or {}, alive, say, minutes)
            if not died:
                break
        state |= {"status": "failed" if error else "done", "error": error, "attempts": attempt}
        state["seconds"] = time.monotonic() - begun
        with contextlib.suppress(FileNotFoundError, NotJSONError):  # ended before or while it was written
            page, _ = HTMLExporter().from_filename(str(executed))
            executed.with_suffix(".html").write_text(page, encoding="utf-8")
        return write_state(folder, state)


def _papermill(one: Planned, folder: Path, env: dict, alive, say, minutes) -> tuple[str | None, bool]:
    """Carry a run's process to its end: why it failed, and whether it died rather than one of its cells."""
    executed, log, given = folder / one.notebook.name, folder / "run.log", folder / "parameters.yaml"
    executed.unlink(missing_ok=True)  # of an earlier try
    place = {"run_dir": str(folder)} if "run_dir" in of_notebook(one.notebook) else {}
    given.write_text(yaml.safe_dump({**place, **one.parameters}), encoding="utf-8")
    paths = [re.sub(r"[{}]", r"\g<0>\g<0>", str(path)) for path in (one.notebook, executed)]
    command = [sys.executable, "-m", "papermill", *paths, "-f", given]  # which fills in what is in braces
    command += ["--cwd", one.notebook.parent, "--no-progress-bar", "--stdout-file", "-", "--stderr-file", "-"]
    defaults = {"PYTHONIOENCODING": "utf-8"}  # run.log is read as that, whatever the terminal
    if one.notebook.is_relative_to(PACKAGE):  # what lessons share does not belong into the installed package
        defaults["SSL_LESSONS_RUNS"] = str(folder.parent)
    env = {**defaults, **os.environ, "PYTHONUNBUFFERED": "1", "SSL_LESSONS_PROGRESS": "lines", **env}
    deadline = time.monotonic() + 60 * minutes if minutes else math.inf
    with (
        open(log, "ab") as cells,
        open(folder / "papermill.log", "ab") as own,
        open(log, encoding="utf-8", errors="replace") as printed,
    ):
        printed.seek(0, os.SEEK_END)
        # in a session of its own: a ctrl-C is for this process, which then ends the run
        streams = {"stdin": subprocess.DEVNULL, "stdout": cells, "stderr": own, "start_new_session": True}
        process = subprocess.Popen([*map(str, command)], env=env, **streams)
        try:
            while process.poll() is None:
                if alive and not alive.exists():
                    return "stopped", False
                if time.monotonic() > deadline:
                    return f"ended after {minutes:g} minutes, its limit", False
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
                if say:
                    say(printed.read())
        finally:
            if process.poll() is None:  # stopped, or a ctrl-C: its kernel ends with it
                _end(folder)
                process.kill()
                process.wait()
    code = process.returncode
    return _error(executed, folder / "papermill.log", code) if code else (None, False)


def _error(executed: Path, log: Path, code: int) -> tuple[str, bool]:
    """Why a run failed, and whether its process or kernel died rather than one of its cells."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # killed before it was written, or meanwhile
        for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                if output["output_type"] == "error":
                    reason = printable(output["evalue"].strip().split("\n")[0])
                    return f"cell [{cell['execution_count']}] failed with {output['ename']}: {reason}", False
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}", True
    return printable(log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1]), True


def _end(folder: Path) -> None:
    """End the process of a run's folder and its kernel where they are still there on this machine."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or ()
        if "papermill" in command and str(folder / "parameters.yaml") in command:
            with contextlib.suppress(psutil.Error):
                family = [process, *process.children(recursive=True)]
                for member in family:
                    member.kill()
                psutil.wait_procs(family, timeout=10)


def read_state(folder: Path) -> dict:
    """What a run's folder says of it in job.json; {} where that is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        state = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        if isinstance(state["status"], str) and isinstance(state.get("seconds", 0), int | float):
            return state
    return {}


def write_state(folder: Path, state: dict) -> dict:
    """Replace job.json at once; returns `state`."""
    text = json.dumps(state, indent=1, ensure_ascii=False, default=str) + "\n"
    atomically(folder / "job.json", lambda path: path.write_text(text, encoding="utf-8"))
    return state


# ---- All runs ----------------------------------------------------------------------------------------------


def code_of(notebook: Path) -> str:
    """A fingerprint of a notebook's own cells of code: what they print, comments, layout and the defaults of
    parameters do not count."""

    def told(node):
        """A tree of Python, as every version of Python writes it."""
        if isinstance(node, ast.AST):
            parts = [told(getattr(node, name)) for name in node._fields if getattr(node, name, None)]
            return [type(node).__name__, *parts]
        return list(map(told, node)) if isinstance(node, list) else repr(node)

    said = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).split("\n") if cell["cell_type"] == "code" else []
        magics = [line for line in lines if line.lstrip()[:1] in ("%", "!", "?")]
        plain = [re.sub(r"\S.*", "pass", line) if line in magics else line for line in lines]
        tree = plain
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):  # then as it is
            tree = ast.parse("\n".join(plain)).body
        if "parameters" in cell["metadata"].get("tags", []):
            tree = [line for line in tree if not isinstance(line, ast.Assign | ast.AnnAssign)]
        said += [told(tree), magics] if tree else []
    return digest(said)[:16]


def results(out: str | Path, plan: list[Planned]) -> pd.DataFrame:
    """A row for each run of a plan: name, status, parameters, metrics, minutes, error, folder."""
    rows, code = [], functools.cache(code_of)
    for one in plan:
        folder = one.folder(out)
        state = {"status": "waiting", "seconds": math.nan, "error": None, **read_state(folder)}
        if state["status"] == "done" and state.get("code") not in (None, code(one.notebook)):
            state["status"] = "changed"  # older versions did not note the code
        row = {"name": one.name, "status": state["status"], **one.parameters}
        row |= {"minutes": state["seconds"] / 60, "error": state["error"], "folder": str(folder)}
        if row["status"] == "done":
            try:
                for name, metric in Run.open(folder).record["metrics"].items():
                    row.setdefault(name, metric["value"] if isinstance(metric, dict) else metric)
            except RecordError as problem:
                row |= {"status": "failed", "error": str(problem)}
        rows.append(row)
    return pd.DataFrame(rows)


def slots(jobs: int | None, most: int) -> list[dict[str, str]]:
    """The environment of each of `jobs` runs (None: one for each GPU, else one; `most` at most) side by side
    on this machine: a GPU, or a share of the cores."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",")[:count] if named else [str(gpu) for gpu in range(count)]
    jobs = max(1, min(jobs or len(gpus), most))
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(jobs)]
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{}] * jobs
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [{"OMP_NUM_THREADS": str(max(1, cores // jobs))}] * jobs


def _dask(address: str):
    """A client of a Dask scheduler; a worker started with `--nthreads 1` carries out one run at a time."""
    try:
        from distributed import Client
    except ImportError:
        raise Unknown('a scheduler needs Dask distributed: pip install "ssl-lessons[cluster]"') from None
    if not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://\S+:\d+", address):
        raise Unknown(f"scheduler {address!r} is not an address like tcp://host:8786")
    try:
        return Client(address, timeout=60, set_as_default=False)
    except Exception as error:  # of several libraries' classes
        raise Unknown(f"no Dask scheduler answers at {address!r} ({type(error).__name__}: {error})") from None


def run(
    plan: list[Planned], out: str | Path, jobs: int | None = None, scheduler: str | None = None, minutes=None
) -> pd.DataFrame:
    """Carry out what is not finished of a plan, and print how it goes; `results`, kept as grid.csv too.

    `jobs` side by side (None: one for each GPU, else one), or on the workers of a Dask `scheduler`; a run of
    more than `minutes` is ended as failed. `Unknown`: no Dask, or no scheduler at that address;
    BlockingIOError: another grid writes into `out`.
    """
    out = Path(out).resolve()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_dask(scheduler)) if scheduler else None
        out.mkdir(parents=True, exist_ok=True)
        try:  # held by this process: kill -9 lets go of it too
            stack.enter_context(FileLock(out / "grid.lock", timeout=0))
        except Timeout:
            problem = f"another grid holds {out / 'grid.lock'}: wait, or name another folder"
            raise BlockingIOError(problem) from None
        for stale in out.glob("*.alive"):  # of a grid that was killed
            stale.unlink()
        alive = out / f"{os.getpid()}-{time.time_ns()}.alive"
        alive.touch()
        before = results(out, plan)
        waiting = [one for one, status in zip(plan, before["status"], strict=True) if status != "done"]
        if client:
            environments = [{}] * max(1, sum(client.nthreads().values()))
            pool = client.get_executor(pure=False)  # two tasks of one name would be one
            stack.callback(pool.shutdown, wait=False)
        else:
            environments = slots(jobs, len(waiting))
            pool = stack.enter_context(cf.ThreadPoolExecutor(len(environments)))

        def in_a_slot(one: Planned, folder: Path) -> dict:
            environment = environments.pop()
            try:
                return carry_out(one, folder, environment, alive, minutes=minutes)
            finally:
                environments.append(environment)

        for row in before[before["status"] == "changed"].itertuples():
            aside = Path(f"{row.folder}.{time.time_ns()}")  # what it was trained by is not there any more
            os.replace(row.folder, aside)
            print(f"{row.name} is repeated: the code of its notebook has changed; the old run is {aside}")
        print(f"{len(plan) - len(waiting)} of {len(plan)} done; {len(environments)} side by side", flush=True)
        job = functools.partial(carry_out, alive=alive, minutes=minutes) if client else in_a_slot
        futures = {pool.submit(job, one, one.folder(out)): one for one in waiting}
        try:
            bar = tqdm(cf.as_completed(futures), total=len(futures), unit="run")  # tells the time left
            for future in bar:
                one = futures[future]
                try:
                    state = future.result()
                except Exception as error:  # a worker that died too often, a scheduler lost, a full disk
                    one.folder(out).mkdir(parents=True, exist_ok=True)
                    reason = printable(f"{type(error).__name__}: {error}")
                    failed = {"name": one.name, "status": "failed", "error": reason}
                    state = write_state(one.folder(out), failed)
                bar.write(f"{one.name} {state['status']}" + (f": {state['error']}" if state["error"] else ""))
        finally:  # after a ctrl-C they are in the middle
            alive.unlink(missing_ok=True)
            for future in futures:
                future.cancel()
    rows = results(out, plan)
    atomically(out / "grid.csv", lambda path: for_csv(rows).to_csv(path, index=False))
    return rows
