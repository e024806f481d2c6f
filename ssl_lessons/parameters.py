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
from decimal import Decimal
from pathlib import Path
from typing import Literal, NamedTuple, Union, get_args, get_origin


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
    """A path with its `~` filled in; `Unknown` for the home of a user that there is not."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise Unknown(f"{str(text)!r} starts in the home of a user that is not known here") from None


# ---- What is declared --------------------------------------------------------------------------------------


def assigned(source: str) -> dict[str, Parameter]:
    """The names that Python source assigns at its top level. Raises SyntaxError for what is no Python."""
    try:
        lines = ast.parse(source).body
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte, brackets by the thousand
        raise SyntaxError(str(error)) from None
    declared = {}
    for line in lines:
        if not isinstance(line, ast.Assign | ast.AnnAssign):
            continue
        annotated = isinstance(line, ast.AnnAssign)
        target = line.target if annotated else line.targets[0]
        try:
            default = ast.literal_eval(line.value)
        except (ValueError, TypeError):  # computed, or only annotated
            default = None
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
RANGES |= dict.fromkeys(("momentum", "sgd_momentum", "final_lr", "alpha"), SHARE)
RANGES |= {"lr": ABOVE_0, "temperature": ABOVE_0, "lag": (sys.float_info.min, 1, " above 0 and at most 1")}
RANGES |= {"views": (2, math.inf, " above 1"), "seed": (-(2**63), 2**63 - 1, " of 64 bits")}
# In the order in which a union's are tried: text fits everything
KINDS = {type(None): "None", bool: "True or False", int: "a whole number", float: "a number"}
KINDS |= {tuple: "a list of values in brackets", list: "a list of values in brackets"}
KINDS |= {Literal: "one of: ", str: "text", object: "anything"}
UNFIT = (ValueError, TypeError, KeyError, AttributeError, SyntaxError, ArithmeticError)
UNFIT += (RecursionError, MemoryError)  # of brackets by the thousand


def check(parameters: dict, declared: dict[str, Parameter], what: str) -> dict:
    """The same parameters, each value as its annotation says; `what` names them in an error. `Unknown`: a
    name that is not declared, or a value that does not `fit`."""
    chosen = {name: declared[known(what, name, declared)] for name in parameters}
    return {name: fit(name, value, chosen[name]) for name, value in parameters.items()}


def fit(name: str, value, parameter: Parameter):
    """`value`, or what its text stands for; `Unknown` if it is not of its kind or out of its range.
    Kinds are bool, int, float, str, Literal, tuple and list (with their members), and unions of them; another
    kind takes anything. None fits where the annotation says so, and where the default is None or ""."""
    kind, default = _type(parameter.kind), parameter.default
    if (default is None or default == "") and isinstance(value, str | None) and str(value) == "None":
        return None
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else [kind]
    kinds = [kind if (get_origin(kind) or kind) in KINDS else object for kind in kinds]
    low, high, words = RANGES.get(name, ABOVE_0 if int in kinds and float not in kinds else ANY)
    if isinstance(default, int | float) and not low <= default <= high:
        low, high, words = ANY
    expected = []
    for kind in sorted(kinds, key=lambda kind: [*KINDS].index(get_origin(kind) or kind)):
        details = {int: words, float: words, tuple: f", {kind}", list: f", {kind}"}
        details[Literal] = ", ".join(map(str, get_args(kind)))
        sort = get_origin(kind) or kind
        expected.append(KINDS[sort] + details.get(sort, ""))
        try:
            fitted = _read(kind, value, name)
        except UNFIT:
            continue
        if sort not in (int, float) or low <= fitted <= high:
            return fitted
    raise Unknown(f"parameter {name} is {value!r:.200}; it must be {' or '.join(expected[::-1])}")


def _type(annotation: str | type) -> type:
    """The type that an annotation names; `object`, which anything is, for one not of Python or typing."""
    if not isinstance(annotation, str):
        return annotation
    if annotation == "NoneType":  # of a default alone: text is read as papermill's command line reads it
        return bool | int | float | str | object
    if not re.fullmatch(r"[\w\s.,|\[\]\"']*", annotation) or "__" in annotation:  # so that nothing is called
        return object
    names = {**vars(typing), "typing": typing, "__builtins__": {kind.__name__: kind for kind in KINDS}}
    try:
        return _type(eval(annotation, names))  # again: it may stand in quotes
    except Exception:  # a class of the notebook's own
        return object


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
            return value if isinstance(value, int) else float(number)
        if abs(number) >= 2**63 or int(number) != number:  # 64 bits are what PyTorch takes
            raise ValueError
        return int(number)
    if sort in (tuple, list):
        values = value if text is None else ast.literal_eval(text)
        if not isinstance(values, list | tuple):
            raise TypeError
        kinds = list(get_args(kind)) or [object, ...]
        if sort is list or kinds[-1] is ...:
            kinds = kinds[:1] * len(values)
        pairs = zip(kinds, values, strict=True)
        return sort(fit(name, member, Parameter(kind, ...)) for kind, member in pairs)
    if sort is str and text is None:
        raise TypeError
    return value
