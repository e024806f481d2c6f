"""The set-up cell of every lesson in an imitation of Colab: what it installs; twice; offline; in a grid."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("[0-9]*.ipynb"), ROOT / "notebooks" / "grids" / "row.ipynb"])


class Shell:
    """Notes what a cell asks of IPython."""

    def __init__(self):
        self.magics = []

    def run_line_magic(self, name, line, **_):
        self.magics.append(f"%{name} {line}")


@pytest.fixture
def colab(monkeypatch):
    """A function that runs a notebook's set-up cell: (its IPython, the commands that it started)."""
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(path: Path, installed: bool, online: bool = True):
        cells = nbformat.read(path, as_version=4).cells
        source = next(cell.source for cell in cells if cell.cell_type == "code")
        shell, commands = Shell(), []

        def call(command):
            commands.append(" ".join(command))
            return 0 if online else 128  # what git returns

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "call", call)
            patch.setattr(importlib.util, "find_spec", lambda name: "found" if installed else None)
            exec(TransformerManager().transform_cell(source), {"get_ipython": lambda: shell})
        return shell, commands

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_colab_gets_the_package_and_what_it_lacks_and_keeps_its_torch(path, colab):
    shell, (clone,) = colab(path, installed=False)
    assert clone.startswith("git clone") and "github.com/ssl-lessons/ssl-lessons" in clone
    install, move = shell.magics
    words = install.split()
    assert words[:2] == ["%pip", "install"] and "--no-deps" in words
    assert {"fastprogress", "safetensors", "papermill"} <= set(words), "these are not on Colab"
    assert not {"torch", "torchvision"} & set(words)
    assert move.startswith("%cd") and move.endswith("/notebooks")


def test_a_second_run_and_a_run_of_a_grid_neither_clone_nor_install(colab):
    shell, commands = colab(NOTEBOOKS[0], installed=True)
    assert not shell.magics and not commands


def test_offline_one_sentence_stops_the_lesson(colab):
    with pytest.raises(RuntimeError, match="cannot be reached: .* run this cell again"):
        colab(NOTEBOOKS[0], installed=False, online=False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_badge_opens_a_gpu(path):
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata["accelerator"] == "GPU" and metadata["colab"]["gpuType"] == "T4"
