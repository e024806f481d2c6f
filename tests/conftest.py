"""Fixtures that several files of tests share."""

import os
import warnings
from collections import Counter, defaultdict

# Side by side (pytest -n 2), each worker takes its share of the cores, and so do the processes it starts: two
# teams of threads on the same cores wait for each other. Set before torch is loaded, which reads it once.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import pytest
import torch


@pytest.fixture
def one_thread():
    """One thread inside torch: small operations gain nothing from a second, lose much on a busy machine, and
    sums are taken in one order, here and in the processes that a test starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root of a test's own, and a home of its own for what falls back there."""
    monkeypatch.setenv("SSL_LESSONS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def drawn_without_warning():
    """Every figure of a test is rendered; a warning is an error, and closing them leaves none behind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Creating legend with loc")  # it tells of the clock: a busy machine
        yield
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
    plt.close("all")


OUTCOMES = ("right", "refused", "silent", "traceback", "lost")


def pytest_terminal_summary(terminalreporter):
    """What became of each planted fault of tests/faults; here, where the first of several workers sees it."""
    table = defaultdict(Counter)
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "fault" and getattr(report, "when", "") == "call":
                    kind, outcome = value
                    table[kind][outcome] += 1
    if not table:
        return
    terminalreporter.section("planted faults")
    width = max(len(kind) for kind in table)
    head = "".join(f"{outcome:>11}" for outcome in ("cases", *OUTCOMES))
    terminalreporter.write_line(f"{'kind':<{width}}{head}")
    for kind, counts in [*sorted(table.items()), ("all", sum(table.values(), Counter()))]:
        numbers = [sum(counts.values()), *(counts[outcome] for outcome in OUTCOMES)]
        terminalreporter.write_line(f"{kind:<{width}}" + "".join(f"{number:>11}" for number in numbers))
