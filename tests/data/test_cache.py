"""Cached files are named by what made them, written whole, and read back or refused with a remedy."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from longcat_tune.data import cache
from longcat_tune.data.cache import LatentJob, TextJob
from longcat_tune.errors import DataError, UserError
from longcat_tune.types import Bucket, FramePicks, TextFeatures

BUCKET = Bucket(64, 64, 5)
SHAPE = (16, 2, 8, 8)
PICKS = FramePicks(0, 5, 30.0)
CENTER = (0.5, 0.5)
PARTS = {"picks": PICKS, "bucket": BUCKET, "crop": CENTER, "source_fps": None, "encoder": "a1 bf16"}
SIZES = cache.latents_sizes(16)


def job(folder: Path, name: str = "a") -> LatentJob:
    path = cache.latents_path(folder, name)
    return LatentJob(f"clips/{name}.mp4", Path(f"{name}.mp4"), PICKS, BUCKET, CENTER, None, path)


def chunks(_: LatentJob) -> Iterator[torch.Tensor]:
    yield torch.ones(3, 1, 64, 64, dtype=torch.uint8)
    yield torch.ones(3, 4, 64, 64, dtype=torch.uint8)


def encode(given: Iterator[torch.Tensor]) -> torch.Tensor:
    total = sum(int(chunk.sum()) for chunk in given)
    return total / 1000 + torch.arange(16.0 * 2 * 8 * 8).reshape(SHAPE) / 3


def fill(jobs, *, load_chunks=chunks, encode=encode) -> list[LatentJob]:
    done = []
    cache.fill_latents(jobs, load_chunks=load_chunks, encode=encode, on_done=done.append, least_bytes=SIZES)
    return done


def unfinished(jobs) -> list[LatentJob]:
    return cache.unfinished(jobs, least_bytes=SIZES)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


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


def test_keys_of_100_000_clips_take_about_a_second(tmp_path):
    start = time.process_time()
    for number in range(20_000):
        picks = FramePicks(0, 93, 30.0)
        key = cache.latent_key(f"{number:032x}", **(PARTS | {"picks": picks}))
        LatentJob("clips/a", tmp_path, picks, BUCKET, CENTER, None, cache.latents_path(tmp_path, key))
    assert time.process_time() - start < 1  # 0.2 s when nothing else runs


def test_latents_come_back_as_bfloat16_with_their_origin_in_the_file(tmp_path):
    jobs = [job(tmp_path, "a"), job(tmp_path, "b")]
    assert fill(jobs) == jobs
    expected = encode(chunks(jobs[1])).bfloat16()
    assert torch.equal(cache.read_latents(jobs[1].path), expected)
    with safe_open(jobs[1].path, framework="pt") as file:
        [origin] = file.metadata().values()
    about = json.loads(origin)
    assert about.pop("content") == cache.content_hash(expected)
    assert about == {"schema": 2, "clip": "clips/b.mp4", "bucket": "64x64@5"}


def test_text_comes_back_equal_in_the_encoders_dtype(tmp_path):
    text_LD = torch.randn(7, 32)
    jobs = [TextJob("a cat", cache.text_path(tmp_path, "k"))]
    asked, done = [], []
    cache.fill_text(
        jobs,
        encode=lambda captions: (asked.extend(captions), [TextFeatures(text_LD)])[1],
        on_done=done.append,
    )
    assert (asked, done) == (["a cat"], jobs)
    assert torch.equal(cache.read_text(jobs[0].path).text_LD, text_LD)


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


def test_the_same_tensor_gives_the_same_bytes(tmp_path):
    fill([job(tmp_path / folder) for folder in ("one", "two")])
    one, two = (path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors")))
    assert one == two


def test_clips_are_decoded_in_the_background_and_encoded_in_the_caller(tmp_path):
    threads = {"load": set(), "encode": set()}

    def load_chunks(job: LatentJob) -> Iterator[torch.Tensor]:
        threads["load"].add(threading.current_thread())
        yield from chunks(job)

    def encode_here(given: Iterator[torch.Tensor]) -> torch.Tensor:
        threads["encode"].add(threading.current_thread())
        return encode(given)

    fill([job(tmp_path, name) for name in "abc"], load_chunks=load_chunks, encode=encode_here)
    assert threads["encode"] == {threading.current_thread()}
    assert threads["load"].isdisjoint(threads["encode"])


def test_a_clip_that_cannot_be_decoded_stops_the_filling_and_keeps_what_is_done(tmp_path):
    def load_chunks(job: LatentJob) -> Iterator[torch.Tensor]:
        if job.clip_id == "clips/c.mp4":
            raise DataError("clips/c.mp4 is truncated; replace it")
        yield from chunks(job)

    with pytest.raises(DataError, match=r"clips/c\.mp4 is truncated"):
        fill([job(tmp_path, name) for name in "abcd"], load_chunks=load_chunks)
    assert names_in(tmp_path) == ["a.latents.safetensors", "b.latents.safetensors"]


def test_a_bug_names_the_clip_it_met(tmp_path):
    def encode_badly(given: Iterator[torch.Tensor]) -> torch.Tensor:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError) as caught:
        fill([job(tmp_path)], encode=encode_badly)
    assert caught.value.__notes__ == ["while encoding clips/a.mp4 at 64x64@5"]


def test_an_interrupted_filling_leaves_finished_files_only(tmp_path):
    calls = []

    def encode_until_interrupted(given: Iterator[torch.Tensor]) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(given)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fill([job(tmp_path, name) for name in "abc"], encode=encode_until_interrupted)
    assert names_in(tmp_path) == ["a.latents.safetensors"]
    assert threading.active_count() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_not_cached(tmp_path, value):
    with pytest.raises(DataError, match=r"the latents of clips/a.mp4 are not finite.*set vae_dtype to fp32"):
        fill([job(tmp_path)], encode=lambda given: torch.full(SHAPE, value))
    assert names_in(tmp_path) == []


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.raises(UserError, match=r"cannot write claims\.lock in .*cache: "):
        fill([job(tmp_path / "cache")])
