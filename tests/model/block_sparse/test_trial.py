"""Trying the kernels: what works has no fault, what fails or computes wrongly is told in one line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longcat_tune.model.block_sparse import function, trial
from longcat_tune.model.block_sparse.selection import SelectionRule, select_lists
from longcat_tune.model.block_sparse.settings import BlockSparseSettings
from longcat_tune.model.block_sparse.trial import kernel_fault
from tests.model.block_sparse.blocks import DEVICE

SETTINGS = BlockSparseSettings((1, 2, 2))


def fault(*, training: bool = True) -> str | None:
    return kernel_fault(SETTINGS, device=DEVICE, dtype=torch.float32, head_dim=16, training=training)


def test_kernels_that_compute_the_definition_have_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")

    def by_kernel(q: Tensor, k: Tensor, v: Tensor, queries, keys, rule) -> Tensor:
        lists = select_lists(q, k, queries, keys, rule)
        return function.attend_by_kernel(q, k, v, lists, queries, keys)

    monkeypatch.setattr(trial, "attend_in_blocks", by_kernel)
    monkeypatch.setattr(trial, "NUM_HEADS", 1)
    monkeypatch.setattr(trial, "RULE", SelectionRule(0.9))
    with torch.inference_mode():
        assert fault() is None


def test_wrong_numbers_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "attend_in_blocks", lambda q, k, v, *_: v + 0 * q * k)
    assert "off by" in fault()
    monkeypatch.setattr(trial, "attend_in_blocks", lambda q, k, v, *_: torch.nan * v)
    assert "off by inf" in fault(training=False)


def test_failures_are_told_by_their_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(trial, "attend_in_blocks", fails)
    assert fault() == "Failed to find C compiler."


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensor:
        raise KeyError("BLOCK_M")

    monkeypatch.setattr(trial, "attend_in_blocks", broken)
    with pytest.raises(KeyError):
        fault()
