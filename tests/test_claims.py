"""What a paragraph says of this run, or of a stored experiment: numbers that outputs above it printed."""

import re
from pathlib import Path

import nbformat
import pytest

from ssl_lessons.lab import METHODS

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("[0-9]*.ipynb"))
OPENINGS = ("**In the run printed here**", "**In this experiment**")


def claims(cells) -> list[tuple[str, list[str], str]]:
    """(paragraph, its decimals, what was printed before it) of each such paragraph."""
    printed, found = [], []
    for cell in cells:
        if cell.cell_type == "code":
            printed += [output.text for output in cell.outputs if output.output_type == "stream"]
        for paragraph in cell.source.split("\n\n") if cell.cell_type == "markdown" else []:
            if paragraph.lstrip().startswith(OPENINGS):
                numbers = re.findall(r"\d+\.\d+|\d+(?= ?%)", paragraph)
                found.append((paragraph, numbers, "\n".join(printed)))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_the_text_says_of_the_run_was_printed(path):
    for paragraph, numbers, printed in claims(nbformat.read(path, as_version=4).cells):
        words = set(re.findall(r"\d+(?:\.\d+)?", printed))
        missing = [number for number in numbers if number not in words]
        assert not missing, f"{missing} not printed above: {paragraph}"


def test_a_number_that_was_not_printed_is_seen():
    code = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", text="kNN 56.5 ± 1.1\n")])
    told = [nbformat.v4.new_markdown_cell(f"{OPENINGS[0]}, SimCLR ends at {n} %.") for n in ("56.5", "65.5")]
    ((_, (right,), printed), (_, (wrong,), _)) = claims([code, *told])
    assert right in printed and wrong not in printed


def test_a_recipe_that_a_parameter_offers_is_there():
    lesson_of = {"02": "simclr", "03": "moco", "04": "relational", "05": "byol", "06": "simsiam"}
    every = {name for method in METHODS.values() for name in method.recipes}
    offers = {path: re.search(r"recipe: str = None  # (.*?)[;(\n]", path.read_text()) for path in NOTEBOOKS}
    offers = {path: offer[1].split("training: ")[-1] for path, offer in offers.items() if offer}
    assert len(offers) >= 9
    for path, offer in offers.items():
        method = METHODS.get(lesson_of.get(path.stem[:2]))
        there = method.recipes if method else every
        offered = re.findall(r"\w+", offer.replace(" or ", " "))
        assert set(offered) <= {*there}, f"{path.name} offers {offer}; there are: {', '.join(there)}"
