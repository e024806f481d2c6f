"""Fixtures that several files of tests share."""

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
