"""Values on the way in, checked by annotation and range for recipes, lessons, papermill, grids and the shell.
Text is read as what the annotation names: all but recipes hand it over, and "false" would count as true."""

import ast
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, Union, get_args, get_origin


class Unknown(ValueError):
    """Something asked for does not exist or does not fit; the message lists what does."""


class Parameter(NamedTuple):
    """What is declared of one."""

    kind: str | type  # its annotation, as written or as a type; else its default's
    default: object


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """`name` if it is one of `names`, else `Unknown` with the list."""
    names = list(names)
    if name not in names:
        raise Unknown(f"{kind} {name!r:.200} is not known; choose one of: {', '.join(names)}")
    return name


def printable(text: str) -> str:
    """Text of a record or a file's name on one line, which a terminal cannot take for commands: control
    characters, line ends, marks of direction and lone surrogates are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def folder(text: str | Path) -> Path:
    """A path with its `~` filled in; `Unknown` for no text, and for the home of a user that there is not."""
    if not str(text):
        raise Unknown("the name of a folder is empty; name one, `.` is the working directory")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise Unknown(f"{str(text)!r} starts in the home of a user that is not known here") from None


# ---- What is declared --------------------------------------------------------------------------------------


def assigned(source: str) -> dict[str, Parameter]:
    """The names that Python source assigns at its top level. Raises SyntaxError for what is no Python."""
    try:
        lines = [line for line in ast.parse(source).body if isinstance(line, ast.Assign | ast.AnnAssign)]
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte, brackets by the thousand
        raise SyntaxError(str(error)) from None
    declared = {}
    for line in lines:
        annotated = isinstance(line, ast.AnnAssign)
        target = line.target if annotated else line.targets[0]
        default = None
        with suppress(ValueError, TypeError):  # of a value that is computed, or not there
            default = ast.literal_eval(line.value)
        if isinstance(target, ast.Name):
            kind = ast.unparse(line.annotation) if annotated else type(default).__name__
            declared[target.id] = Parameter(kind, default)
    return declared


def of_notebook(path: Path) -> dict[str, Parameter]:
    """What a notebook's cell tagged `parameters` declares; `Unknown` where there is no such cell to read."""
    try:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                return assigned("".join(cell["source"]))
    except SyntaxError as error:
        raise Unknown(f"{path.name}: its cell tagged `parameters` is not plain Python ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unknown(f"{path} is not a notebook of format 4 ({error!r:.200}); save it again") from None
    raise Unknown(f"{path.name} has no cell tagged `parameters`")


# ---- The check ---------------------------------------------------------------------------------------------

# The range of a number by its name, both ends included, and in words. Whole numbers that are not named here
# are above 0. A range holds where the default keeps it: an own notebook's `gpu: int = 0` may be 0.
ANY, ABOVE_0 = (-math.inf, math.inf, ""), (sys.float_info.min, math.inf, " above 0")
FROM_0, SHARE = (0, math.inf, " of at least 0"), (0, 1, " from 0 to 1")
RANGES = dict.fromkeys(("weight_decay", "predictor_lr", "predictor_weight_decay", "warmup", "gamma"), FROM_0)
RANGES |= dict.fromkeys(("momentum", "sgd_momentum", "final_lr", "alpha"), SHARE) | {"minutes": ABOVE_0}
RANGES |= {"lr": ABOVE_0, "temperature": ABOVE_0, "lag": (sys.float_info.min, 1, " above 0 and at most 1")}
RANGES |= {"views": (2, math.inf, " above 1"), "seed": (0, 2**32 - 1, " from 0 to 2**32 - 1")}  # as a CPU's
# In words, and in the order in which a union's are tried: text fits everything
KINDS = {type(None): "None", bool: "True or False", int: "a whole number{range}", float: "a number{range}"}
KINDS |= dict.fromkeys((tuple, list), "a list of values in brackets, {kind}")
KINDS |= {dict: "a dictionary as JSON has them", set: "a list (papermill hands no set over)"}
KINDS |= {Literal: "one of: {choices}", str: "text", object: "anything"}
UNFIT = (ValueError, TypeError, KeyError, AttributeError, SyntaxError, ArithmeticError)
UNFIT += (RecursionError, MemoryError)  # of brackets by the thousand


def check(parameters: dict, declared: dict[str, Parameter], what: str) -> dict:
    """The same parameters, each value as its annotation says; `what` names them in an error. `Unknown`: a
    name that is not declared, or a value that does not `fit`."""
    chosen = {name: declared[known(what, name, declared)] for name in parameters}
    return {name: fit(name, value, chosen[name]) for name, value in parameters.items()}


def fit(name: str, value, parameter: Parameter):
    """`value`, or what its text stands for; `Unknown` if it is not of its kind or out of its range.
    Kinds are bool, int, float, str, Literal, dict, tuple and list (with their members), and unions of them;
    another is the default's. None fits where the annotation says so, and where the default is None or ""."""
    kinds, default = _kinds(parameter.kind), parameter.default
    if (default is None or default == "") and isinstance(value, str | None) and str(value) == "None":
        return None
    if kinds == [type(None)] or any((get_origin(kind) or kind) not in [*KINDS] for kind in kinds):
        own = type(default) if type(default) in KINDS else object
        kinds = [bool, int, float, str, object] if default is None else [own]  # as papermill reads text
    low, high, words = RANGES.get(name, ABOVE_0 if int in kinds and float not in kinds else ANY)
    if isinstance(default, int | float) and not low <= default <= high:
        low, high, words = ANY
    expected = []
    for kind in sorted(kinds, key=lambda kind: [*KINDS].index(get_origin(kind) or kind)):
        sort, choices = get_origin(kind) or kind, ", ".join(map(str, get_args(kind)))
        expected.append(KINDS[sort].format(range=words, kind=kind, choices=choices))
        with suppress(*UNFIT):
            fitted = _read(kind, value, name)
            if sort not in (int, float) or low <= fitted <= high:
                return fitted
    raise Unknown(f"parameter {name} is {value!r:.200}; it must be {' or '.join(expected[::-1])}")


def _kinds(annotation: str | type) -> list:
    """The kinds that an annotation names, several in a union; [None] for one not of Python or typing."""
    if not isinstance(annotation, str):
        if get_origin(annotation) in (Annotated, Final):
            return _kinds(get_args(annotation)[0])
        if get_origin(annotation) in (Union, types.UnionType):
            return [kind for member in get_args(annotation) for kind in _kinds(member)]
        return [annotation]
    if not re.fullmatch(r"[\w\s.,|\[\]\"'/-]*", annotation) or "__" in annotation:  # nothing is called
        return [None]
    names = {kind.__name__: kind for kind in KINDS} | {**vars(typing), "typing": typing, "Path": str}
    try:
        return _kinds(eval(annotation, {"__builtins__": names}))  # again: it may stand in quotes
    except Exception:  # a class of the notebook's own
        return [None]


def _read(kind: type, value, name: str):
    """`value` as one kind; raises one of `UNFIT`."""
    sort, text = get_origin(kind) or kind, value.strip() if isinstance(value, str) else None
    if sort is type(None):
        return {None: None, "None": None}[value]
    if sort is bool:
        return value if isinstance(value, bool) else {"true": True, "false": False}[text.lower()]
    if sort is Literal:
        return {str(choice): choice for choice in get_args(kind)}[str(value)]
    if sort in (int, float):
        number = value if text is None else Decimal(text)  # "1e2" is 100, a long seed keeps all its digits
        if isinstance(value, bool) or not math.isfinite(float(number)):
            raise ValueError
        if sort is float:
            return float(number)  # 1 and 1.0 are one value
        if abs(number) >= 2**63 or int(number) != number:  # 64 bits are what PyTorch takes
            raise ValueError
        return int(number)
    if sort in (tuple, list, dict) and text is not None:
        value = ast.literal_eval(text)
    if sort in (tuple, list):
        if not isinstance(value, list | tuple):
            raise TypeError
        kinds = list(get_args(kind)) or [object, ...]
        if sort is list or kinds[-1] is ...:
            kinds = kinds[:1] * len(value)
        pairs = zip(kinds, value, strict=True)
        return sort(fit(name, member, Parameter(kind, ...)) for kind, member in pairs)
    if sort in (dict, set) and not isinstance(value, sort) or sort is str and text is None:
        raise TypeError
    if sort is dict and json.loads(json.dumps(value)) != value:  # papermill would make text of other keys
        raise ValueError
    return value
