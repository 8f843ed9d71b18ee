"""Batches are read right, steps go on from any cursor, and reading ahead ends with its consumer."""

from __future__ import annotations

import threading
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longcat_tune.data import batches as module
from longcat_tune.data.batches import load_batch, plan_steps, step_batches
from longcat_tune.data.cache import read_text
from longcat_tune.data.epochs import Cursor
from longcat_tune.data.sampler import BatchPlan, BucketSampler, EpochOrder
from longcat_tune.errors import DataError
from longcat_tune.files import write_tensors_atomically
from longcat_tune.types import TEXT_TOKENS, Bucket, CachedSample, Task, TrainingSet

WIDE = Bucket(32, 16, 5)


def on_disk(folder: Path, name: str, *, image=False, captions=1) -> CachedSample:
    """A cached clip whose latents count up, with captions of 1, 2, ... tokens and an image of minus ones."""
    latents = torch.arange(16.0 * 2 * 2 * 4).reshape(16, 2, 2, 4).bfloat16()
    path = folder / f"{name}.latents.safetensors"
    write_tensors_atomically(path, {"latents": latents}, {})
    texts = []
    for tokens in range(1, captions + 1):
        texts.append(folder / f"{name}.{tokens}.text.safetensors")
        write_tensors_atomically(texts[-1], {"text": torch.full((tokens, 8), 1.0)}, {})
    image_path = folder / f"{name}.image.latents.safetensors" if image else None
    if image_path is not None:
        write_tensors_atomically(image_path, {"latents": -torch.ones(16, 1, 2, 4).bfloat16()}, {})
    return CachedSample(name, WIDE, (path,), image_path, tuple(texts))


def of(*samples: CachedSample, k: int = 0, captions: tuple[int, ...] = ()) -> BatchPlan:
    chosen = captions or (0,) * len(samples)
    return BatchPlan(
        samples,
        tuple(sample.latents_paths[0] for sample in samples),
        tuple(sample.text_paths[number] for sample, number in zip(samples, chosen, strict=True)),
        k,
    )


def ten_clips(folder: Path, *, batch_size=2, accumulation=2, **rules) -> BucketSampler:
    clips = tuple(on_disk(folder, f"c{number}", captions=2) for number in range(10))
    empty = clips[0].text_paths[0]
    return BucketSampler((TrainingSet("d", clips, **rules),), empty, batch_size, 1, 0.3, accumulation)


def planned(sampler: BucketSampler, epoch: int) -> list[BatchPlan]:
    order = sampler.epoch(epoch)
    return [sampler.batch(order, place) for place in range(len(order))]


def ids(sampler: BucketSampler, epoch: int) -> list[tuple[str, ...]]:
    return [tuple(sample.clip_id for sample in plan.samples) for plan in planned(sampler, epoch)]


def steps_from(sampler: BucketSampler, start: Cursor = Cursor(0, 0), **options):  # noqa: B008
    return step_batches(sampler, start=start, pin_memory=False, **options)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ahead")}


def test_a_batch_is_stacked_padded_and_keeps_the_cached_dtype(tmp_path):
    a, b = on_disk(tmp_path, "a"), on_disk(tmp_path, "b", captions=3)
    batch = load_batch(of(a, b, captions=(0, 2)))
    assert batch.latents_BCTHW.shape == (2, 16, 2, 2, 4)
    assert batch.latents_BCTHW.dtype == torch.bfloat16
    assert batch.text_BLD.shape == (2, TEXT_TOKENS, 8)
    assert batch.mask_BL.sum(1).tolist() == [1, 3]
    assert batch.text_BLD.sum((1, 2)).tolist() == [8, 24]
    for row, (sample, number) in enumerate([(a, 0), (b, 2)]):
        text_LD, mask_L = read_text(sample.text_paths[number]).padded()
        assert torch.equal(batch.text_BLD[row], text_LD)
        assert torch.equal(batch.mask_BL[row], mask_L)
        assert batch.mask_BL.dtype == mask_L.dtype
    assert (batch.num_cond_latents, batch.clip_ids) == (0, ("a", "b"))


