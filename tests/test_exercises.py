"""Exercises: each has a collapsed hint and solution; the stub says "not solved yet", the solution is solved.

One kernel stands for each notebook: the cells tagged `imports`, then stub + check and solution + check.
"""

import contextlib
import io
import re
import runpy
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ssl_lessons import lab

matplotlib.use("Agg")

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
SOLUTION = re.compile(r"<summary>Solution</summary>.*?```python\n(.*?)```.*?</details>", re.DOTALL)


def exercises(cells) -> list[tuple[str, str, str, str]]:
    """(title, stub, solution, check) of each exercise, found by tags; AssertionError if one lacks a part."""

    def tagged(cell, tag):
        return cell.cell_type == "code" and tag in cell.metadata.get("tags", [])

    found = []
    for i, cell in enumerate(cells):
        if tagged(cell, "exercise"):
            card = re.search(r"^### Exercise .* · [●○]{3} · \d+ min$", cells[i - 1].source, re.MULTILINE)
            assert card, f"no title with difficulty and minutes above\n{cell.source}"
            title = card[0]
            text, check = cells[i + 1], cells[i + 2]
            assert text.cell_type == "markdown", title
            folded = " ".join(re.findall("<summary>(.*?)</summary>", text.source)).lower()
            for part in ("hint", "expected output", "common mistakes"):
                assert part in folded, f"{title}: no {part}"
            solution = SOLUTION.search(text.source)
            assert solution, f"{title}: no Python block under <summary>Solution</summary>"
            assert tagged(check, "check"), f"{title}: the cell after the solution is not tagged `check`"
            assert "raise NotImplementedError" in cell.source, title
            found.append((title, cell.source, solution[1], check.source))
    assert len(found) == sum(tagged(cell, "check") for cell in cells)
    return found


def imports(cells) -> dict:
    """The names that the notebook's cells tagged `imports` define, one or more of them, in their order."""
    sources = [cell.source for cell in cells if "imports" in cell.metadata.get("tags", [])]
    assert sources, "no cell is tagged `imports`"
    names = {"__name__": "__main__"}
    for source in sources:
        exec(source, names)
    return names


def printed(names: dict, *sources: str) -> str:
    """What the cells print, run one after the other in a copy of `names`."""
    names, out = dict(names), io.StringIO()
    with contextlib.redirect_stdout(out):
        for source in sources:
            exec(source, names)
    return out.getvalue()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stub_fails_clearly_and_the_solution_passes(path):
    cells = nbformat.read(path, as_version=4).cells
    found = exercises(cells)
    assert 2 <= len(found) <= 4, "a lesson has two to four exercises"
    names = imports(cells)
    for title, stub, solution, check in found:
        before = printed(names, stub, check)
        assert "not solved yet" in before and "★" not in before, f"{title}: {before}"
        after = printed(names, stub, solution, check)
        assert "★" in after and "solved" in after and "not solved" not in after, f"{title}: {after}"


def asked(names: dict, source: str, monkeypatch) -> list[tuple]:
    """What the calls of `lab.exercise` in a cell `assess`: (name, its arguments but the learner's own)."""
    calls = []
    names = dict(names)

    def listen(name, mine, solution, **more):
        calls.append((name, {"solution": solution, **more}))
        return solution

    with monkeypatch.context() as patch:
        patch.setattr(lab.checks, "assess", listen)
        exec(source, names)
    return calls


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_wrong_answers_fail_with_their_mistake_named(path, monkeypatch, capsys):
    cells = nbformat.read(path, as_version=4).cells
    names = imports(cells)
    for title, stub, _, check in exercises(cells):
        calls = asked(names, f"{stub}\n{check}", monkeypatch)
        assert calls, f"{title}: its check does not call lab.exercise"
        for name, task in calls:
            assert len(task["mistakes"]) >= 5, (
                f"{title}: {len(task['mistakes'])} known mistakes, five at least"
            )
            for text, wrong in task["mistakes"].items():
                capsys.readouterr()
                assert lab.assess(name, wrong, **task) is task["solution"], f"{title}: {text}"
                assert text in capsys.readouterr().out, f"{title}: {text} is taken for another mistake"


def test_the_series_has_exercises_and_many_of_them_make_what_trains():
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("exercise") >= 36 and tags.count("core") >= 12


def cell(kind, source, *tags):
    make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    return make(source, metadata={"tags": list(tags)})


FOLDED = "<details><summary>{}</summary>\n\n{}\n</details>\n"
CARD = "".join(FOLDED.format(part, "x") for part in ("Hint", "Expected output", "Common mistakes"))
CARD += FOLDED.format("Solution", "{}")
GOOD = [
    cell("code", "from ssl_lessons import lab", "imports"),
    cell("markdown", "### Exercise 9.1 · twice · ●○○ · 1 min"),
    cell("code", "def twice(x):\n    raise NotImplementedError", "exercise"),
    cell("markdown", CARD.format("```python\ndef twice(x):\n    return 2 * x\n```")),
    cell("code", "lab.assess('9.1', twice, lambda x: 2 * x, lambda seed: (seed + 1,))", "check"),
]


def test_this_test_sees_a_stub_a_wrong_solution_and_a_missing_part():
    ((title, stub, solution, check),) = exercises(GOOD)
    assert title.startswith("### Exercise 9.1")
    names = imports(GOOD)
    assert "not solved yet" in printed(names, stub, check)
    assert "★ 9.1: solved" in printed(names, stub, solution, check)
    assert "✗ 9.1" in printed(names, stub, solution.replace("2 *", "3 *"), check)
    for broken in (
        [*GOOD[:3], cell("markdown", CARD.format("no code")), GOOD[4]],
        [*GOOD[:3], cell("markdown", GOOD[3].source.replace("Common", "Rare")), GOOD[4]],
        [GOOD[0], cell("markdown", "### Exercise 9.1 · twice"), *GOOD[2:]],
        [*GOOD[:4], cell("code", "pass")],
        [*GOOD, GOOD[4]],
    ):
        with pytest.raises(AssertionError):
            exercises(broken)


def test_names_come_from_every_cell_of_imports():
    names = imports([cell("code", "import math", "imports"), *GOOD])
    assert names["math"].sqrt(4) == 2 and names["lab"].__name__ == "ssl_lessons.lab"
    with pytest.raises(AssertionError, match="imports"):
        imports(GOOD[1:])


@pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch knows no GPU")
@pytest.mark.skipif(torch.__version__.startswith("2.4."), reason="its fake tensors ask for a real GPU")
@pytest.mark.parametrize("number", ["02.1", "02.2", "03.1", "03.2", "04.1", "05.1"])
def test_a_solution_with_which_a_lesson_trains_does_so_on_a_gpu(number):
    """Where an exercise is not solved, the lesson trains with its solution. No GPU is needed here: fake
    tensors have a device, and an operation on two devices fails as it would there."""
    exercise = runpy.run_path(str(NOTEBOOKS[0].parent / "exercises" / f"{number}.py"))["EXERCISE"]
    arguments = [*exercise["case"](0)]
    if number == "03.2":
        arguments[1] = torch.tensor(arguments[1])  # a buffer of the method's
    dynamic = ShapeEnv(allow_dynamic_output_shape_ops=True)
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=dynamic):
        for i, value in enumerate(arguments):
            if isinstance(value, torch.Tensor):
                arguments[i] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
        results = exercise["solution"](*arguments)
        for result in results if isinstance(results, (tuple, list)) else [results]:
            assert not isinstance(result, torch.Tensor) or result.device.type == "cuda"
