"""Lessons as jobs: a notebook found by its number, its parameters checked, executed into a folder of its own.

`execute` does so in this process; `carry_out` in one of its own (`python -m ssl_lessons.jobs FOLDER`), which
may die. papermill, nbconvert and psutil are imported when a lesson runs, and torch never, so that this file
costs nothing to import.
"""

import ast
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ssl_lessons.parameters import Unknown, known

MARK = "SSL_LESSONS_JOB"  # in the environment of a job's process, of its kernel and of whatever that starts
STATE = "job.json"


def literal(name: str, text: str):
    """The value meant by `-p NAME TEXT`: a Python number, True, False, None, a list, else the text itself.

    `true` and `false` are refused: as strings both would count as true.
    """
    if text in ("true", "false"):
        raise Unknown(f"{name} {text!r} would be a string, which counts as true; write {text.capitalize()}")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def check_settings(kind: str, asked: dict[str, object], declared: dict[str, object]) -> None:
    """Raise `Unknown` for a name that is not among the declared, and for text where a number stands."""
    for name, value in asked.items():
        known(kind, name, declared)
        if isinstance(declared[name], int | float) and not isinstance(value, int | float):
            raise Unknown(f"{kind} {name!r} is a number like {declared[name]!r}, not {value!r}")


def checkout() -> Path:
    """The folder that holds notebooks/ and ssl_lessons/: around the working directory, else this file.

    `storage.data_root` looks the same way; it is not called from here because it would load torch.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "notebooks").is_dir() and (folder / "ssl_lessons").is_dir():
            return folder
    raise Unknown(f"there is no folder notebooks/ around {here}: run this inside a clone of the repository")


def find_lesson(name: str) -> Path:
    """A lesson's notebook by number ("03" or "3"), by name ("03_moco"), or any notebook by its path."""
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    lessons = {path.stem: path for path in sorted((checkout() / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
    for stem, path in lessons.items():
        if name in (stem, path.name) or (name.isdigit() and int(name) == int(stem[:2])):
            return path.resolve()
    return lessons[known("lesson", name, lessons)]


def defaults(notebook: Path) -> dict[str, object]:
    """Names and default values in the notebook's cell tagged `parameters`."""
    from papermill import inspect_notebook

    return {name: literal(name, found["default"]) for name, found in inspect_notebook(notebook).items()}


def kinds(notebook: Path) -> dict[str, str]:
    """The kind of each parameter: its annotation in the notebook, "int", else the type of its default."""
    from papermill import inspect_notebook

    values = defaults(notebook)
    found = {name: entry["inferred_type_name"] for name, entry in inspect_notebook(notebook).items()}
    return {name: type(values[name]).__name__ if kind == "None" else kind for name, kind in found.items()}


@dataclass(frozen=True)
class Job:
    """What came of one execution. `html` is None if nothing was there to copy, `error` if all went well;
    `died` tells a kernel that died or never came up from a cell that failed."""

    folder: Path
    notebook: Path
    html: Path | None
    error: str | None
    died: bool = False


def job_folder(notebook: Path, parameters: dict[str, object], root: str | Path = "runs") -> Path:
    """runs/<lesson>-<dataset>-<profile>-<time>: named by what is asked for, else by the defaults."""
    words = {**defaults(notebook), **parameters}
    words = [Path(str(words[name])).name for name in ("dataset", "profile") if words.get(name)]
    return Path(root, "-".join([notebook.stem, *words, time.strftime("%Y%m%d-%H%M%S")])).resolve()


def execute(
    notebook: Path, folder: Path, parameters: dict[str, object], say: Callable[[str], object] | None = None
) -> Job:
    """Execute a notebook in a fresh kernel of this Python and keep it, with an HTML copy, whatever happens.

    The working directory is the notebook's own, as in Jupyter. A parameter `run_dir`, where the notebook has
    one, is set to `folder`, so that the lesson's record lies beside it. What cells print goes to `say`.

    Args:
        notebook: read, not changed. folder: made if missing. parameters: by name, checked before the start.
    Returns:
        A `Job`; a failing cell or a dead kernel is told in its `error`.
    Raises:
        Unknown: a parameter that the notebook does not have.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    # papermill itself would only warn of a name that the notebook does not have
    declared = defaults(notebook)
    check_settings(f"parameter of {notebook.name}", parameters, declared)
    notebook, folder = notebook.resolve(), Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if "run_dir" in declared:
        parameters = {"run_dir": str(folder), **parameters}
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else every kernel starts with a warning
    output, stream = folder / notebook.name, _Stream(say) if say else None
    for _ in range(3):
        error, died = None, False
        try:
            papermill.execute_notebook(
                notebook,
                output,
                parameters,
                cwd=notebook.parent,
                progress_bar=sys.stderr.isatty(),  # counts cells; a long one looks still
                stdout_file=stream,
                stderr_file=stream,
                autosave_cell_every=30,
            )
        except PapermillExecutionError as problem:
            error = f"cell [{problem.exec_count}] failed with {problem.ename}: {problem.evalue}"
        except (Exception, KeyboardInterrupt) as problem:  # a dead or missing kernel, ctrl-C: kept too
            error, died = f"{type(problem).__name__}: {problem}".rstrip(": "), True
        # Before its first cell, a kernel dies when another one took its port: no cell has run, so once more
        if "before replying to kernel_info" not in (error or ""):
            break
    return Job(folder, output, write_html(output), error, died)


class _Stream:
    """What papermill writes to: a file in name, passing on text without the colours of a traceback."""

    def __init__(self, say: Callable[[str], object]):
        self._say = say

    def write(self, text: str) -> None:
        self._say(re.sub(r"\x1b\[[0-9;]*m", "", text))

    def flush(self) -> None:
        pass


def write_html(notebook: Path) -> Path | None:
    """An HTML copy beside an executed notebook; None if there is no notebook."""
    from nbconvert import HTMLExporter

    if not notebook.exists():
        return None
    page, _ = HTMLExporter().from_filename(str(notebook))
    copy = notebook.with_suffix(".html")
    copy.write_text(page, encoding="utf-8")
    return copy


# ---- A job in a process of its own -------------------------------------------------------------------------


def read_state(folder: Path) -> dict:
    """What a job's folder says of it in job.json; {} where that is missing or damaged."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(folder: Path, state: dict) -> dict:
    """Replace job.json at once (as `records.atomically`, which would load torch here); returns `state`."""
    temporary = folder / f"{STATE}.{os.getpid()}.tmp"
    temporary.write_text(
        json.dumps(state, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
    os.replace(temporary, folder / STATE)
    return state


def strays(folder: Path) -> list:
    """Other processes of this machine that work in a job's folder."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone meanwhile, or another user's
            if process.environ().get(MARK) == str(folder) and process.pid != os.getpid():
                found.append(process)
    return found


def clear(folder: Path) -> None:
    """Kill whatever still works in a job's folder, and wait for it: two must never write there."""
    import psutil

    for _ in range(3):
        if not (found := strays(folder)):
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=10)
    raise OSError(f"processes {[p.pid for p in found]} still work in {folder} and cannot be stopped")


def carry_out(
    folder: str | Path, env: dict[str, str] | None = None, stopped: Callable[[], bool] = lambda: False
) -> dict:
    """Carry out the job that a folder's job.json describes, in a process of its own, to its end.

    A process that dies, or whose kernel does (killed, out of memory), is started once more: the lesson goes
    on from its checkpoint by itself. A cell that fails would fail again, and is not repeated.

    Args:
        env: replaces variables of the environment. stopped: asked several times a second; once true, the
            process is ended, and its job stays "running", to be taken up again.
    Returns:
        job.json as it is then: "status" is "done" or "failed", "error" says why.
    """
    folder = Path(folder)
    for time_ in ("first", "second"):
        clear(folder)
        state = read_state(folder)
        if "attempts" not in state:
            raise FileNotFoundError(f"{folder / STATE} cannot be read on {platform.node()}: is it shared?")
        if state["status"] == "done":  # Dask forgot: the worker that knew has died since
            return state
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        now = {"status": "running", "error": None, "attempts": state["attempts"] + 1}
        write_state(folder, {**state, **now, "started": started, "host": platform.node()})
        code = _process(folder, env, stopped)
        state = read_state(folder)
        if state.get("status") in ("done", "failed") or stopped():
            return state
        signs = {-s: f"was killed by {s.name}" for s in signal.Signals}
        died = f"the process {signs.get(code, f'ended with exit code {code}')} before its notebook ended"
        state["error"] = f"{state['error'] or died}, for the {time_} time"
    return write_state(folder, {**state, "status": "failed"})


def _process(folder: Path, env: dict[str, str] | None, stopped: Callable[[], bool]) -> int:
    """Start a job's process and wait for its end; returns the exit code, negative for a signal."""
    env = {**os.environ, **(env or {}), MARK: str(folder), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "ssl_lessons.jobs", str(folder)]
    # In a session of its own: a ctrl-C in the terminal is for the grid alone, which then stops its jobs
    apart = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    with (
        open(folder / "job.log", "ab") as log,
        subprocess.Popen(command, stdout=log, env=env, **apart) as job,
    ):
        while job.poll() is None and not stopped():
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(0.2)
        job.stdin.close()  # one that still runs reads the end of its input, and leaves
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(10)
        job.kill()
    clear(folder)  # a kernel that outlived it
    return job.returncode


def _leave_with_the_starter() -> None:
    """End this process and its kernel when its input ends: whoever started it is gone, kill -9 included."""
    import psutil

    while os.read(0, 1024):
        pass
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(1)


def main(folder: Path) -> None:
    """Execute the notebook that job.json names and write there what came of it."""
    threading.Thread(target=_leave_with_the_starter, daemon=True).start()
    state, begun = read_state(folder), time.monotonic()
    print(f"---- attempt {state['attempts']}, {state['started']}, {state['notebook']} {state['parameters']}")
    job = execute(Path(state["notebook"]), folder, state["parameters"], lambda text: print(text, end=""))
    status = "died" if job.died else "failed" if job.error else "done"
    print(f"---- {status} {job.error or ''}")
    write_state(folder, {**state, "status": status, "error": job.error, "seconds": time.monotonic() - begun})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
