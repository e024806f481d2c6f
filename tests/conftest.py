"""Fixtures that several files of tests share."""

import warnings

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
