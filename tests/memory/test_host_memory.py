"""Host memory is whole pages, locked where that can be; memory mapped from a file is not held."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longcat_tune.memory import host_memory
from longcat_tune.memory.host_buffer import HostBuffer
from longcat_tune.memory.host_memory import PAGE, HostMemory, mapped


class Runtime:
    """Stands for CUDA's: remembers what is locked."""

    def __init__(self, failure: int = 0) -> None:
        self.failure = failure
        self.locked: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        assert flags == 0
        if not self.failure:
            self.locked[address] = size
        return self.failure

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.locked[address]
        return 0


def with_runtime(monkeypatch: pytest.MonkeyPatch, failure: int = 0, available: int = 1 << 40) -> Runtime:
    runtime = Runtime(failure)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(host_memory, "_forget_failure", lambda: None)
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    host_memory._warn_pageable.cache_clear()
    return runtime


@pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 1, 100_000])
def test_memory_begins_a_page_and_is_locked_in_whole_pages_as_long_as_it_lives(monkeypatch, size):
    runtime = with_runtime(monkeypatch)
    memory = HostMemory(size, pinned=True)
    assert memory.bytes.shape == (size,)
    assert memory.bytes.data_ptr() % PAGE == 0 or not size
    assert [length % PAGE for length in runtime.locked.values()] == [0]
    assert sum(runtime.locked.values()) >= size
    view = memory.bytes
    del memory
    gc.collect()
    assert runtime.locked == {}
    view.fill_(1)


def test_memory_that_cannot_be_locked_is_given_all_the_same_and_told_once(monkeypatch, caplog):
    for arguments, reason in (({"failure": 2}, "CUDA error 2"), ({"available": 1 << 30}, "less than 2 GiB")):
        runtime = with_runtime(monkeypatch, **arguments)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            memories = [HostMemory(100, pinned=True) for _ in range(3)]
        [record] = caplog.records
        assert reason in record.getMessage()
        assert runtime.locked == {}
        assert [memory.num_bytes for memory in memories] == [100] * 3


def test_tensors_in_a_buffer_are_aligned_and_equal():
    named = [
        {"a": torch.arange(5, dtype=torch.int8), "b": torch.randn(3, 7)},
        {"a": torch.randn(2, 2).bfloat16()},
    ]
    buffer = HostBuffer.holding(named, pinned=False)
    for mine, given in zip(buffer.tensors(), named, strict=True):
        assert mine.keys() == given.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, given[name])
            assert tensor.data_ptr() % 256 == 0


def test_mapped_bytes_are_those_written_and_leave_no_file(tmp_path: Path):
    memory = torch.arange(1000, dtype=torch.int64).to(torch.uint8)
    there = mapped(memory, tmp_path / "new")
    assert torch.equal(there, memory)
    assert there.data_ptr() % 256 == 0
    assert list((tmp_path / "new").iterdir()) == []


def anonymous_memory() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_mapped_bytes_are_not_held_in_memory(tmp_path: Path):
    size = 64 << 20
    before = anonymous_memory()
    there = mapped(torch.ones(size, dtype=torch.uint8), tmp_path)
    assert there.sum() == size
    assert anonymous_memory() - before < size // 2
