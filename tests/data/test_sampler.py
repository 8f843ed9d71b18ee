"""Batches keep to one bucket, use every clip as often as asked, and depend on seed and epoch alone."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longcat_tune.data.sampler import BatchPlan, BucketSampler
from longcat_tune.errors import DataError
from longcat_tune.types import Bucket, CachedSample, Task, TrainingSet

WIDE, TALL = Bucket(32, 16, 5), Bucket(16, 32, 5)
EMPTY = Path("empty")
T2V, I2V, CONTINUATION = 0, 1, 4


def samples(count: int, bucket=WIDE, *, name="d", captions=1, windows=1) -> tuple[CachedSample, ...]:
    return tuple(
        CachedSample(
            clip_id=f"{name}{number}",
            bucket=bucket,
            latents_paths=tuple(Path(f"{name}{number}.{window}.latents") for window in range(windows)),
            cond_latents_path=None,
            text_paths=tuple(Path(f"{name}{number}.{caption}.text") for caption in range(captions)),
        )
        for number in range(count)
    )


def one_set(clips, *, name="d", uses=1, mix=((T2V, 1.0),), **rules) -> TrainingSet:
    tasks = tuple(Task(num_cond_latents, share) for num_cond_latents, share in mix)
    return TrainingSet(name, tuple(clips), uses_per_epoch=uses, tasks=tasks, **rules)


def sampler(*sets, batch_size=2, seed=1, dropout=0.0, accumulation=1, rank=0, world_size=1) -> BucketSampler:
    return BucketSampler(sets, EMPTY, batch_size, seed, dropout, accumulation, rank, world_size)


def planned(sampler: BucketSampler, epoch: int) -> list[BatchPlan]:
    order = sampler.epoch(epoch)
    return [sampler.batch(order, place) for place in range(len(order))]


def used(plans: list[BatchPlan]) -> Counter[str]:
    return Counter(sample.clip_id for plan in plans for sample in plan.samples)


def ids(plans: list[BatchPlan]) -> list[tuple[str, ...]]:
    return [tuple(sample.clip_id for sample in plan.samples) for plan in plans]


def tasks(plans: list[BatchPlan]) -> Counter[int]:
    return Counter(plan.num_cond_latents for plan in plans)


def test_a_batch_holds_one_bucket_of_one_dataset_and_one_task():
    mixed = one_set([*samples(5), *samples(3, TALL, name="tall")], mix=[(T2V, 0.5), (I2V, 0.5)])
    plans = planned(sampler(mixed, one_set(samples(3, name="e"), name="e")), 0)
    assert len(plans) == 3 + 2 + 2
    for plan in plans:
        assert len({(sample.bucket, sample.clip_id[0] == "e") for sample in plan.samples}) == 1
        assert plan.num_cond_latents in {T2V, I2V}


def test_every_clip_is_used_repeats_plus_one_times_and_short_batches_stay():
    plans = planned(
        sampler(one_set(samples(5), uses=3), one_set(samples(1, TALL, name="e"), name="e"), batch_size=4), 0
    )
    assert used(plans) == {**{f"d{n}": 3 for n in range(5)}, "e0": 1}
    assert sorted(len(plan.samples) for plan in plans) == [1, 3, 4, 4, 4]


def test_repeats_come_in_whole_passes_over_the_bucket():
    [first, second, third] = planned(sampler(one_set(samples(4), uses=3), batch_size=4), 0)
    assert used([first]) == used([second]) == used([third]) == {f"d{n}": 1 for n in range(4)}


def test_epochs_and_seeds_differ_and_repeat_exactly():
    clips = one_set(samples(20))
    orders = {
        (seed, epoch): ids(planned(sampler(clips, seed=seed), epoch)) for seed in (1, 2) for epoch in (0, 1)
    }
    assert len({str(order) for order in orders.values()}) == 4
    assert ids(planned(sampler(clips, seed=2), 1)) == orders[2, 1]


def test_the_order_is_the_same_on_every_machine():
    plans = planned(sampler(one_set(samples(6)), seed=42), 3)
    assert ids(plans) == [("d0", "d2"), ("d1", "d5"), ("d4", "d3")]


ORDER_OF_ALL_KINDS = """
from tests.data.test_sampler import *
clips = samples(7, windows=3, captions=2)
mixed = one_set(clips, probability=0.5, uses=2, mix=[(T2V, 0.5), (I2V, 0.3), (CONTINUATION, 0.2)])
print([plan for epoch in range(3) for plan in planned(sampler(mixed, dropout=0.3), epoch)])
"""


def test_windows_tasks_and_shares_are_the_same_in_every_process():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", ORDER_OF_ALL_KINDS],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_buckets_are_interleaved():
    plans = planned(sampler(one_set([*samples(20), *samples(20, TALL, name="e")])), 0)
    buckets = [plan.samples[0].bucket for plan in plans]
    assert sum(a != b for a, b in pairwise(buckets)) > 3


def test_captions_are_chosen_and_dropped_at_the_asked_rate_without_touching_the_order():
    clips = one_set(samples(2000, captions=4))
    plain, dropped = planned(sampler(clips), 0), planned(sampler(clips, dropout=0.1), 0)
    assert ids(plain) == ids(dropped) == ids(planned(sampler(one_set(samples(2000))), 0))
    chosen = Counter(path.name.split(".")[1] for plan in plain for path in plan.text_paths)
    assert set(chosen) == {"0", "1", "2", "3"}
    assert all(400 < number < 600 for number in chosen.values())
    empty = [path for plan in dropped for path in plan.text_paths if path == EMPTY]
    assert 150 < len(empty) < 250


def test_dropout_of_one_and_zero_are_exact():
    for dropout in (0.0, 1.0):
        plans = planned(sampler(one_set(samples(50)), dropout=dropout), 0)
        assert {path == EMPTY for plan in plans for path in plan.text_paths} == {dropout == 1.0}


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_processes_share_the_batches_evenly_and_leave_none_out(world_size):
    sets = (
        one_set(samples(9), mix=[(T2V, 0.5), (I2V, 0.5)]),
        one_set(samples(4, TALL, name="e", captions=3), name="e", probability=0.5),
    )
    [*alone] = planned(sampler(*sets), 5)
    shares = [sampler(*sets, rank=rank, world_size=world_size) for rank in range(world_size)]
    plans = [planned(share, 5) for share in shares]
    assert {len(share) for share in plans} == {shares[0].plan.locate(5).batches}
    in_turn = [plan for turn in zip(*plans, strict=True) for plan in turn]
    assert in_turn[: len(alone)] == alone
    assert in_turn[len(alone) :] == alone[: len(in_turn) - len(alone)]
    assert len(in_turn) - len(alone) < world_size


def test_more_processes_than_batches_all_get_one():
    clips = one_set(samples(3), mix=[(T2V, 1.0)])
    plans = [planned(sampler(clips, rank=rank, world_size=8), 0) for rank in range(8)]
    assert {len(share) for share in plans} == {1}
    assert used([plan for share in plans for plan in share]).keys() == {"d0", "d1", "d2"}


def test_half_the_batches_an_epoch_cover_all_in_two_and_come_in_another_order_then():
    half = sampler(one_set([*samples(12), *samples(7, TALL, name="t")], probability=0.5))
    epochs = [ids(planned(half, epoch)) for epoch in range(4)]
    assert [len(epoch) for epoch in epochs] == [5, 5, 5, 5]
    everything = {**{f"d{n}": 1 for n in range(12)}, **{f"t{n}": 1 for n in range(7)}}
    for first, second in [(0, 1), (2, 3)]:
        assert used(planned(half, first) + planned(half, second)) == everything
    assert {*epochs[0], *epochs[1]} != {*epochs[2], *epochs[3]}
    assert all({name[0] for [name, *_] in epoch} == {"d", "t"} for epoch in epochs)


@given(st.integers(1, 12), st.integers(1, 3), st.sampled_from((0.07, 0.3, 0.4, 0.9)), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_share_of_the_batches_takes_every_clip_once_before_any_comes_again(clips, uses, probability, seed):
    part = sampler(one_set(samples(clips), probability=probability, uses=uses), seed=seed)
    share = part.plan.datasets[0]
    found: Counter[str] = Counter()
    for epoch in range(2 * share.batches):
        found += used(planned(part, epoch))
        passes, more = divmod((epoch + 1) * share.per_epoch, share.batches)
        counts = [found[f"d{number}"] for number in range(clips)]
        assert min(counts) >= passes * uses
        assert max(counts) <= (passes + bool(more)) * uses


def test_windows_take_turns_use_by_use_and_clips_begin_with_different_ones():
    clips = sampler(one_set(samples(40, windows=4), uses=2), batch_size=3)
    windows: dict[str, list[str]] = {}
    for epoch in range(6):
        for plan in planned(clips, epoch):
            for sample, path in zip(plan.samples, plan.latents_paths, strict=True):
                assert path in sample.latents_paths
                windows.setdefault(sample.clip_id, []).append(path.name)
    for name, shown in windows.items():
        assert Counter(shown) == {f"{name}.{window}.latents": 3 for window in range(4)}
    assert {shown[0].split(".")[1] for shown in windows.values()} == {"0", "1", "2", "3"}


def test_windows_take_turns_pass_by_pass_where_an_epoch_takes_a_share():
    part = sampler(one_set(samples(8, windows=3), probability=0.5))
    shown = [path.name for epoch in range(6) for plan in planned(part, epoch) for path in plan.latents_paths]
    assert Counter(shown) == {f"d{clip}.{window}.latents": 1 for clip in range(8) for window in range(3)}


def test_more_windows_leave_the_order_as_it_is():
    plain, moving = sampler(one_set(samples(9))), sampler(one_set(samples(9, windows=4)))
    assert [ids(planned(plain, n)) for n in range(3)] == [ids(planned(moving, n)) for n in range(3)]


MIXES = [
    [(T2V, 0.5), (I2V, 0.5)],
    [(T2V, 0.7), (I2V, 0.3)],
    [(T2V, 0.95), (CONTINUATION, 0.05)],
    [(T2V, 1 / 3), (I2V, 1 / 3), (CONTINUATION, 1 / 3)],
    [(T2V, 0.61), (I2V, 0.25), (CONTINUATION, 0.14)],
]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("batches", [1, 3, 10])
def test_tasks_get_their_shares_within_rounding_in_an_epoch_and_over_many(mix, batches):
    mixed = sampler(one_set(samples(batches), mix=mix), batch_size=1)
    total: Counter[int] = Counter()
    for epoch in range(300):
        found = tasks(planned(mixed, epoch))
        total += found
        for task, share in mix:
            assert abs(found[task] - share * batches) < 1
            assert abs(total[task] - share * batches * (epoch + 1)) < 3


def test_tasks_are_spread_over_clips_and_leave_the_order_as_it_is():
    mixed = sampler(one_set(samples(10), mix=[(T2V, 0.5), (I2V, 0.5)]), batch_size=1)
    epochs = [planned(mixed, epoch) for epoch in range(40)]
    per_clip = Counter(
        plan.samples[0].clip_id for plans in epochs for plan in plans if plan.num_cond_latents == I2V
    )
    assert all(8 <= per_clip[f"d{n}"] <= 32 for n in range(10))
    plain = sampler(one_set(samples(10)), batch_size=1)
    assert ids(epochs[0]) == ids(planned(plain, 0))


def test_every_bucket_gets_every_task():
    mix = [(T2V, 0.5), (I2V, 0.5)]
    plans = planned(sampler(one_set([*samples(20), *samples(20, TALL, name="t")], mix=mix), batch_size=1), 0)
    found = Counter((plan.samples[0].bucket, plan.num_cond_latents) for plan in plans)
    assert min(found[bucket, task] for bucket in (WIDE, TALL) for task in (T2V, I2V)) >= 4


def test_datasets_do_not_round_their_tasks_in_step():
    mix = [(T2V, 0.5), (I2V, 0.5)]
    sets = [one_set(samples(1, name=name), name=name, mix=mix) for name in "abcdefgh"]
    assert 0 < tasks(planned(sampler(*sets), 0))[I2V] < 8


def test_datasets_are_used_from_their_first_step_to_their_last():
    scheduled = sampler(
        one_set(samples(3), name="d"),
        one_set(samples(2, name="e"), name="e", start_step=5, end_step=9),
        batch_size=1,
        accumulation=2,
    )
    steps: list[set[str]] = []
    for epoch in range(7):
        plans = planned(scheduled, epoch)
        steps += [set(used(plans[start : start + 2])) for start in range(0, len(plans), 2)]
    with_e = [step for step, clips in enumerate(steps, start=1) if clips & {"e0", "e1"}]
    assert [len(planned(scheduled, epoch)) for epoch in range(6)] == [3, 3, 5, 4, 3, 3]
    assert min(with_e) in {5, 6, 7}
    assert max(with_e) in {8, 9}
    assert used(planned(scheduled, 2)) == {"d0": 1, "d1": 1, "d2": 1, "e0": 1, "e1": 1}
    assert used(planned(scheduled, 4)).keys() == {"d0", "d1", "d2"}


def test_a_dataset_that_begins_late_begins_with_its_own_first_share():
    late = one_set(samples(16, name="e"), name="e", start_step=3, probability=0.5)
    scheduled = sampler(one_set(samples(4)), late)
    assert scheduled.plan.first_epoch(1) == 1
    both = planned(scheduled, 1) + planned(scheduled, 2)
    assert used([plan for plan in both if plan.samples[0].clip_id[0] == "e"]) == {
        f"e{n}": 1 for n in range(16)
    }


def test_steps_without_any_dataset_are_told():
    with pytest.raises(DataError, match="steps 1 to 4 use no dataset"):
        sampler(one_set(samples(2), start_step=5))


@pytest.mark.parametrize("sets", [(), (one_set(()),)])
def test_no_clips_is_an_error_with_the_way_out(sets):
    with pytest.raises(DataError) as caught:
        sampler(*sets)
    assert str(caught.value) == (
        "there are 0 clips to train on and at least 1 is needed; "
        "`longcat-tune check` lists every clip that was refused and why"
    )


def test_counts_follow_the_formula():
    clips = sampler(one_set(samples(5), uses=3), one_set(samples(3, TALL, name="e"), name="e"), batch_size=4)
    assert clips.plan.locate(0).batches == 4 + 1 == len(planned(clips, 0))


def test_a_name_that_no_encoding_holds_has_windows_too():
    [clip] = samples(1, name="\udcff", windows=2)
    shown = {plan.latents_paths for epoch in (0, 1) for plan in planned(sampler(one_set([clip])), epoch)}
    assert shown == {(path,) for path in clip.latents_paths}


def test_batches_of_regularisation_data_know_it_in_every_epoch() -> None:
    taught = one_set(samples(5, name="new"), name="new")
    known = one_set(samples(7, name="old"), name="old", keeps_base=True, probability=0.5)
    both = sampler(taught, known)
    for epoch in range(3):
        plans = planned(both, epoch)
        assert {plan.samples[0].clip_id[:3]: plan.keeps_base for plan in plans} == {"new": False, "old": True}
    assert not both.largest().keeps_base
    assert sampler(known).largest().keeps_base
