"""Images that do not lie on the device: the same batches, read ahead, and nothing left behind."""

import threading
import time

import pytest
import torch
from tiny import CPU, losses, moco, noise

from ssl_lessons import feed, images
from ssl_lessons.images import ImageStore
from ssl_lessons.training import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")
HOST = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


class Watched:
    """Stands for the memory-mapped array: counts the rows that were read, and may fail or be slow."""

    def __init__(self, rows, fail_at=None, wait=0.0):
        self.rows, self.read, self.fail_at, self.wait = rows, [], fail_at, wait
        self.shape = rows.shape

    def __getitem__(self, row):
        time.sleep(self.wait)
        if row == self.fail_at:
            raise OSError("the disk is gone")
        self.read.append(row)
        return self.rows[row]


def watched(monkeypatch, store: ImageStore, **faults) -> Watched:
    source = Watched(store.images.transpose(1, 2).numpy(), **faults)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self, plain=torch.Tensor.numpy: swap(self, plain))

    def swap(tensor, plain):
        return source if tuple(tensor.shape) == tuple(source.shape) else plain(tensor)

    return source


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
@pytest.mark.parametrize("count", [3, 8, 23, 24])
def test_batches_are_the_same_however_far_ahead_they_are_read(ahead, count):
    store, order = noise(24), torch.randperm(24, generator=torch.Generator().manual_seed(1))[:count]
    got = list(feed.batches(store, order, 4, HOST, ahead))
    assert [rows.tolist() for rows, _ in got] == [order[i : i + 4].tolist() for i in range(0, count - 3, 4)]
    for rows, batch in got:
        assert torch.equal(batch, store.images[rows]) and batch.dtype == torch.uint8
        assert batch.transpose(1, 2).is_contiguous()  # laid out for views.py


def test_column_major_files_are_read_too():
    """STL-10's own file is (N, 3, column, row): its rows are not contiguous."""
    store = noise(12)
    pixels = store.images.permute(0, 1, 3, 2).contiguous().transpose(2, 3)
    assert not pixels.transpose(1, 2).is_contiguous()
    other = ImageStore(pixels, None, (), "stl", "train", "x")
    for (_, one), (_, two) in zip(
        feed.batches(store, torch.arange(12), 4, HOST, 2),
        feed.batches(other, torch.arange(12), 4, HOST, 2),
        strict=True,
    ):
        assert torch.equal(one, two)


def test_a_thread_reads_so_far_ahead_and_no_further(monkeypatch):
    source = watched(monkeypatch, store := noise(24))
    some = feed.batches(store, torch.arange(24), 4, HOST, 2)
    next(some)
    deadline = time.time() + 20
    while len(source.read) < 12 and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert source.read == list(range(12))  # the one that was asked for, and two more
    some.close()


def test_leaving_early_ends_the_thread(monkeypatch):
    source = watched(monkeypatch, store := noise(24), wait=0.01)
    before = threading.active_count()
    some = feed.batches(store, torch.arange(24), 4, HOST, 3)
    next(some)
    some.close()
    assert threading.active_count() == before and len(source.read) < 24


def test_a_disk_that_fails_is_an_error_in_the_step_that_needed_it(monkeypatch):
    watched(monkeypatch, store := noise(24), fail_at=9)  # in the third batch
    some = feed.batches(store, torch.arange(24), 4, HOST, 2)
    assert len(next(some)[0]) == len(next(some)[0]) == 4
    with pytest.raises(OSError, match="the disk is gone"):
        next(some)


def test_a_store_beyond_the_budget_trains_to_the_same_numbers(monkeypatch):
    """From a real cache file, memory-mapped, with a tenth of its size as the budget."""
    store = images.load("shapes", "train", size=20, limit=64, progress=False)
    seen = []
    plain = feed.batches
    monkeypatch.setattr("ssl_lessons.training.batches", lambda *args: seen.append(args[-1]) or plain(*args))
    near = pretrain(moco(), store, **CPU)
    far = pretrain(moco(), store, budget=store.images.numel() // 10, **CPU)
    assert seen == [0, 0, feed.AHEAD, feed.AHEAD]
    assert losses(near) == losses(far)


def test_what_is_resident():
    store = noise(24)
    size = store.images.numel()
    assert feed.resident(store, HOST) and feed.resident(store, HOST, size)
    assert not feed.resident(store, HOST, size - 1)
    assert not feed.resident(store, torch.device("cuda"))
    assert 1 << 28 < images.ram() < 1 << 50


@pytest.mark.cuda
@CUDA
def test_batches_reach_a_gpu_by_a_stream_of_their_own():
    store, device = noise(24), torch.device("cuda")
    for rows, batch in feed.batches(store, torch.randperm(24), 4, device, 2):
        busy = torch.randn(2000, 2000, device=device)
        for _ in range(10):  # the copy of the next batch must not overtake its use
            busy = busy @ busy
        assert batch.device.type == "cuda" and torch.equal(batch.cpu(), store.images[rows])


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("budget", [None, 10])
def test_a_budget_does_not_change_a_run_on_a_gpu(budget):
    settings = {"device": "cuda", "precision": "fp32", "progress": "none"}
    assert losses(pretrain(moco(), noise(64), epochs=2, budget=budget, **settings)) == pytest.approx(
        losses(pretrain(moco(), noise(64), epochs=2, **settings)), rel=1e-3
    )
