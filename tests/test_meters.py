"""What a run costs: memory that grows when it is used, energy from counters where there are some."""

import sys

import pytest
import torch

from ssl_lessons import meters

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_peak_memory_of_the_process_sees_what_was_used_and_never_falls():
    before = meters.peak_memory(CPU)
    block = torch.ones(before // 4 + 50_000_000)  # 4 bytes each: more than all that was used so far
    during = meters.peak_memory(CPU)
    del block
    assert during >= before + 190_000_000 and meters.peak_memory(CPU) >= during


def test_energy_is_the_sum_of_the_processors_counters(tmp_path, monkeypatch):
    monkeypatch.setattr(meters, "RAPL", tmp_path)
    assert meters.joules(CPU) is None  # no counters, no number
    for name, microjoules in (("intel-rapl:0", 2_500_000), ("intel-rapl:1", 1_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the first: counted already
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("999\n")
    assert meters.joules(CPU) == 3.5


def test_a_counter_that_may_not_be_read_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(meters, "RAPL", tmp_path)
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("not a number")
    assert meters.joules(CPU) is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_of_a_gpu_is_that_of_its_tensors():
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    block = torch.ones(50_000_000, device=device)
    assert meters.peak_memory(device) >= block.numel() * 4