def test_a_start_image_takes_the_first_latent_frame_and_no_other(tmp_path):
    clip = on_disk(tmp_path, "a", image=True)
    own = load_batch(of(on_disk(tmp_path, "b"), k=1)).latents_BCTHW
    batch = load_batch(of(clip, k=1))
    assert batch.num_cond_latents == 1
    assert (batch.latents_BCTHW[:, :, 0] == -1).all()
    assert torch.equal(batch.latents_BCTHW[:, :, 1:], own[:, :, 1:])


@pytest.mark.parametrize("k", [0, 2])
def test_text_to_video_and_continuation_leave_the_image_aside(tmp_path, k):
    batch = load_batch(of(on_disk(tmp_path, "a", image=True), k=k))
    assert batch.num_cond_latents == k
    assert (batch.latents_BCTHW >= 0).all()


@pytest.mark.parametrize("wrong", ["latents", "image.latents"])
def test_latents_of_another_size_are_refused_with_the_file(tmp_path, wrong):
    clip = on_disk(tmp_path, "a", image=True)
    path = tmp_path / f"a.{wrong}.safetensors"
    write_tensors_atomically(path, {"latents": torch.zeros(16, 3, 2, 4)}, {})
    with pytest.raises(DataError) as caught:
        load_batch(of(clip, k=1))
    bucket, frames = ("32x16@5", 2) if wrong == "latents" else ("32x16@1", 1)
    assert str(caught.value) == (
        f"cache file {path} holds latents of shape (16, 3, 2, 4), but bucket {bucket} needs "
        f"(channels, {frames}, 2, 4); delete it and run `longcat-tune cache-latents` again"
    )


def test_steps_take_whole_groups_and_close_a_short_one_at_the_end_of_an_epoch(tmp_path):
    five = ten_clips(tmp_path)
    with closing(steps_from(five)) as steps:
        found = [
            ([batch.clip_ids for batch in step.batches], step.epoch, step.cursor) for step in islice(steps, 4)
        ]
    first, second = ids(five, 0), ids(five, 1)
    assert found == [
        (first[0:2], 0, Cursor(0, 2)),
        (first[2:4], 0, Cursor(0, 4)),
        (first[4:5], 0, Cursor(1, 0)),
        (second[0:2], 1, Cursor(1, 2)),
    ]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_a_run_resumed_at_any_step_goes_on_to_the_bit(tmp_path, done, workers):
    sampler = ten_clips(tmp_path)
    with closing(steps_from(sampler)) as steps:
        whole = list(islice(steps, 7))
    with closing(steps_from(sampler, whole[done - 1].cursor, workers=workers)) as steps:
        resumed = list(islice(steps, 7 - done))
    for expected, got in zip(whole[done:], resumed, strict=True):
        assert (expected.epoch, expected.cursor) == (got.epoch, got.cursor)
        for a, b in zip(expected.batches, got.batches, strict=True):
            assert a.clip_ids == b.clip_ids
            assert torch.equal(a.mask_BL, b.mask_BL)
            assert torch.equal(a.latents_BCTHW, b.latents_BCTHW)


@st.composite
def samplers(draw) -> BucketSampler:
    """Samplers over random datasets, the first of which is always used."""
    sets = []
    for number in range(draw(st.integers(1, 3))):
        clips = tuple(
            CachedSample(
                f"{number}/{clip}",
                Bucket(draw(st.sampled_from((16, 32))), 16, 5),
                tuple(Path(f"{number}.{clip}.{window}") for window in range(draw(st.integers(1, 3)))),
                None,
                (Path("a"), Path("b")),
            )
            for clip in range(draw(st.integers(1, 6)))
        )
        start = draw(st.integers(0, 9)) if number else 0
        one = TrainingSet(
            dataset_id=str(number),
            samples=clips,
            uses_per_epoch=draw(st.integers(1, 3)),
            probability=draw(st.sampled_from((0.2, 0.5, 1.0))),
            start_step=start,
            end_step=draw(st.none() | st.integers(max(1, start), 15)) if number else None,
            tasks=draw(st.sampled_from(((Task(0),), (Task(0, 0.4), Task(1, 0.6))))),
        )
        sets.append(one)
    return BucketSampler(
        tuple(sets),
        Path("empty"),
        batch_size=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**31)),
        caption_dropout=draw(st.sampled_from((0.0, 0.3))),
        accumulation=draw(st.integers(1, 3)),
        rank=draw(st.integers(0, 1)),
        world_size=2,
    )


