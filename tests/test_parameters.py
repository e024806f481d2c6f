"""Parameters are read and refused by their annotations, whoever hands them over."""

import dataclasses

import nbformat
import pytest

from ssl_lessons.methods.moco import RECIPES
from ssl_lessons.parameters import Parameter, Unknown, assigned, check, fit, of_notebook

CELL = """profile: str = "auto"  # smoke, class or full
epochs: int = 3
queue: int | None = None
focal: bool = None
temperature: float = None
momentum: "Optional[float]" = 0.9
seed: int = 0
size = 48
folder = print
first, second = 1, 2"""


def test_what_a_cell_declares():
    found = assigned(CELL)
    assert found["profile"] == Parameter("str", "auto") and found["queue"] == Parameter("int | None", None)
    assert found["size"] == Parameter("int", 48) and found["folder"].default is None
    assert not {"first", "second", "print"} & set(found)
    with pytest.raises(SyntaxError):
        assigned("%pip install")


def test_what_a_notebook_declares(tmp_path):
    cells = [nbformat.v4.new_code_cell("import sys"), nbformat.v4.new_code_cell(CELL)]
    path = tmp_path / "x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(Unknown, match="x.ipynb has no cell tagged"):
        of_notebook(path)
    cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert of_notebook(path) == assigned(CELL)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("focal", "false", False),
        ("focal", "True", True),
        ("focal", None, None),
        ("focal", "None", None),
        ("queue", "1e2", 100),
        ("queue", 128.0, 128),
        ("queue", None, None),
        ("seed", "0", 0),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("temperature", "1e-3", 0.001),
        ("temperature", 1, 1.0),
        ("momentum", None, None),
        ("size", "64", 64),
        ("profile", "7", "7"),
        ("folder", [1], [1]),
    ],
)
def test_text_is_read_as_what_the_annotation_names(name, given, value):
    got = check({name: given}, assigned(CELL), "parameter")[name]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "answer"),
    [
        ("focal", 1, "parameter focal is 1; it must be True or False"),
        ("focal", "no", "must be True or False"),
        ("epochs", None, "must be a whole number above 0"),
        ("epochs", 0, "must be a whole number above 0"),
        ("epochs", True, "must be a whole number"),
        ("queue", "1.5", "must be a whole number"),
        ("queue", "many", "must be a whole number"),
        ("queue", "1 2", "must be a whole number"),
        ("queue", [1], "must be a whole number"),
        ("queue", "1e999", "must be a whole number"),
        ("seed", "one", "parameter seed is 'one'; it must be a whole number"),
        ("seed", -1, "from 0 to 2"),
        ("seed", 2**32, "from 0 to 2"),
        ("temperature", "abc", "parameter temperature is 'abc'; it must be a number"),
        ("temperature", "nan", "must be a number"),
        ("temperature", True, "must be a number"),
        ("profile", 3, "must be text"),
        ("epoch", 3, "'epoch' is not known; choose one of: profile, epochs"),
    ],
)
def test_what_does_not_fit_is_named(name, given, answer):
    with pytest.raises(Unknown, match=answer):
        check({name: given}, assigned(CELL), "parameter")


def test_every_field_of_a_recipe_fits_itself():
    for recipe in RECIPES.values():
        values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
        declared = {
            field.name: Parameter(field.type, values[field.name]) for field in dataclasses.fields(recipe)
        }
        assert check(values, declared, "field") == values
    assert fit("head", "(None, 64)", declared["head"]) == (None, 64)
    with pytest.raises(Unknown, match="list of values in brackets"):
        fit("head", "64", declared["head"])
