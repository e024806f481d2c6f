"""Lessons as jobs: a notebook found by its number, its parameters checked, executed into a folder of its own.

papermill and nbconvert are imported when a lesson runs, so that this file costs nothing to import.
"""

import ast
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


class Unknown(ValueError):
    """Something asked for does not exist or does not fit; the message lists what does."""


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """`name` if it is one of `names`, else `Unknown` with the list."""
    names = list(names)
    if name not in names:
        raise Unknown(f"{kind} {name!r} is not known; choose one of: {', '.join(names)}")
    return name


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


@dataclass(frozen=True)
class Job:
    """What came of one execution. `html` is None if nothing was there to copy, `error` if all went well."""

    folder: Path
    notebook: Path
    html: Path | None
    error: str | None


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
    output, error = folder / notebook.name, None
    stream = _Stream(say) if say else None
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
        error = f"{type(problem).__name__}: {problem}".rstrip(": ")
    return Job(folder, output, write_html(output), error)


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
