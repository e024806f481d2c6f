"""Cells that check a learner's work: equal or not, what is wrong, and what usually causes it."""

import inspect
import runpy
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ssl_lessons.parameters import Unknown


def check(name: str, mine, reference, atol: float = 1e-5) -> None:
    """Compare what a learner built with what the package says; print how close they are.

    Args:
        mine, reference: tensors, numbers, or sequences of them. atol: largest absolute difference allowed.
    Raises:
        AssertionError: they differ; the message says how, and what usually causes it.
    """
    problem, difference = _difference(mine, reference, atol)
    if problem:
        raise AssertionError(f"✗ {name}: {problem}")
    print(f"✓ {name}: " + ("equal" if difference == 0 else f"equal within {difference:.1e}"))


def _difference(mine, reference, atol: float) -> tuple[str, float]:
    if mine is None or mine is Ellipsis:
        return "nothing was returned yet; return the value from your function", 0.0
    if isinstance(reference, (list, tuple)):
        if not hasattr(mine, "__len__"):
            return f"a {type(mine).__name__}, expected {len(reference)} values", 0.0
        if len(mine) != len(reference):
            return f"{len(mine)} values, expected {len(reference)}", 0.0
        parts = [_difference(a, b, atol) for a, b in zip(mine, reference, strict=True)]
        wrong = next((f"in value {i}, {text}" for i, (text, _) in enumerate(parts) if text), "")
        return wrong, max((difference for _, difference in parts), default=0.0)
    reference = torch.as_tensor(reference).detach().cpu()
    try:
        mine = torch.as_tensor(mine).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        return f"a {type(mine).__name__} that is no tensor, expected shape {tuple(reference.shape)}", 0.0
    if mine.shape != reference.shape:
        hint = "; transposed?" if mine.shape == reference.shape[::-1] else ""
        return f"shape {tuple(mine.shape)}, expected {tuple(reference.shape)}{hint}", 0.0
    a, b = mine.double(), reference.double()
    if (b.isfinite() & ~a.isfinite()).any():
        return "holds NaN or infinity; an exp of a large number, or a division by zero?", 0.0
    same = (a == b) | (a.isnan() & b.isnan())  # an infinity equals itself: a masked similarity
    gaps = torch.where(same, 0.0, (a - b).abs())
    difference = gaps.max().item() if a.numel() else 0.0
    if difference <= atol:
        return "", difference
    return f"largest difference {difference:.3g}{_cause(a, b, atol)}", difference


def _cause(a: Tensor, b: Tensor, atol: float) -> str:
    """The usual reason why `a` is not `b`, where one fits."""
    if torch.allclose(-a, b, atol=atol):
        return "; the sign is the other way round"
    if not a.any():
        return "; yours is all zeros"
    scale = (a * b).sum() / (b * b).sum()
    if a.numel() > 1 and torch.allclose(a, scale * b, atol=atol):  # one number is a multiple of any other
        return f"; yours is {scale:.4g} times the expected: a sum for a mean, a missing factor?"
    if a.numel() > 1 and torch.allclose((a - b), (a - b).mean().expand_as(a), atol=atol):
        return f"; yours is {(a - b).mean():.4g} more everywhere: a missing term?"
    if a.dim() == 2 and a.shape[0] == a.shape[1] and torch.allclose(a.T, b, atol=atol):
        return "; yours is the transpose"
    if a.numel() > 1 and torch.allclose(a.flatten().sort().values, b.flatten().sort().values, atol=atol):
        return "; the right values in another order"
    return ""


def lesson_files(name: str) -> list[Path]:
    """Files of a name in notebooks/: of the working directory, where a notebook runs, or the one above; then
    of the checkout or the installation that the package is used from."""
    package = Path(__file__).resolve().parent.parent
    folders = (Path.cwd(), Path.cwd().parent, package.parent / "notebooks", package / "notebooks")
    return [folder / name for folder in folders if (folder / name).is_file()]


def exercise(name: str, mine: Callable) -> Callable:
    """`assess` a learner's function by notebooks/exercises/NN.k.py, NN.k being the beginning of the name."""
    number = name.split()[0]
    found = lesson_files(f"exercises/{number}.py")
    if not found:
        raise Unknown(f"exercise {number!r} is not known: no notebooks/exercises/{number}.py")
    return assess(name, mine, **runpy.run_path(str(found[0]))["EXERCISE"])


def assess(
    name: str,
    mine: Callable,
    solution: Callable,
    case: Callable[[int], tuple],
    mistakes: dict[str, Callable] | None = None,
    *,
    observe: Callable | None = None,
    seeds: int = 3,
    atol: float = 1e-5,
) -> Callable:
    """Check a learner's function on several random cases; return it where it is right, else the solution.

    A wrong answer is compared with known `mistakes` first, and the one that gives the same on every case is
    named; else the difference is described. Nothing is raised: the lesson goes on with what is returned.

    Args:
        mine, solution: functions with the same arguments.
        case: a seed -> the arguments, made anew for each call, so that a function may change them.
        mistakes: {what was done, in words: a function that does it}.
        observe: (result, *arguments) -> what is compared, where that is not the result: a changed buffer, a
            gradient. atol: the largest absolute difference allowed.
    """

    def outcomes(function: Callable) -> list:
        values = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            arguments = case(seed)
            result = function(*arguments)
            values.append(observe(result, *arguments) if observe else result)
        return values

    expected = outcomes(solution)
    try:
        own = outcomes(mine)
    except NotImplementedError:
        print(f"… {name}: not solved yet. Replace `raise NotImplementedError` and run both cells again.")
    except Exception as error:  # whatever an attempt can raise: its line is shown, and the lesson goes on
        print(f"✗ {name}: {_own_line(error, mine)}")
    else:
        problem, difference = _difference(own, expected, atol)
        if not problem:
            print(f"★ {name}: solved, equal on {seeds} random cases within {max(difference, 1e-7):.0e}.")
            return mine
        for text, wrong in (mistakes or {}).items():
            try:
                if not _difference(own, outcomes(wrong), atol)[0]:
                    problem = text
                    break
            except Exception:  # a mistake that stops, where the learner's did not
                continue
        print(f"✗ {name}: {problem}")
    print("  The lesson goes on with the solution in its place.")
    return solution


def _own_line(error: Exception, function: Callable) -> str:
    """What was raised, and the line of the learner's function that it came from."""
    code = inspect.unwrap(function).__code__
    own = [line for line in traceback.extract_tb(error.__traceback__) if line.filename == code.co_filename]
    place = ""
    if own:
        within = own[-1].lineno - code.co_firstlineno + 1
        place = f" in line {within} of your function"
    return f"{type(error).__name__}{place}: {error}"
