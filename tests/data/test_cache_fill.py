"""Caches are filled with complete files only, whatever stops the filling."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from longcat_tune.data import cache
from longcat_tune.data.cache import LatentJob, TextJob
from longcat_tune.data.cache_fill import fill_latents, fill_text
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.errors import DataError, UserError
from longcat_tune.types import TextFeatures
from tests.data.cache_builders import SHAPE, SIZES, chunks, encode, fill, job, names_in


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
    fill_text(
        jobs,
        encode=lambda captions: (asked.extend(captions), [TextFeatures(text_LD)])[1],
        on_done=done.append,
    )
    assert (asked, done) == (["a cat"], jobs)
    assert torch.equal(cache.read_text(jobs[0].path).text_LD, text_LD)


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


def test_a_clip_that_cannot_be_decoded_keeps_no_other_from_being_encoded(tmp_path, caplog):
    def load_chunks(job: LatentJob) -> Iterator[torch.Tensor]:
        yield next(chunks(job))
        if job.clip_id in {"clips/b.mp4", "clips/d.mp4"}:
            raise UnusableFileError(job.source, "is damaged at 0.03 s", "copy it again")
        yield from list(chunks(job))[1:]

    jobs, done = [job(tmp_path, name) for name in "abcde"], []
    second_window = replace(jobs[1], path=cache.latents_path(tmp_path, "b2"))
    with pytest.raises(DataError) as caught:
        fill_latents(
            [*jobs, second_window],
            load_chunks=load_chunks,
            encode=encode,
            on_done=done.append,
            least_bytes=SIZES,
        )
    assert str(caught.value) == (
        "2 of the clips cannot be encoded; all others are:\n"
        "  b.mp4 is damaged at 0.03 s; copy it again\n"
        "  d.mp4 is damaged at 0.03 s; copy it again"
    )
    assert caplog.messages[0] == "b.mp4 is damaged at 0.03 s; copy it again; going on with the other clips"
    assert names_in(tmp_path) == [f"{name}.latents.safetensors" for name in "ace"]
    assert done == [*jobs, second_window]


def test_any_other_error_stops_the_filling_and_keeps_what_is_done(tmp_path):
    def load_chunks(job: LatentJob) -> Iterator[torch.Tensor]:
        if job.clip_id == "clips/c.mp4":
            raise DataError("another error")
        yield from chunks(job)

    with pytest.raises(DataError, match="another error"):
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
