"""Cached files are named by what made them, written whole, and read back or refused with a remedy."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from longcat_tune.data import cache
from longcat_tune.data.cache import LatentJob, SourceHashes, TextJob
from longcat_tune.errors import DataError, UserError
from longcat_tune.types import Bucket, TextFeatures

BUCKET = Bucket(64, 64, 5)
PARTS = {
    "frame_times": (0.0, 0.5),
    "bucket": BUCKET,
    "crop": "center",
    "vae": "a1",
    "precision": "bf16",
}


def job(folder: Path, name: str = "a") -> LatentJob:
    return LatentJob(
        f"clips/{name}.mp4", Path(f"{name}.mp4"), (0.0,), BUCKET, cache.latents_path(folder, name)
    )


def encode(pixels_CFHW: torch.Tensor) -> torch.Tensor:
    return pixels_CFHW.mean() + torch.arange(16.0 * 2 * 8 * 8).reshape(16, 2, 8, 8) / 3


def fill(jobs, *, load_pixels=lambda job: torch.ones(3, 5, 64, 64), encode=encode) -> list[LatentJob]:
    done = []
    cache.fill_latents(jobs, load_pixels=load_pixels, encode=encode, on_done=done.append)
    return done


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"frame_times": (0.0, 0.6)},
        {"bucket": Bucket(64, 64, 9)},
        {"bucket": Bucket(64, 128, 5)},
        {"crop": "random"},
        {"vae": "a2"},
        {"precision": "fp32"},
    ],
)
def test_whatever_changes_the_latents_changes_their_name(change):
    assert cache.latent_key("s", **PARTS) != cache.latent_key("s", **(PARTS | change))
    assert cache.latent_key("s", **PARTS) != cache.latent_key("t", **PARTS)


def test_a_new_schema_leaves_old_files_behind(monkeypatch):
    latents, text = cache.latent_key("s", **PARTS), cache.text_key("x", encoder="e", precision="bf16")
    monkeypatch.setattr(cache, "SCHEMA", cache.SCHEMA + 1)
    assert cache.latent_key("s", **PARTS) != latents
    assert cache.text_key("x", encoder="e", precision="bf16") != text


def test_rounding_of_frame_times_below_a_microsecond_is_harmless():
    nearly = PARTS | {"frame_times": (0.0, 0.5 + 1e-10)}
    assert cache.latent_key("s", **PARTS) == cache.latent_key("s", **nearly)


def test_a_caption_names_its_own_file_only():
    keys = {
        cache.text_key(caption, encoder=encoder, precision=precision)
        for caption in ("a cat", "a dog")
        for encoder in ("e1", "e2")
        for precision in ("bf16", "fp32")
    }
    assert len(keys) == 8


def test_the_same_content_has_one_hash_wherever_it_lies(tmp_path):
    first, second, other = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4"
    first.write_bytes(b"clip")
    second.write_bytes(b"clip")
    other.write_bytes(b"clop")
    hashes = SourceHashes(tmp_path)
    assert hashes.of(first) == hashes.of(second) != hashes.of(other)


def test_a_second_run_opens_no_clip_until_it_changes(tmp_path, monkeypatch):
    clip = tmp_path / "a.mp4"
    clip.write_bytes(b"clip")
    hashes = SourceHashes(tmp_path / "cache")
    before = hashes.of(clip)
    hashes.save()

    opened = []
    real_open = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *a, **k: (opened.append(path), real_open(path, *a, **k))[1]
    )
    again = SourceHashes(tmp_path / "cache")
    opened.clear()
    assert again.of(clip) == before
    assert opened == []

    clip.write_bytes(b"clop")
    os.utime(clip, ns=(1, 1))
    assert again.of(clip) != before
    assert opened[-1] == clip


def test_an_unchanged_index_is_not_written_again(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"clip")
    hashes = SourceHashes(tmp_path / "cache")
    hashes.save()
    assert not (tmp_path / "cache").exists()
    hashes.of(tmp_path / "a.mp4")
    hashes.save()
    hashes.path.unlink()
    hashes.save()
    assert not hashes.path.exists()


def test_a_damaged_index_only_costs_the_hashing(tmp_path):
    (tmp_path / "sources.json").write_text('{"half')
    (tmp_path / "a.mp4").write_bytes(b"clip")
    assert len(SourceHashes(tmp_path).of(tmp_path / "a.mp4")) == 32


def test_a_clip_that_went_away_is_named(tmp_path):
    clip = tmp_path / "gone.mp4"
    with pytest.raises(DataError) as caught:
        SourceHashes(tmp_path).of(clip)
    assert str(caught.value) == (
        f"{clip} cannot be read (No such file or directory); restore it or remove it from the dataset"
    )


def test_latents_come_back_as_bfloat16_with_their_origin_in_the_file(tmp_path):
    jobs = [job(tmp_path, "a"), job(tmp_path, "b")]
    assert fill(jobs) == jobs
    expected = encode(torch.ones(3, 5, 64, 64)).bfloat16()
    assert torch.equal(cache.read_latents(jobs[1].path), expected)
    with safe_open(jobs[1].path, framework="pt") as file:
        assert file.metadata() == {"schema": "1", "clip": "clips/b.mp4", "bucket": "64x64@5"}


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


def test_only_missing_and_damaged_files_are_filled_and_shared_ones_once(tmp_path):
    jobs = [job(tmp_path, name) for name in "abc"]
    fill(jobs[:2])
    jobs[1].path.write_bytes(jobs[1].path.read_bytes()[:-1])
    twin = replace(jobs[2], clip_id="other/c.mp4")
    assert cache.unfinished([*jobs, twin]) == [jobs[1], twin]
    fill(jobs)
    assert cache.unfinished(jobs) == []


@pytest.mark.parametrize("content", [b"", b"hello world, this is no tensor", bytes(64)])
def test_a_damaged_file_is_refused_with_its_name_and_the_remedy(tmp_path, content):
    path = cache.latents_path(tmp_path, "a")
    path.write_bytes(content)
    assert not cache.is_complete(path)
    with pytest.raises(DataError) as caught:
        cache.read_latents(path)
    message = str(caught.value)
    assert message.startswith(f"cache file {path} is missing or damaged (")
    assert message.endswith(
        "); run `longcat-tune cache-latents` again: it writes what is missing and keeps the rest"
    )


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    path = cache.text_path(tmp_path, "a")
    assert not cache.is_complete(path)
    with pytest.raises(DataError, match=path.name):
        cache.read_text(path)


def test_clips_are_decoded_in_the_background_and_encoded_in_the_caller(tmp_path):
    threads = {"load": set(), "encode": set()}

    def load_pixels(job: LatentJob) -> torch.Tensor:
        threads["load"].add(threading.current_thread())
        return torch.ones(3, 5, 64, 64)

    def encode_here(pixels_CFHW: torch.Tensor) -> torch.Tensor:
        threads["encode"].add(threading.current_thread())
        return encode(pixels_CFHW)

    fill([job(tmp_path, name) for name in "abc"], load_pixels=load_pixels, encode=encode_here)
    assert threads["encode"] == {threading.current_thread()}
    assert len(threads["load"]) == 1
    assert threads["load"].isdisjoint(threads["encode"])


def test_a_clip_that_cannot_be_decoded_stops_the_filling_and_keeps_what_is_done(tmp_path):
    def load_pixels(job: LatentJob) -> torch.Tensor:
        if job.clip_id == "clips/c.mp4":
            raise DataError("clips/c.mp4 is truncated; replace it")
        return torch.ones(3, 5, 64, 64)

    with pytest.raises(DataError, match=r"clips/c\.mp4 is truncated"):
        fill([job(tmp_path, name) for name in "abcd"], load_pixels=load_pixels)
    assert names_in(tmp_path) == ["a.latents.safetensors", "b.latents.safetensors"]


def test_a_bug_names_the_clip_it_met(tmp_path):
    def encode_badly(pixels_CFHW: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError) as caught:
        fill([job(tmp_path)], encode=encode_badly)
    assert caught.value.__notes__ == ["while encoding clips/a.mp4 at 64x64@5"]


def test_an_interrupted_filling_leaves_finished_files_only(tmp_path):
    calls = []

    def encode_until_interrupted(pixels_CFHW: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(pixels_CFHW)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fill([job(tmp_path, name) for name in "abc"], encode=encode_until_interrupted)
    assert names_in(tmp_path) == ["a.latents.safetensors"]
    assert threading.active_count() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_not_cached(tmp_path, value):
    with pytest.raises(DataError, match=r"the latents of clips/a.mp4 are not finite.*set vae_dtype to fp32"):
        fill([job(tmp_path)], encode=lambda pixels: torch.full((16, 2, 8, 8), value))
    assert names_in(tmp_path) == []


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.raises(UserError, match=r"cannot write a\.latents\.safetensors in .*cache: "):
        fill([job(tmp_path / "cache")])
