"""Cached files are named by what made them, written whole, and read back or refused with a remedy."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest

from longcat_tune.data import cache
from longcat_tune.data.cache import LatentJob, TextJob
from longcat_tune.errors import DataError
from longcat_tune.types import Bucket, FramePicks, Stamp
from tests.data.cache_builders import BUCKET, CENTER, PARTS, fill, job, unfinished


@pytest.mark.parametrize(
    "change",
    [
        {"picks": FramePicks(1, 5, 30.0)},
        {"picks": FramePicks(0, 5, 15.0)},
        {"bucket": Bucket(64, 64, 9), "picks": FramePicks(0, 9, 30.0)},
        {"bucket": Bucket(64, 128, 5)},
        {"bucket": Bucket(128, 64, 5)},
        {"crop": (0.0, 0.5)},
        {"crop": (0.5, 0.0)},
        {"source_fps": 30.0},
        {"encoder": "a2 bf16"},
        {"encoder": "a1 fp32"},
    ],
)
def test_whatever_changes_the_latents_changes_their_name(change):
    assert cache.latent_key("s", **PARTS) != cache.latent_key("s", **(PARTS | change))
    assert cache.latent_key("s", **PARTS) != cache.latent_key("t", **PARTS)


def test_a_still_and_a_first_frame_are_the_same_at_any_rate():
    def name(first: int, rate: float, source_fps: float | None = None) -> str:
        parts = PARTS | {"bucket": Bucket(64, 64, 1), "source_fps": source_fps}
        return cache.latent_key("s", **(parts | {"picks": FramePicks(first, 1, rate)}))

    assert name(0, 30.0) == name(0, 15.0) == name(0, 30.0, 12.0)
    assert name(1, 30.0) != name(1, 15.0)
    assert name(1, 30.0) != name(1, 30.0, 12.0)


def test_a_new_schema_leaves_old_files_behind(monkeypatch):
    latents, text = cache.latent_key("s", **PARTS), cache.text_key("x", encoder="e")
    monkeypatch.setattr(cache, "SCHEMA", cache.SCHEMA + 1)
    assert cache.latent_key("s", **PARTS) != latents
    assert cache.text_key("x", encoder="e") != text


def test_a_caption_names_its_own_file_only():
    captions, encoders = ("a cat", "a dog", "", "e1 a cat"), ("e1 bf16 32", "e2 bf16 32", "e1 bf16 48")
    keys = {cache.text_key(caption, encoder=encoder) for caption in captions for encoder in encoders}
    assert len(keys) == 12


def test_naming_a_clip_takes_few_calls(tmp_path):
    calls = []
    sys.setprofile(lambda _frame, event, _arg: calls.append(event))
    try:
        picks = FramePicks(0, 93, 30.0)
        key = cache.latent_key(f"{1:032x}", **(PARTS | {"picks": picks}))
        path = cache.latents_path(tmp_path, key)
        LatentJob("clips/a", tmp_path, Stamp(1, 1), picks, BUCKET, CENTER, None, path)
    finally:
        sys.setprofile(None)
    # Counted, for a clock would measure what else the machine does: 100,000 of them take about a second.
    assert len([event for event in calls if event.endswith("call")]) < 50


def test_only_missing_and_short_files_are_filled_and_shared_ones_once(tmp_path):
    jobs = [job(tmp_path, name) for name in "abc"]
    fill(jobs[:2])
    jobs[1].path.write_bytes(bytes(16 * 2 * 8 * 8 * 2 - 1))
    twin = replace(jobs[2], clip_id="other/c.mp4")
    elsewhere = job(tmp_path / "none", "a")
    assert unfinished([*jobs, twin, elsewhere]) == [jobs[1], jobs[2], elsewhere]
    assert fill(jobs) == jobs
    assert unfinished(jobs) == []


def test_text_is_unfinished_while_its_file_is_missing_or_empty(tmp_path):
    jobs = [TextJob(name, cache.text_path(tmp_path, name)) for name in "abc"]
    jobs[0].path.write_bytes(b"1")
    jobs[1].path.write_bytes(b"")
    assert cache.unfinished(jobs, least_bytes=cache.text_bytes) == jobs[1:]


def test_asking_what_is_unfinished_opens_no_file_and_looks_at_each_folder_once(tmp_path, monkeypatch):
    folders = [tmp_path / "one", tmp_path / "two"]
    jobs = [job(folder, f"{number}") for number in range(50) for folder in folders]
    fill(jobs)
    monkeypatch.setattr("longcat_tune.data.cache.safe_open", None)
    looked, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: (looked.append(folder), scandir(folder))[1])
    monkeypatch.setattr(os, "stat", None)
    assert unfinished(jobs) == []
    assert sorted(looked) == [str(folder) for folder in folders]


@pytest.mark.parametrize("content", [b"", b"hello world, this is no tensor", bytes(64)])
def test_a_damaged_file_is_refused_with_its_name_and_the_remedy(tmp_path, content):
    path = cache.latents_path(tmp_path, "a")
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        cache.read_latents(path)
    message = str(caught.value)
    assert message.startswith(f"cache file {path} is missing or damaged (")
    assert message.endswith(
        "); run `longcat-tune cache verify --remove` to find all damaged ones, then the same command again"
    )


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    path = cache.text_path(tmp_path, "a")
    with pytest.raises(DataError, match=path.name):
        cache.read_text(path)
