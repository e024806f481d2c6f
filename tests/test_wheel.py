"""A wheel built from this tree carries the lessons, and answers sensibly outside a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds what a wheel of this tree installs, and nothing else of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    aside = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "runs")
    for name in ("ssl_lessons", "notebooks", "data/results"):
        shutil.copytree(ROOT / name, source / name, ignore=aside)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    done = subprocess.run([*command, "-w", folder, source], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "installed")
    return folder / "installed"


def ssl_lessons(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-m", "ssl_lessons", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_the_lessons_are_inside(installed):
    carried = installed / "ssl_lessons" / "notebooks"
    ours = {path.relative_to(ROOT / "notebooks") for path in (ROOT / "notebooks").rglob("*.ipynb")}
    ours |= {path.relative_to(ROOT / "notebooks") for path in (ROOT / "notebooks").rglob("*.yaml")}
    assert {path for path in ours if not (carried / path).is_file()} == set()
    exercises = {path.name for path in (ROOT / "notebooks" / "exercises").glob("*.py")}
    assert {path.name for path in carried.rglob("*.py")} == exercises  # no script beside them
    assert (installed / "ssl_lessons" / "py.typed").is_file()


def test_it_answers_outside_a_checkout(installed, tmp_path):
    done = ssl_lessons(installed, tmp_path, "leaderboard")
    assert done.returncode == 0 and "SimCLR" in done.stdout, done.stderr
    done = ssl_lessons(installed, tmp_path, "leaderboard", "nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr
    record = next((ROOT / "data" / "results" / "leaderboard").glob("*.json"))
    done = ssl_lessons(installed, tmp_path, "leaderboard", str(record), "--markdown")
    assert done.returncode == 0 and done.stdout.startswith("### "), done.stderr
    done = ssl_lessons(installed, tmp_path, "grid", "nowhere.yaml")
    grids = installed / "ssl_lessons" / "notebooks" / "grids"
    assert done.returncode == 2 and str(grids / "leaderboard.yaml") in done.stderr
    done = ssl_lessons(installed, tmp_path, "grid", str(grids / "methods_on_shapes.yaml"), "--dry-run")
    assert done.returncode == 0 and done.stdout.count("waiting") == 10, done.stderr
    done = ssl_lessons(installed, tmp_path, "run", "77")
    assert done.returncode == 2 and "choose one of: 00_start_here, " in done.stderr
    done = ssl_lessons(installed, tmp_path, "bench", "step")
    assert done.returncode == 2 and "clone the repository" in done.stderr
    assert not (tmp_path / "runs").exists()
