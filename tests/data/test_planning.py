"""Records become clips or refusals, every file in one account; planned frames are the file's nearest."""

from __future__ import annotations

from collections import Counter

import pytest

from longcat_tune.data.lots import lot
from longcat_tune.data.manifest import scan
from longcat_tune.data.planning import clip_id, plan_dataset
from longcat_tune.data.video import probe
from longcat_tune.types import TEXT_TO_VIDEO, Bucket, Refusal
from tests.data.records import FOLDER, entry, image, manifest, plan_of, planned, record
from tests.media_builders import numbers_of, read_frames, write_clip


def test_clip_of_the_target_length_takes_every_frame_once():
    clip = planned(record(frames=93))
    assert clip.bucket == Bucket(832, 512, 93)
    assert (clip.windows, clip.crop, clip.tasks, clip.number) == ((0,), (0.5, 0.5), TEXT_TO_VIDEO, None)
    assert clip.picks(0).times == pytest.approx([index / 30 for index in range(93)])
    assert clip_id(clip) == "clips/clip.mp4"


def test_images_are_clips_of_one_frame():
    clip = planned(image("a.png"), dataset_type="image")
    assert (clip.bucket, clip.picks(0).times) == (Bucket(832, 512, 1), (0.0,))


def test_images_and_videos_of_one_dataset_are_planned_together():
    plan = plan_of(image("a.png"), record("b.mp4"), dataset_type="eval")
    assert [clip.bucket.num_frames for clip in plan.clips] == [1, 93]


def test_clips_of_one_size_and_length_share_their_bucket():
    plan = plan_of(*(record(f"{number}.mp4") for number in range(3)))
    assert len({id(clip.bucket) for clip in plan.clips}) == 1


@pytest.mark.parametrize(
    ("rate", "framerate"), [(30, 30), (30, 15), (30, 24), (25, 30), (60, 24), (24, 30), (15, 30)]
)
def test_planned_frames_are_the_nearest_of_the_file(tmp_path, rate, framerate):
    path = write_clip(tmp_path / "clip.mkv", frames=60, rate=rate)
    info = probe(path)
    clip = record(path=path, frames=60, seconds=info.seconds, size=(64, 48))
    times = planned(clip, framerate=framerate, video={"bucket_strategy": "resolution_frames"}).picks(0).times
    numbers = numbers_of(read_frames(path, times))
    for number, time in zip(numbers, times, strict=True):
        assert abs(info.times[number] - time) <= min(abs(other - time) for other in info.times) + 1e-6
    if rate == framerate:
        assert numbers == list(range(57))


def test_every_file_found_is_a_clip_or_a_refusal(tmp_path):
    write_clip(tmp_path / "long.mp4", frames=30)
    write_clip(tmp_path / "slow.mp4", frames=20, rate=15, size=(48, 64))
    write_clip(tmp_path / "short.mp4", frames=3)
    (tmp_path / "junk.mp4").touch()
    settings = entry(caption_strategy=None, video={"num_frames": 17})
    settings = settings.model_copy(update={"instance_data_dir": tmp_path})
    plan = plan_dataset(settings, scan(settings), framerate=15, seed=42)
    assert [clip.record.name for clip in plan.clips] == ["slow.mp4"]
    assert [refusal.path.name for refusal in plan.refusals] == ["junk.mp4", "long.mp4", "short.mp4"]
    assert (plan.found, plan.used, plan.left_out) == (4, 1, 0)


def test_plan_counts_the_rates_and_sizes_of_its_files():
    clips = [
        record("a.mp4"),
        record("b.mp4"),
        record("c.mp4", rate=30000 / 1001, size=(480, 832)),
        image("d.png"),
    ]
    plan = plan_of(*clips)
    assert plan.source_rates == Counter({30.0: 2, 29.97: 1})
    assert plan.source_sizes == Counter({(832, 480): 3, (480, 832): 1})


def test_max_num_samples_takes_the_files_with_the_smallest_lots():
    records = [record(f"{number:02d}.mp4", frames=200) for number in range(20)]
    small = record("small.mp4", frames=3)
    for count in (1, 7, 20, 99):
        plan = plan_of(*records, small, max_num_samples=count, video={"clip_selection": "all"}, seed=7)
        chosen = sorted(records, key=lambda one: lot(7, "clips", one.name))[:count]
        assert [clip.record for clip in plan.clips] == [
            one for one in records if one in chosen for _ in range(2)
        ]
        assert (plan.used, len(plan.refusals), plan.left_out) == (min(count, 20), 1, max(20 - count, 0))
        assert plan.found == plan.used + len(plan.refusals) + plan.left_out == 21


def test_faults_of_the_files_are_those_of_the_plan():
    fault = Refusal("clips", FOLDER, "cannot be read (Permission denied)", "change its permissions")
    plan = plan_dataset(entry(), manifest(faults=(fault,)), framerate=30, seed=42)
    assert (plan.faults, plan.clips, plan.found) == ((fault,), (), 0)