@given(samplers(), st.integers(0, 25))
@settings(max_examples=50, deadline=None)
def test_a_resumed_order_is_the_order(sampler, done):
    with closing(plan_steps(sampler, Cursor(0, 0))) as steps:
        whole = list(islice(steps, 30))
    start = whole[done].cursor
    assert start == sampler.plan.cursor_at(done + 1)
    with closing(plan_steps(sampler, start)) as steps:
        assert list(islice(steps, 29 - done)) == whole[done + 1 :]


def test_a_cursor_beyond_a_shrunken_epoch_goes_on_with_the_next(tmp_path):
    with closing(steps_from(ten_clips(tmp_path), Cursor(0, 99))) as steps:
        step = next(steps)
    assert (step.epoch, step.cursor) == (1, Cursor(1, 2))


def test_the_steps_end_with_the_last_dataset(tmp_path):
    sampler = ten_clips(tmp_path, end_step=7)
    assert len(list(steps_from(sampler))) == 7
    assert list(steps_from(sampler, sampler.plan.cursor_at(7))) == []
    assert threads() == set()


def test_a_missing_cache_file_stops_at_its_own_step(tmp_path):
    five = ten_clips(tmp_path, accumulation=1)
    [late, *_] = planned(five, 0)[3].latents_paths
    late.unlink()
    steps = steps_from(five)
    assert len(list(islice(steps, 3))) == 3
    with pytest.raises(DataError, match=late.name):
        next(steps)
    assert threads() == set()


def test_closing_ends_all_threads(tmp_path):
    before = threads()
    steps = steps_from(ten_clips(tmp_path), workers=3)
    next(steps)
    assert len(threads() - before) > 1
    steps.close()
    assert threads() == before


def test_batches_are_read_by_several_threads_a_whole_step_ahead_and_no_further(tmp_path, monkeypatch):
    read: list[str] = []
    together = threading.Barrier(2, timeout=60)

    def load(plan: BatchPlan):
        if len(read) < 2:
            read.append("together")
            together.wait()
        else:
            read.append("alone")
        return load_batch(plan)

    monkeypatch.setattr(module, "load_batch", load)
    sampler = ten_clips(tmp_path, batch_size=1, accumulation=3)
    with closing(steps_from(sampler)) as steps:
        next(steps)
    assert 3 <= len(read) <= 3 + 3


def test_the_next_epoch_is_planned_while_this_one_is_used(tmp_path, monkeypatch):
    planned = {epoch: threading.Event() for epoch in range(9)}
    plan_epoch = BucketSampler.epoch

    def epoch(self: BucketSampler, number: int) -> EpochOrder:
        assert threading.current_thread() is not threading.main_thread()
        planned[number].set()
        return plan_epoch(self, number)

    monkeypatch.setattr(BucketSampler, "epoch", epoch)
    with closing(plan_steps(ten_clips(tmp_path), Cursor(0, 0))) as steps:
        assert next(steps).epoch == 0
        assert planned[1].wait(60)
        assert not planned[2].wait(0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs CUDA")
def test_batches_for_cuda_are_pinned(tmp_path):
    sampler = ten_clips(tmp_path)
    with closing(step_batches(sampler, start=Cursor(0, 0), pin_memory=True)) as steps:
        for batch in next(steps).batches:
            assert batch.latents_BCTHW.is_pinned()
            assert batch.text_BLD.is_pinned()
            assert batch.mask_BL.is_pinned()
