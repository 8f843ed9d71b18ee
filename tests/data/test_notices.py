"""Each fact is told once, with a count, the worst files and a remedy; and nothing where there is nothing."""

from __future__ import annotations

import pytest

from longcat_tune.data.planning import plan_dataset
from longcat_tune.types import ClipRecord, Notice
from tests.data.records import STILLS, entry, image, manifest, plan_of, record

LARGE = (1664, 1024)
"""Larger than its bucket, 768x512, so that its size is not worth a word."""


def told(*records: ClipRecord, **settings) -> list[tuple[str, str]]:
    return [(notice.fact, notice.remedy) for notice in plan_of(*records, **settings).notices]


def clip(name: str = "clip.mp4", **values) -> ClipRecord:
    return record(name, **{"size": LARGE} | values)


def test_nothing_is_told_of_clips_that_fit():
    assert told(clip("a.mp4"), clip("b.mp4"), image("c.png", width=1664, height=1024)) == []
    assert told() == []


def test_enlarged_files_are_told_with_the_most_enlarged():
    small = [
        record("a.mp4", size=(832, 480)),
        record("b.mp4", size=(416, 240)),
        record("c.mp4", size=(640, 360)),
    ]
    facts = dict(told(*small, clip("d.mp4")))
    fact = (
        "files enlarged to fill their bucket: 3 of 4, most b.mp4 by 113.3% (416x240 to 832x512), "
        "c.mp4 by 42.2% (640x360 to 832x512)"
    )
    assert facts[fact] == "lower resolution, or set max_upscale_threshold to refuse them"
    official = told(record(size=(640, 360)), bucket_table="official_720p")
    assert official[0][1].startswith("set bucket_table to official_480p, or ")


def test_enlarged_start_images_are_told_too():
    images = [image("a.png", STILLS, width=1664, height=1024), image("b.png", STILLS, width=416, height=240)]
    stills = manifest(*images, folder=STILLS)
    facts = told(clip("a.mp4"), clip("b.mp4"), is_i2v=True, conditioning=[stills])
    assert facts == [
        (
            "start images enlarged to fill their bucket: 1 of 2, most b.png by 113.3% (416x240 to 768x512)",
            "lower resolution, or set max_upscale_threshold to refuse them",
        )
    ]


def test_sizes_are_told_where_there_are_several():
    sizes = [LARGE, LARGE, (2048, 2048), (1024, 1664)]
    [(fact, remedy)] = told(*(clip(f"{number}.mp4", size=size) for number, size in enumerate(sizes)))
    assert fact == (
        "files of 3 sizes: 1664x1024 (2), 2048x2048 (1), 1024x1664 (1); "
        "brought to 768x512 (2), 512x512 (1), 512x768 (1)"
    )
    assert remedy == "set crop_aspect to square or closest for fewer buckets"
    [(fact, _)] = told(clip("a.mp4"), clip("b.mp4", size=(1024, 1664)))
    assert fact.startswith("files of 2 sizes: ")
    many = [clip(f"{number}.mp4", size=(1664 + number, 1024)) for number in range(9)]
    [(fact, remedy)] = told(*many)
    assert fact.startswith(
        "files of 9 sizes: 1664x1024 (1), 1665x1024 (1), 1666x1024 (1), 1667x1024 (1), 5 more; "
    )
    assert remedy == "give them datasets of their own, each with its resolution"


def test_frames_that_are_left_out_are_told_by_rate():
    rates = {"a.mp4": 60, "b.mp4": 60, "c.mp4": 25}
    clips = [clip(name, rate=rate, frames=8 * rate) for name, rate in rates.items()]
    facts = dict(told(*clips, framerate=15, video={"num_frames": 117}))
    fact = (
        "files above framerate (15), of which frames are left out: 60 fps (2, one frame in 4), "
        "25 fps (1, the nearest frames)"
    )
    assert facts[fact] == "raise framerate to use more of their frames"


def test_frames_that_are_repeated_are_told_with_the_slowest_files():
    slow = [
        clip("a.mp4", rate=24, frames=93),
        clip("b.mp4", rate=15, frames=93),
        clip("c.mp4", rate=10, frames=93),
    ]
    facts = dict(told(*slow, clip("d.mp4"), video={"bucket_strategy": "resolution_frames"}))
    fact = (
        "files below framerate (30), of which frames are repeated: 24 fps (1, the nearest frames), "
        "15 fps (1, every frame 2 times), 10 fps (1, every frame 3 times); "
        "slowest c.mp4 (10 fps), b.mp4 (15 fps)"
    )
    assert facts[fact] == "lower framerate; at 10 no frame is repeated"


