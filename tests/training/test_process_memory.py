"""What the process holds is its own, whoever started it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from longcat_tune.training.process_memory import host_bytes, host_peak_bytes, peak_memory_gib

PEAK = "from longcat_tune.training.process_memory import host_peak_bytes; print(host_peak_bytes())"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere what is held now is not told")
def test_the_peak_stays_when_memory_is_given_back() -> None:
    held = bytearray(256 << 20)
    held[:: 1 << 12] = b"\1" * (256 << 8)
    peak = host_peak_bytes()
    del held
    # The system counts pages in batches: the last few of them may be missing.
    assert host_bytes() < peak - (32 << 20) < host_peak_bytes()
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(peak / 2**30, rel=0.1)


def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it() -> None:
    held = bytes(1 << 30)
    large = bytearray(held)
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert len(large) == 1 << 30
    assert int(done.stdout) < 1 << 30
