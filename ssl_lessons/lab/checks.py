"""Cells that check a learner's work: equal or not, what is wrong, and what usually causes it."""

import inspect
import runpy
import traceback
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ssl_lessons.parameters import Parameter, Unknown, fit


def check(name: str, mine, reference, atol: float = 1e-5) -> None:
    """Compare what a learner built with what the package says (tensors, numbers, sequences of them); print
    how close they are. AssertionError: they differ by more than `atol`; it says how, and the usual cause."""
    problem, difference = _difference(mine, reference, atol)
    if problem:
        raise AssertionError(f"✗ {name}: {problem}")
    print(f"✓ {name}: " + ("equal" if difference == 0 else f"equal within {difference:.1e}"))


def _difference(mine, reference, atol: float) -> tuple[str, float]:
    """What is wrong, "" for nothing, and the largest absolute difference."""
    if mine is None or mine is Ellipsis:
        return "nothing was returned yet; return the value from your function", 0.0
    kind = type(mine).__name__
    if isinstance(reference, (list, tuple)):
        ordered = not isinstance(mine, Mapping | Set | str)
        if not ordered or not hasattr(mine, "__len__") or getattr(mine, "shape", None) == ():
            return f"a {kind}, expected {len(reference)} values", 0.0
        if len(mine) != len(reference):
            return f"{len(mine)} values, expected {len(reference)}", 0.0
        largest = 0.0
        for i, (own, right) in enumerate(zip(mine, reference, strict=True)):
            problem, difference = _difference(own, right, atol)
            if problem:
                return f"in value {i}, {problem}", difference
            largest = max(largest, difference)
        return "", largest
    right = torch.as_tensor(reference).detach().cpu().to_dense()
    try:
        own = torch.as_tensor(mine).detach().cpu().to_dense()
    except (TypeError, ValueError, RuntimeError):
        return f"a {kind} that is no tensor, expected shape {tuple(right.shape)}", 0.0
    if own.shape != right.shape:
        hint = "; transposed?" if own.shape == right.shape[::-1] else ""
        return f"shape {tuple(own.shape)}, expected {tuple(right.shape)}{hint}", 0.0
    wide = torch.promote_types(own.dtype, right.dtype)
    exact = not wide.is_floating_point and not wide.is_complex  # whole: a float64 rounds beyond 2**53
    wide = torch.int64 if exact else torch.promote_types(wide, torch.float64)
    own, right = own.to(wide), right.to(wide)
    if (right.isfinite() & ~own.isfinite()).any():
        return "holds NaN or infinity; an exp of a large number, or a division by zero?", 0.0
    same = (own == right) | (own.isnan() & right.isnan())  # an infinity equals itself: a masked similarity
    gaps = torch.where(same, 0.0, (own - right).abs().double())
    difference = gaps.max().item() if own.numel() else 0.0
    if difference <= atol:
        return "", difference
    cause = "" if own.is_complex() else _cause(own.double(), right.double(), atol)
    return f"largest difference {difference:.3g}{cause}", difference


def _cause(own: Tensor, right: Tensor, atol: float) -> str:
    """The usual reason why `own` is not `right`, where one fits."""
    near = partial(torch.allclose, atol=atol)
    if near(-own, right):
        return "; the sign is the other way round"
    if not own.any():
        return "; yours is all zeros"
    if own.numel() == 1:  # one number is a multiple of any other
        return ""
    scale = (own * right).sum() / (right * right).sum()
    if near(own, scale * right):
        return f"; yours is {scale:.4g} times the expected: a sum for a mean, a missing factor?"
    offset = (own - right).mean()
    if near(own - right, offset.expand_as(own)):
        return f"; yours is {offset:.4g} more everywhere: a missing term?"
    if own.dim() == 2 and own.shape[0] == own.shape[1] and near(own.T, right):
        return "; yours is the transpose"
    if near(own.flatten().sort().values, right.flatten().sort().values):
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
    number = (name.split() or [""])[0]
    files = lesson_files(f"exercises/{number}.py")
    if not files:
        raise Unknown(f"exercise {number!r} is not known: no notebooks/exercises/{number}.py")
    return assess(name, mine, **runpy.run_path(str(files[0]))["EXERCISE"])


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
    """Check a learner's function on random cases; return it where it is right, else the solution: the lesson
    goes on, and nothing is raised. A wrong answer is named by the known mistake that gives the same on every
    case; else the difference is described.

    Args:
        case: a seed -> the arguments, made anew for each call, so that a function may change them.
        mistakes: {what was done, in words: a function that does it}.
        observe: (result, *arguments) -> what is compared, where that is not the result: a changed buffer, a
            gradient. seeds: the number of cases. atol: the largest absolute difference allowed.
    """
    seeds = fit("seeds", seeds, Parameter(int, 3))

    def outcomes(function: Callable) -> list:
        values, dtype = [], torch.get_default_dtype()
        try:  # gradients and dtype may be switched in a function, and are put back
            with torch.set_grad_enabled(torch.is_grad_enabled()):
                for seed in range(seeds):
                    torch.manual_seed(seed)
                    arguments = case(seed)
                    result = function(*arguments)
                    values.append(observe(result, *arguments) if observe else result)
        finally:
            torch.set_default_dtype(dtype)
        return values

    expected = outcomes(solution)
    try:
        own = outcomes(mine)
        problem, difference = _difference(own, expected, atol)
    except NotImplementedError:
        print(f"… {name}: not solved yet. Replace `raise NotImplementedError` and run both cells again.")
    except (Exception, SystemExit) as error:  # its line is shown, and the lesson goes on
        print(f"✗ {name}: {type(error).__name__}{_place(error, mine)}: {error}")
    else:
        if not problem:
            print(f"★ {name}: solved, equal on {seeds} random cases within {max(difference, 1e-7):.0e}.")
            return mine
        for words, mistake in (mistakes or {}).items():
            with suppress(Exception):  # of a mistake that stops, where the learner's did not
                if not _difference(own, outcomes(mistake), atol)[0]:
                    problem = words
                    break
        print(f"✗ {name}: {problem}")
    print("  The lesson goes on with the solution in its place.")
    return solution


def _place(error: Exception, function: Callable) -> str:
    """The line of the learner's function that an error came from, in words."""
    code, place = getattr(inspect.unwrap(function), "__code__", None), ""  # None: of a module, a partial
    for frame in traceback.extract_tb(error.__traceback__):
        if code and frame.filename == code.co_filename:
            place = f" in line {frame.lineno - code.co_firstlineno + 1} of your function"
    return place