@pytest.mark.parametrize(
    ("rate", "framerate", "words"),
    [
        (60, 30, "one frame in 2"),
        (59.94, 29.97, "one frame in 2"),
        (60, 24, "the nearest frames"),
        (59.94, 15, "the nearest frames"),
        (12.5, 25, "every frame 2 times"),
    ],
)
def test_conversions_are_exact_or_nearest(rate, framerate, words):
    [(fact, _), *_] = told(clip(rate=rate, frames=2000), framerate=framerate)
    assert f"{rate:g} fps (1, {words})" in fact


def test_rates_that_lose_no_frame_are_not_told():
    rounded = clip("a.mkv", frames=93, seconds=round(92 / 30, 3) + 0.033)
    assert (
        told(
            clip("b.mp4", rate=30000 / 1001),
            rounded,
            clip("c.mp4", frames=1),
            allow_short=True,
            video={"min_frames": 1},
        )[1:]
        == []
    )
    long = clip(rate=30000 / 1001, frames=1000)
    assert any("below framerate" in fact for fact, _ in told(long))


def test_short_clips_that_train_are_told():
    clips = [clip("a.mp4", frames=61), clip("b.mp4", frames=21), clip("c.mp4", frames=93)]
    [(fact, remedy)] = told(*clips, image("d.png", width=1664, height=1024), allow_short=True)
    assert fact == (
        "files shorter than video.num_frames (93) that train at their own length: 2 of 4, "
        "shortest b.mp4 (21), a.mp4 (61)"
    )
    assert remedy == "set allow_short to false to refuse them"


ONE_WINDOW = "no further window fits; lower video.num_frames or video.frame_interval to use more"


def test_footage_outside_the_windows_is_told():
    clips = [clip("a.mp4", frames=300), clip("b.mp4", frames=93), clip("c.mp4", frames=120)]
    [(fact, remedy)] = told(*clips)
    assert fact == (
        "footage outside the windows (video.clip_selection start): 7.80 s (45.6%) in 2 of 3 files, "
        "most a.mp4 (6.90 s), c.mp4 (0.90 s)"
    )
    assert remedy == "set video.clip_selection to all to use every whole window"
    [(fact, remedy)] = told(clips[2], video={"clip_selection": "middle"})
    assert "(video.clip_selection middle): 0.90 s (22.5%) in 1 of 1 files, " in fact
    assert remedy == ONE_WINDOW


def test_footage_of_less_than_a_latent_frame_needs_nothing():
    [(fact, remedy)] = told(clip(frames=96), video={"bucket_strategy": "resolution_frames"})
    assert ": 0.10 s (3.1%) in 1 of 1 files, " in fact
    assert remedy == "nothing to do: a clip has 4k + 1 frames"
    [(_, remedy)] = told(clip(frames=97), video={"num_frames": 93})
    assert remedy == ONE_WINDOW


def test_footage_that_random_windows_share_is_counted_once():
    assert told(clip(frames=97), video={"clip_selection": "random"}) == []
    plan = plan_of(clip(frames=2000), video={"clip_selection": "random"})
    shown = {start + frame for start in plan.clips[0].windows for frame in range(93)}
    assert f": {(2000 - len(shown)) / 30:.2f} s (" in plan.notices[0].fact


def test_footage_after_the_last_window_is_told():
    clips = [clip("a.mp4", frames=300), clip("b.mp4", frames=186)]
    [(fact, remedy)] = told(*clips, video={"clip_selection": "all"})
    assert fact == (
        "footage after the last whole window (video.clip_selection all): 0.70 s (4.3%) in 1 of 2 files, "
        "most a.mp4 (0.70 s)"
    )
    assert remedy == ONE_WINDOW


def test_footage_beside_start_images_cannot_be_used_by_selecting_all():
    stills = manifest(image("clip.png", STILLS, width=1664, height=1024), folder=STILLS)
    [(_, remedy)] = told(clip(frames=300), is_i2v=True, conditioning=[stills], conditioning_data=["stills"])
    assert remedy == "cut the files into shorter ones, each with its start image"


def test_files_left_out_are_told_and_no_other_fact_counts_them():
    small = [record(f"{number}.mp4", size=(640, 360)) for number in range(5)]
    facts = told(*small, max_num_samples=2)
    assert facts[0] == (
        "files left out by max_num_samples (2), chosen by the seed: 3",
        "raise max_num_samples or set it to null to use them",
    )
    assert facts[1][0].startswith("files enlarged to fill their bucket: 2 of 2, ")


def test_what_the_files_themselves_told_comes_first():
    found = Notice("clips", "links are not followed", "copy them")
    plan = plan_dataset(entry(), manifest(record(), notices=(found,)), framerate=30, seed=1)
    assert [notice.dataset_id for notice in plan.notices] == ["clips", "clips"]
    assert plan.notices[0] == found
