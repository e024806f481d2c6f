"""Values on the way in, checked by annotation and range for recipes, lessons, papermill, grids and the shell.

Text is read as what the annotation names: a shell, papermill's `-p focal false` and YAML's `1e-3` all hand
over text, and the text "false" would count as true.
"""

import ast
import dataclasses
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
    """What is declared of one: its annotation, as written or as a type, else its default's; its default."""

    kind: str | type
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
        target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
        try:
            default = ast.literal_eval(line.value)
        except (ValueError, TypeError):  # computed, or only annotated
            default = None
        kind = ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) else type(default).__name__
        if isinstance(target, ast.Name):
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
        reason = f"{type(error).__name__}: {error}"
        raise Unknown(f"{path} is not a notebook of format 4 ({reason:.200}); save it again") from None
    raise Unknown(f"{path.name} has no cell tagged `parameters`")


def of_recipe(recipe) -> dict[str, Parameter]:
    """The fields of a dataclass's instance."""
    fields = dataclasses.fields(recipe)
    return {field.name: Parameter(field.type, getattr(recipe, field.name)) for field in fields}


# ---- The check ---------------------------------------------------------------------------------------------

# The range of a number by its name, both ends included. Whole numbers that are not named here are above 0. A
# range holds where the default keeps it: an own notebook's `gpu: int = 0` may be 0.
ABOVE_0, COUNT, FROM_0, SHARE = (sys.float_info.min, math.inf), (1, math.inf), (0, math.inf), (0, 1)
ANY, LAG, PAIR, BITS = (-math.inf, math.inf), (sys.float_info.min, 1), (2, math.inf), (-(2**63), 2**63 - 1)
RANGES = {"lag": LAG, "views": PAIR, "seed": BITS, **dict.fromkeys(("lr", "temperature"), ABOVE_0)}
RANGES |= dict.fromkeys(("weight_decay", "predictor_lr", "predictor_weight_decay", "warmup", "gamma"), FROM_0)
RANGES |= dict.fromkeys(("momentum", "sgd_momentum", "final_lr", "alpha"), SHARE)
IN_WORDS = {ABOVE_0: " above 0", COUNT: " above 0", FROM_0: " of at least 0", SHARE: " from 0 to 1", ANY: ""}
IN_WORDS |= {LAG: " above 0 and at most 1", PAIR: " above 1", BITS: " of 64 bits"}
# In the order in which a union's are tried: text fits everything
KINDS = {type(None): "None", bool: "True or False", int: "a whole number", float: "a number"}
KINDS |= {tuple: "a list of values in brackets", list: "a list of values in brackets"}
KINDS |= {Literal: "one of", str: "text", object: "anything"}
UNFIT = (ValueError, TypeError, KeyError, AttributeError, SyntaxError, ArithmeticError)
UNFIT += (RecursionError, MemoryError)  # of brackets by the thousand


def check(parameters: dict, declared: dict[str, Parameter], what: str) -> dict:
    """The same parameters, each value as its annotation says; `what` names them in an error.

    Raises:
        Unknown: a name that is not declared, or a value that does not `fit`.
    """
    return {
        name: fit(name, value, declared[known(what, name, declared)]) for name, value in parameters.items()
    }


def fit(name: str, value, parameter: Parameter):
    """`value`, or what its text stands for; `Unknown` if it is not of its kind or out of its range.

    Kinds are bool, int, float, str, Literal, tuple and list (with their members), and unions of them; another
    kind takes anything. None fits where the annotation says so, and where the default is None or "".
    """
    kind, default = _type(parameter.kind), parameter.default
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else [kind]
    omissible = default is None or default == ""
    kinds = [*kinds, type(None)] if omissible else kinds
    kinds = [kind if (get_origin(kind) or kind) in KINDS else object for kind in kinds]
    order = list(KINDS)
    expected = []
    for kind in sorted(kinds, key=lambda kind: order.index(get_origin(kind) or kind)):
        bounds = RANGES.get(name) or (COUNT if kind is int and parameter.kind != "NoneType" else ANY)
        if kind not in (int, float) or isinstance(default, int | float) and not _within(bounds, default):
            bounds = ANY
        try:
            return _read(kind, value, name, bounds)
        except UNFIT:
            meant = KINDS[get_origin(kind) or kind] + IN_WORDS[bounds]
            if get_origin(kind) is Literal:
                meant += f": {', '.join(map(str, get_args(kind)))}"
            expected.append(f"{meant}, {kind}" if get_origin(kind) in (tuple, list) else meant)
    if omissible:
        expected.remove("None")  # nobody writes what may be left out
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


def _within(bounds: tuple[float, float], number) -> bool:
    return bounds[0] <= number <= bounds[1]


def _read(kind: type, value, name: str, bounds: tuple[float, float]):
    """`value` as one kind; raises one of `UNFIT`."""
    text = value.strip() if isinstance(value, str) else None
    if kind is type(None):
        return {None: None, "None": None}[value]
    if kind is bool:
        return value if isinstance(value, bool) else {"true": True, "false": False}[text.lower()]
    if kind in (int, float):
        number = value if text is None else Decimal(text)  # "1e2" is 100, a long seed keeps all its digits
        if isinstance(value, bool) or not _within(bounds, number) or not math.isfinite(float(number)):
            raise ValueError
        if kind is float:
            return value if isinstance(value, int) else float(number)
        if abs(number) >= 2**63 or int(number) != number:  # 64 bits are what PyTorch takes
            raise ValueError
        return int(number)
    if kind is str and text is None:
        raise TypeError
    sort = get_origin(kind) or kind
    if sort is Literal:
        return {str(choice): choice for choice in get_args(kind)}[str(value)]
    if sort in (tuple, list):
        values = ast.literal_eval(text) if text is not None else value
        if not isinstance(values, list | tuple):
            raise TypeError
        kinds = list(get_args(kind)) or [object, ...]
        if sort is list or kinds[-1] is ...:
            kinds = kinds[:1] * len(values)
        return sort(fit(name, each, Parameter(kind, ...)) for kind, each in zip(kinds, values, strict=True))
    return value
