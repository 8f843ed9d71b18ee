"""What a checkpoint's config.json says about block-sparse attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longcat_tune.errors import CheckpointError
from longcat_tune.model.block_sparse.selection import SelectionRule
from longcat_tune.model.block_sparse.settings import BlockSparseSettings, read_block_sparse_settings


def read(folder: Path, params: Any) -> BlockSparseSettings:
    (folder / "config.json").write_text(json.dumps({"depth": 48, "bsa_params": params}))
    return read_block_sparse_settings(folder)


def test_settings_are_the_checkpoints(tmp_path: Path) -> None:
    params = {"sparsity": 0.875, "chunk_3d_shape_q": [4, 4, 8], "chunk_3d_shape_k": [4, 4, 8]}
    assert read(tmp_path, params) == BlockSparseSettings((4, 4, 8), SelectionRule(0.875))
    params |= {"sparsity": None, "cdf_threshold": 0.6}
    assert read(tmp_path, params).rule == SelectionRule(None, 0.6)


def test_a_config_without_them_has_the_released_ones(tmp_path: Path) -> None:
    assert read(tmp_path, None) == BlockSparseSettings((4, 4, 4), SelectionRule(0.9375))


@pytest.mark.parametrize(
    ("params", "told"),
    [({"chunk_3d_shape_k": [4, 4, 8]}, r"\[4, 4, 8\]"), ({"sparsity": 1}, r"sparsity \(1\)")],
)
def test_what_cannot_be_is_refused(tmp_path: Path, params: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told) as caught:
        read(tmp_path, params)
    assert "attention_implementation to sdpa" in str(caught.value)
