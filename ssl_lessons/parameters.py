"""Parameters, checked by their annotations: the one place for `lab.setup`, papermill, grids and `-p`.

Text is read as what the annotation names: a shell, papermill's `-p focal false` and YAML's `1e-3` all hand
over text, and the text "false" would count as true.
"""

import ast
import dataclasses
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Unknown(ValueError):
    """Something asked for does not exist or does not fit; the message lists what does."""


class Parameter(NamedTuple):
    """What is declared of one: its annotation as written (else the type of its default), its default."""

    kind: str
    default: object


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """`name` if it is one of `names`, else `Unknown` with the list."""
    names = list(names)
    if name not in names:
        raise Unknown(f"{kind} {name!r} is not known; choose one of: {', '.join(names)}")
    return name


# ---- What is declared --------------------------------------------------------------------------------------


def assigned(source: str) -> dict[str, Parameter]:
    """The names that Python source assigns at its top level. Raises SyntaxError for what is no Python."""
    found = {}
    for line in ast.parse(source).body:
        if not isinstance(line, ast.Assign | ast.AnnAssign):
            continue
        target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
        try:
            default = ast.literal_eval(line.value)
        except (ValueError, TypeError):  # computed, or only annotated
            default = None
        kind = ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) else type(default).__name__
        if isinstance(target, ast.Name):
            found[target.id] = Parameter(kind, default)
    return found


def of_notebook(path: Path) -> dict[str, Parameter]:
    """What a notebook's cell tagged `parameters` declares; `Unknown` where there is no such cell."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            return assigned("".join(cell["source"]))
    raise Unknown(f"{path.name} has no cell tagged `parameters`")


def of_recipe(recipe) -> dict[str, Parameter]:
    """The fields of a dataclass's instance."""
    fields = dataclasses.fields(recipe)
    return {field.name: Parameter(_written(field.type), getattr(recipe, field.name)) for field in fields}


def _written(annotation) -> str:
    return annotation.__name__ if type(annotation) is type else str(annotation)


# ---- The check ---------------------------------------------------------------------------------------------


def check(parameters: dict, declared: dict[str, Parameter], what: str) -> dict:
    """The same parameters, each value as its annotation says; `what` names them in an error.

    Raises:
        Unknown: a name that is not declared, or a value that is not of its kind.
    """
    return {
        name: fit(name, value, declared[known(what, name, declared)]) for name, value in parameters.items()
    }


def fit(name: str, value, parameter: Parameter):
    """`value`, or the value that its text stands for, if it is of the parameter's kind.

    Kinds are bool, float, int (above 0, but for a seed), str and tuple; anything else passes as it is. None
    is of a kind too where the annotation says so, or where the default is None or "".
    """
    kind = "tuple" if parameter.kind.startswith("tuple") else parameter.kind  # whatever its members are
    words = re.findall(r"\w+", kind)  # of "int | None", "Optional[int]"
    empty = parameter.default is None or parameter.default == ""
    if value in (None, "None") and (empty or "None" in words or "Optional" in words):
        return None
    for word, (read, meant) in KINDS.items():
        if word in words:
            try:
                return read(value, name)
            except (ValueError, TypeError, KeyError, AttributeError, SyntaxError, OverflowError):
                if word == "int" and name != "seed":
                    meant += " above 0"
                raise Unknown(f"parameter {name} is {value!r}; it must be {meant}") from None
    return value


def _bool(value, _) -> bool:
    return value if isinstance(value, bool) else {"true": True, "false": False}[value.lower()]


def _float(value, _) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return value if isinstance(value, int) else number


def _int(value, name: str) -> int:
    number = ast.literal_eval(value.strip()) if isinstance(value, str) else value  # "1e2" is 100
    if isinstance(number, bool) or int(number) != number or (number < 1 and name != "seed"):
        raise ValueError
    return int(number)


def _str(value, _) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _tuple(value, _) -> tuple:
    values = ast.literal_eval(value) if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        raise TypeError
    return tuple(values)


KINDS = {
    "bool": (_bool, "True or False"),
    "float": (_float, "a number"),
    "int": (_int, "a whole number"),
    "str": (_str, "text"),
    "tuple": (_tuple, "a list of values in brackets"),
}
