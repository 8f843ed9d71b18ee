"""Weights are hashed once until they change, and again when the memory is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longcat_tune.model.identity import file_hash
from longcat_tune.runs import weight_hashes
from longcat_tune.runs.weight_hashes import WeightHashes


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are really read."""
    names: list[str] = []
    monkeypatch.setattr(
        weight_hashes, "file_hash", lambda path: (names.append(path.name), file_hash(path))[1]
    )
    return names


def test_a_file_is_hashed_once_until_it_changes(tmp_path, hashed):
    weights, cache = tmp_path / "a.safetensors", tmp_path / "cache"
    weights.write_bytes(b"weights")
    first = WeightHashes(cache)
    before = first.of(weights)
    assert (before, first.of(weights)) == (file_hash(weights), before)
    first.keep()
    assert WeightHashes(cache).of(weights) == before
    assert hashed == ["a.safetensors"]
    weights.write_bytes(b"weighty")
    os.utime(weights, ns=(1, 1))
    assert WeightHashes(cache).of(weights) == file_hash(weights) != before
    assert len(hashed) == 2


@pytest.mark.parametrize("content", ["", '{"half', "\x00"])
def test_a_lost_memory_costs_only_the_hashing(tmp_path, hashed, content):
    (tmp_path / "weights.json").write_text(content)
    path = tmp_path / "a.json"
    path.write_text("{}")
    assert WeightHashes(tmp_path).of(path) == file_hash(path)
    assert hashed == ["a.json"]


def test_a_folder_that_cannot_be_written_does_not_stop_the_run(tmp_path, hashed):
    (tmp_path / "cache").write_text("a file in its place")
    path = tmp_path / "a.json"
    path.write_text("{}")
    hashes = WeightHashes(tmp_path / "cache")
    assert hashes.of(path) == file_hash(path)
    hashes.keep()
    assert hashed == ["a.json"]


def test_an_unchanged_memory_is_not_written_again(tmp_path, hashed):
    WeightHashes(tmp_path / "cache").keep()
    assert not Path(tmp_path / "cache").exists()
    assert hashed == []
