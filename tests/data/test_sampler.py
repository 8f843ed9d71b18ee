"""Batches keep to one bucket, use every clip as often as asked, and depend on seed, epoch and place alone."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from longcat_tune.data.sampler import BatchPlan, BucketSampler, Cursor, load_batch, step_batches
from longcat_tune.errors import DataError
from longcat_tune.files import write_tensors_atomically
from longcat_tune.types import TEXT_TOKENS, Bucket, CachedSample

WIDE, TALL = Bucket(32, 16, 5), Bucket(16, 32, 5)
EMPTY = Path("empty")


def sample(name: str, bucket: Bucket = WIDE, *, dataset="d", uses=1, k=0, captions=1) -> CachedSample:
    texts = tuple(Path(f"{name}.{number}.text") for number in range(captions))
    return CachedSample(name, dataset, bucket, Path(f"{name}.latents"), None, texts, k, uses)


def samples(count: int, *args, **options) -> tuple[CachedSample, ...]:
    return tuple(sample(f"{options.get('dataset', 'd')}{n}", *args, **options) for n in range(count))


def sampler(*groups, batch_size=2, seed=1, dropout=0.0, rank=0, world_size=1, empty=EMPTY) -> BucketSampler:
    all_samples = tuple(sample for group in groups for sample in group)
    return BucketSampler(all_samples, empty, batch_size, seed, dropout, rank, world_size)


def used(plans: list[BatchPlan]) -> Counter[str]:
    return Counter(sample.clip_id for plan in plans for sample in plan.samples)


def ids(plans: list[BatchPlan]) -> list[tuple[str, ...]]:
    return [tuple(sample.clip_id for sample in plan.samples) for plan in plans]


def on_disk(folder: Path, name: str, *, k=0, image=False, captions=1) -> CachedSample:
    """A cached clip whose latents count up, with captions of 1, 2, ... tokens and an image of minus ones."""
    latents = torch.arange(16.0 * 2 * 2 * 4).reshape(16, 2, 2, 4).bfloat16()
    write_tensors_atomically(folder / f"{name}.latents.safetensors", {"latents": latents}, {})
    texts = []
    for tokens in range(1, captions + 1):
        texts.append(folder / f"{name}.{tokens}.text.safetensors")
        write_tensors_atomically(texts[-1], {"text": torch.full((tokens, 8), 1.0)}, {})
    image_path = folder / f"{name}.image.latents.safetensors" if image else None
    if image_path is not None:
        write_tensors_atomically(image_path, {"latents": -torch.ones(16, 1, 2, 4).bfloat16()}, {})
    path = folder / f"{name}.latents.safetensors"
    return CachedSample(name, "d", WIDE, path, image_path, tuple(texts), k, 1)


def test_a_batch_holds_one_bucket_of_one_dataset_and_one_task():
    plans = sampler(
        samples(5), samples(3, TALL), samples(3, dataset="e"), samples(3, k=1, dataset="d")
    ).epoch(0)
    for plan in plans:
        assert len({(s.dataset_id, s.bucket, s.num_cond_latents) for s in plan.samples}) == 1
    assert len(plans) == 3 + 2 + 2 + 2


def test_every_clip_is_used_repeats_plus_one_times_and_short_batches_stay():
    plans = sampler(samples(5, uses=3), samples(1, TALL, dataset="e"), batch_size=4).epoch(0)
    assert used(plans) == {**{f"d{n}": 3 for n in range(5)}, "e0": 1}
    assert sorted(len(plan.samples) for plan in plans) == [1, 3, 4, 4, 4]


def test_repeats_come_in_whole_passes_over_the_bucket():
    [first, second, third] = sampler(samples(4, uses=3), batch_size=4).epoch(0)
    assert used([first]) == used([second]) == used([third]) == {f"d{n}": 1 for n in range(4)}


def test_epochs_and_seeds_differ_and_repeat_exactly():
    clips = samples(20)
    orders = {
        (seed, epoch): ids(sampler(clips, seed=seed).epoch(epoch)) for seed in (1, 2) for epoch in (0, 1)
    }
    assert len({str(order) for order in orders.values()}) == 4
    assert ids(sampler(clips, seed=2).epoch(1)) == orders[2, 1]


def test_the_order_is_the_same_on_every_machine():
    assert ids(sampler(samples(6), seed=42).epoch(3)) == [("d0", "d2"), ("d1", "d5"), ("d4", "d3")]


def test_buckets_are_interleaved():
    plans = sampler(samples(20), samples(20, TALL)).epoch(0)
    buckets = [plan.samples[0].bucket for plan in plans]
    changes = sum(a != b for a, b in pairwise(buckets))
    assert changes > 3


def test_captions_are_chosen_and_dropped_at_the_asked_rate_without_touching_the_order():
    clips = samples(2000, captions=4)
    plain, dropped = sampler(clips).epoch(0), sampler(clips, dropout=0.1).epoch(0)
    assert ids(plain) == ids(dropped)
    chosen = Counter(path.name.split(".")[1] for plan in plain for path in plan.text_paths)
    assert set(chosen) == {"0", "1", "2", "3"}
    assert all(400 < number < 600 for number in chosen.values())
    empty = [path for plan in dropped for path in plan.text_paths if path == EMPTY]
    assert 150 < len(empty) < 250


def test_dropout_of_one_and_zero_are_exact():
    for dropout in (0.0, 1.0):
        plans = sampler(samples(50), dropout=dropout).epoch(0)
        assert {path == EMPTY for plan in plans for path in plan.text_paths} == {dropout == 1.0}


@pytest.mark.parametrize("world_size", [2, 3, 4, 16])
def test_processes_share_the_batches_evenly_and_leave_none_out(world_size):
    groups = (samples(9), samples(4, TALL, dataset="e"))
    alone = sampler(*groups).epoch(5)
    shares = [sampler(*groups, rank=rank, world_size=world_size) for rank in range(world_size)]
    plans = [share.epoch(5) for share in shares]
    assert {len(share) for share in plans} == {shares[0].batches_per_epoch}
    in_turn = [plan for turn in zip(*plans, strict=True) for plan in turn]
    assert in_turn[: len(alone)] == alone
    assert in_turn[len(alone) :] == [alone[n % len(alone)] for n in range(len(in_turn) - len(alone))]


def test_counts_follow_the_formula():
    clips = sampler(samples(5, uses=3), samples(3, TALL, dataset="e"), batch_size=4)
    assert clips.batches_per_epoch == 4 + 1 == len(clips.epoch(0))


def test_no_clips_is_an_error_with_the_way_out():
    with pytest.raises(DataError) as caught:
        sampler(())
    assert str(caught.value) == (
        "there are 0 clips to train on and at least 1 is needed; "
        "`longcat-tune check` lists every clip that was refused and why"
    )


def test_a_batch_is_stacked_padded_and_keeps_the_cached_dtype(tmp_path):
    a, b = on_disk(tmp_path, "a"), on_disk(tmp_path, "b", captions=3)
    batch = load_batch(BatchPlan((a, b), (a.text_paths[0], b.text_paths[2])))
    assert batch.latents_BCTHW.shape == (2, 16, 2, 2, 4)
    assert batch.latents_BCTHW.dtype == torch.bfloat16
    assert batch.text_BLD.shape == (2, TEXT_TOKENS, 8)
    assert batch.mask_BL.sum(1).tolist() == [1, 3]
    assert batch.text_BLD.sum((1, 2)).tolist() == [8, 24]
    assert (batch.num_cond_latents, batch.clip_ids) == (0, ("a", "b"))


def test_a_conditioning_image_takes_the_first_latent_frame_and_no_other(tmp_path):
    clip = on_disk(tmp_path, "a", k=1, image=True)
    own = load_batch(BatchPlan((on_disk(tmp_path, "b", k=1),), clip.text_paths)).latents_BCTHW
    batch = load_batch(BatchPlan((clip,), clip.text_paths))
    assert batch.num_cond_latents == 1
    assert (batch.latents_BCTHW[:, :, 0] == -1).all()
    assert torch.equal(batch.latents_BCTHW[:, :, 1:], own[:, :, 1:])


def test_text_to_video_leaves_the_image_aside(tmp_path):
    clip = on_disk(tmp_path, "a", k=0, image=True)
    assert (load_batch(BatchPlan((clip,), clip.text_paths)).latents_BCTHW >= 0).all()


@pytest.mark.parametrize("wrong", ["latents", "image.latents"])
def test_latents_of_another_size_are_refused_with_the_file(tmp_path, wrong):
    clip = on_disk(tmp_path, "a", k=1, image=True)
    path = tmp_path / f"a.{wrong}.safetensors"
    write_tensors_atomically(path, {"latents": torch.zeros(16, 3, 2, 4)}, {})
    with pytest.raises(DataError) as caught:
        load_batch(BatchPlan((clip,), clip.text_paths))
    bucket, frames = ("32x16@5", 2) if wrong == "latents" else ("32x16@1", 1)
    assert str(caught.value) == (
        f"cache file {path} holds latents of shape (16, 3, 2, 4), but bucket {bucket} needs "
        f"(channels, {frames}, 2, 4); delete it and run `longcat-tune cache-latents` again"
    )


def five_batches(tmp_path, **options) -> BucketSampler:
    return sampler(
        [on_disk(tmp_path, f"c{n}", captions=2) for n in range(10)],
        dropout=0.3,
        empty=tmp_path / "c0.1.text.safetensors",
        **options,
    )


def taken(steps, count: int) -> list[tuple[list[tuple[str, ...]], int, Cursor]]:
    found = [([b.clip_ids for b in step.batches], step.epoch, step.cursor) for step in islice(steps, count)]
    steps.close()
    return found


def test_steps_take_whole_groups_and_close_a_short_one_at_the_end_of_an_epoch(tmp_path):
    five = five_batches(tmp_path)
    steps = taken(step_batches(five, start=Cursor(0, 0), accumulation=2, pin_memory=False), 4)
    first, second = ids(five.epoch(0)), ids(five.epoch(1))
    assert steps == [
        (first[0:2], 0, Cursor(0, 2)),
        (first[2:4], 0, Cursor(0, 4)),
        (first[4:5], 0, Cursor(1, 0)),
        (second[0:2], 1, Cursor(1, 2)),
    ]


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_a_run_resumed_at_any_step_goes_on_to_the_bit(tmp_path, done):
    def run(start: Cursor):
        return step_batches(five_batches(tmp_path), start=start, accumulation=2, pin_memory=False)

    whole = list(islice(run(Cursor(0, 0)), 7))
    resumed = list(islice(run(whole[done - 1].cursor), 7 - done))
    for expected, got in zip(whole[done:], resumed, strict=True):
        assert (expected.epoch, expected.cursor) == (got.epoch, got.cursor)
        for a, b in zip(expected.batches, got.batches, strict=True):
            assert a.clip_ids == b.clip_ids
            assert torch.equal(a.mask_BL, b.mask_BL)
            assert torch.equal(a.latents_BCTHW, b.latents_BCTHW)


def test_a_cursor_beyond_a_shrunken_epoch_goes_on_with_the_next(tmp_path):
    [step] = taken(
        step_batches(five_batches(tmp_path), start=Cursor(0, 99), accumulation=2, pin_memory=False), 1
    )
    assert step[1:] == (1, Cursor(1, 2))


def test_a_missing_cache_file_stops_at_its_own_step(tmp_path):
    five = five_batches(tmp_path)
    late = five.epoch(0)[3].samples[0]
    late.latents_path.unlink()
    steps = step_batches(five, start=Cursor(0, 0), accumulation=1, pin_memory=False)
    assert len(list(islice(steps, 3))) == 3
    with pytest.raises(DataError, match=late.latents_path.name):
        next(steps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs CUDA")
def test_batches_for_cuda_are_pinned(tmp_path):
    steps = step_batches(five_batches(tmp_path), start=Cursor(0, 0), accumulation=2, pin_memory=True)
    for batch in next(steps).batches:
        assert batch.latents_BCTHW.is_pinned()
        assert batch.text_BLD.is_pinned()
        assert batch.mask_BL.is_pinned()
    steps.close()
