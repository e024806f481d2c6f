"""The lessons are tests too: each is executed by nbval in the `smoke` profile, in a process of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks" / "grids").glob("*.ipynb")])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_lesson_runs_in_the_smoke_profile(notebook):
    # One call a notebook, because an error does not stop nbval without -x and -x would stop the others too
    # a cell timeout, because a dead kernel is noticed only then. Caches are kept, a run's results are not.
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-x", "--nbval-cell-timeout=240"]
    command += ["--nbval-current-env", "-p", "no:cacheprovider", "-q", str(notebook)]
    env = {**os.environ, "SSL_LESSONS_PROFILE": "smoke", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    with tempfile.TemporaryDirectory(
        ignore_cleanup_errors=True
    ) as place:  # nbval kills kernels: nothing tidies up
        env["TMPDIR"] = place
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{notebook.name}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert " passed" in done.stdout, done.stdout[-2000:]
