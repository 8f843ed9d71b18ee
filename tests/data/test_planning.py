"""Records made by hand become clips: lengths, times, sizes, start images, and every reason against."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.manifest import Manifest, scan
from longcat_tune.data.planning import plan_dataset, resampled_frames
from longcat_tune.data.video import probe, read_frames
from longcat_tune.types import Bucket, ClipRecord, PlannedClip, Refusal
from tests.media_builders import numbers_of, write_clip

FOLDER = Path("/clips")


def record(
    name: str = "clip.mp4", *, frames: int = 93, rate: float = 30, size=(832, 480), **changes
) -> ClipRecord:
    width, height = size
    values = {
        "dataset_id": "clips", "path": FOLDER / name, "name": name, "kind": "video", "captions": ("a clip",),
        "width": width, "height": height, "source_frames": frames, "seconds": frames / rate,
    }  # fmt: skip
    return ClipRecord(**values | changes)


def image(name: str, folder: Path = FOLDER) -> ClipRecord:
    return record(name, frames=1, kind="image", path=folder / name, seconds=0.0)


def manifest(*records: ClipRecord, folder: Path = FOLDER, refusals: tuple[Refusal, ...] = ()) -> Manifest:
    return Manifest("clips", folder, records, refusals, found=len(records) + len(refusals))


def entry(*, video: dict | None = None, **keys) -> DatasetEntry:
    return DatasetEntry(id="clips", instance_data_dir=FOLDER, video=video or {}, **keys)


def planned(clip: ClipRecord, *, framerate: float = 30, conditioning=(), **keys) -> PlannedClip:
    plan = plan_dataset(entry(**keys), manifest(clip), framerate=framerate, conditioning=conditioning)
    assert plan.refusals == ()
    return plan.clips[0]


def refusal_of(clip: ClipRecord, *, framerate: float = 30, conditioning=(), **keys) -> str:
    plan = plan_dataset(entry(**keys), manifest(clip), framerate=framerate, conditioning=conditioning)
    assert plan.clips == ()
    assert len(plan.refusals) == plan.found == 1
    assert plan.refusals[0].path == clip.path
    return f"{plan.refusals[0].reason}; {plan.refusals[0].remedy}"


@pytest.mark.parametrize(
    ("frames", "rate", "framerate", "expected"),
    [
        (93, 30, 30, 93),
        (120, 30, 15, 60),
        (121, 30, 15, 60),
        (120, 30, 24, 96),
        (100, 25, 30, 120),
        (120, 30000 / 1001, 30, 120),
        (93, 30, 30000 / 1001, 93),
        (1, 30, 30, 1),
        (1, 30, 5, 1),
    ],
)
def test_number_of_frames_after_resampling(frames, rate, framerate, expected):
    assert resampled_frames(frames / rate, framerate) == expected


def test_times_rounded_to_milliseconds_lose_no_frame():
    # mkv and webm: 61 frames at 30 fps end at 2.000 + 0.033 s.
    assert [resampled_frames(round((n - 1) / 30, 3) + 0.033, 30) for n in range(1, 400)] == list(
        range(1, 400)
    )


@pytest.mark.parametrize(
    ("rate", "framerate"), [(30, 30), (30, 15), (30, 24), (25, 30), (60, 24), (24, 30), (15, 30)]
)
def test_planned_frames_are_the_nearest_of_the_file(tmp_path, rate, framerate):
    path = write_clip(tmp_path / "clip.mkv", frames=60, rate=rate)
    info = probe(path)
    clip = record(path=path, frames=60, seconds=info.seconds, size=(64, 48))
    plan = planned(clip, framerate=framerate, video={"bucket_strategy": "resolution_frames"})
    numbers = numbers_of(read_frames(path, plan.frame_times))
    for number, time in zip(numbers, plan.frame_times, strict=True):
        assert abs(info.times[number] - time) <= min(abs(other - time) for other in info.times) + 1e-6
    if rate == framerate:
        assert numbers == list(range(57))


def test_clip_of_the_target_length_takes_every_frame_once():
    clip = planned(record(frames=93))
    assert clip.bucket == Bucket(832, 512, 93)
    assert clip.frame_times == pytest.approx([index / 30 for index in range(93)])
    assert clip.num_cond_latents == 0


def test_selection_is_the_start_or_the_middle():
    clip = record(frames=121)
    assert planned(clip).frame_times[0] == 0.0
    middle = planned(clip, video={"clip_selection": "middle"}).frame_times
    assert (middle[0], middle[-1], len(middle)) == (pytest.approx(14 / 30), pytest.approx(106 / 30), 93)


@pytest.mark.parametrize(
    ("frames", "video", "expected"),
    [
        (93, {}, 93),
        (92, {}, 89),
        (100, {}, 97),
        (61, {}, 61),
        (93, {"frame_interval": 8}, 89),
        (97, {"frame_interval": 8}, 97),
        (97, {"frame_interval": 5}, 97),
        (200, {"max_frames": 61}, 61),
        (200, {"max_frames": 60}, 57),
        (200, {"num_frames": 49}, 49),
        (200, {"num_frames": 49, "max_frames": 61}, 49),
        (200, {"num_frames": 93, "max_frames": 61}, 61),
        (4, {"min_frames": 1}, 1),
    ],
)
def test_clips_keep_their_length_under_resolution_frames(frames, video, expected):
    clip = planned(record(frames=frames), video={"bucket_strategy": "resolution_frames"} | video)
    assert clip.bucket.num_frames == len(clip.frame_times) == expected


def test_short_clips_are_refused_unless_allowed():
    assert refusal_of(record(frames=60, rate=30), framerate=15) == (
        "has 30 frames at 15 fps, fewer than video.num_frames (93); lower video.num_frames to 29, "
        'set allow_short to true, or set video.bucket_strategy to "resolution_frames"'
    )
    assert planned(record(frames=60), allow_short=True).bucket == Bucket(832, 512, 57)


@pytest.mark.parametrize("strategy", ["aspect_ratio", "resolution_frames"])
def test_clips_below_min_frames_are_refused(strategy):
    assert refusal_of(
        record(frames=16), framerate=7.5, allow_short=True, video={"bucket_strategy": strategy}
    ) == (
        "has 4 frames at 7.5 fps, fewer than video.min_frames (5); "
        "take a longer clip or lower video.min_frames"
    )


def test_clips_above_max_frames_are_refused_under_aspect_ratio():
    assert refusal_of(record(frames=200), video={"max_frames": 120}) == (
        "has 200 frames at 30 fps, more than video.max_frames (120); cut the clip or raise video.max_frames"
    )


def test_sizes_follow_the_entry():
    assert planned(record(size=(640, 480))).bucket.name == "640x512@93"
    assert planned(record(size=(640, 480)), resolution_type="pixel_area").bucket.name == "576x448@93"
    assert (
        planned(record(size=(1280, 720)), resolution=1.0, resolution_type="area").bucket.name == "1344x768@93"
    )
    assert planned(record(size=(1280, 720)), bucket_table="official_480p").bucket.name == "832x480@93"


def test_small_clips_are_refused():
    assert refusal_of(record(size=(640, 360)), minimum_image_size=480) == (
        "has 360 pixels on its shorter edge, less than minimum_image_size (480); "
        "take a larger clip or lower minimum_image_size"
    )
    area = {"resolution": 0.5, "resolution_type": "area"}
    assert refusal_of(record(size=(640, 360)), minimum_image_size=0.5, **area) == (
        "has 0.2304 megapixels, less than minimum_image_size (0.5); "
        "take a larger clip or lower minimum_image_size"
    )
    assert planned(record(size=(854, 480)), minimum_image_size=480)


def test_aspect_ratios_outside_the_bounds_are_refused():
    assert refusal_of(record(size=(480, 832)), minimum_aspect_ratio=1) == (
        "is 480x832, an aspect ratio of 0.58 outside minimum_aspect_ratio (1); "
        "crop the clip or change minimum_aspect_ratio"
    )
    assert refusal_of(record(size=(832, 480)), maximum_aspect_ratio=1.5) == (
        "is 832x480, an aspect ratio of 1.73 outside maximum_aspect_ratio (1.5); "
        "crop the clip or change maximum_aspect_ratio"
    )
    assert planned(record(size=(480, 480)), minimum_aspect_ratio=1, maximum_aspect_ratio=1)


def test_clips_that_would_be_enlarged_too_much_are_refused():
    assert refusal_of(record(size=(416, 240)), max_upscale_threshold=0.5) == (
        "is 416x240 and would be enlarged by 113% to fill 832x512, more than max_upscale_threshold (0.5); "
        "take a larger clip or lower resolution"
    )
    assert planned(record(size=(832, 480)), max_upscale_threshold=0.07)


def test_images_are_clips_of_one_frame():
    clip = planned(image("a.png"), dataset_type="image")
    assert (clip.bucket, clip.frame_times) == (Bucket(832, 512, 1), (0.0,))


def test_image_to_video_starts_from_the_clips_own_frame():
    clip = planned(record(), is_i2v=True)
    assert (clip.num_cond_latents, clip.record.conditioning) == (1, None)


def test_image_to_video_needs_more_than_one_frame():
    message = (
        "has one frame, which image-to-video takes as the start image, so that nothing is left to learn; "
        "take a longer clip or set is_i2v to false"
    )
    assert refusal_of(image("a.png"), dataset_type="image", is_i2v=True) == message
    short = {"bucket_strategy": "resolution_frames", "min_frames": 1}
    assert refusal_of(record(frames=4), is_i2v=True, video=short) == message


STILLS = Path("/stills")


@pytest.mark.parametrize("extension", [".png", ".JPG", ".webp"])
def test_partner_has_the_same_relative_path_with_any_image_extension(extension):
    clip = record("sub/a.v2.mp4")
    stills = manifest(image("a.v2.png", STILLS), image(f"sub/a.v2{extension}", STILLS), folder=STILLS)
    found = planned(clip, is_i2v=True, conditioning=[manifest(folder=Path("/none")), stills])
    assert found.record.conditioning == STILLS / f"sub/a.v2{extension}"
    assert found.num_cond_latents == 1


def test_missing_partner_is_refused_with_the_paths_tried():
    conditioning = [manifest(image("b.png", STILLS), folder=STILLS), manifest(folder=Path("/more"))]
    assert refusal_of(record("sub/a.mp4"), is_i2v=True, conditioning=conditioning) == (
        "has no conditioning image; tried /stills/sub/a.{png,jpg,jpeg,webp,bmp,tif,tiff} and "
        "/more/sub/a.{png,jpg,jpeg,webp,bmp,tif,tiff}; "
        "add it, or leave conditioning_data out to start from the clip's own first frame"
    )


def test_unusable_and_double_partners_are_refused():
    broken = Refusal("stills", STILLS / "a.png", "cannot be read as an image (truncated)", "replace the file")
    assert refusal_of(
        record("a.mp4"), is_i2v=True, conditioning=[manifest(folder=STILLS, refusals=(broken,))]
    ) == (
        "has an unusable conditioning image: /stills/a.png cannot be read as an image (truncated); "
        "replace the file"
    )
    double = manifest(image("a.jpg", STILLS), image("a.png", STILLS), folder=STILLS)
    assert refusal_of(record("a.mp4"), is_i2v=True, conditioning=[double]) == (
        "has 2 conditioning images: /stills/a.jpg, /stills/a.png; keep one of them"
    )


def test_conditioning_without_image_to_video_is_said_to_have_no_effect(caplog):
    clip = planned(record("a.mp4"), conditioning=[manifest(image("a.png", STILLS), folder=STILLS)])
    assert clip.record.conditioning is None
    assert caplog.messages == ["clips: conditioning_data has no effect without is_i2v"]


def test_every_file_found_is_a_clip_or_a_refusal(tmp_path):
    write_clip(tmp_path / "long.mp4", frames=30)
    write_clip(tmp_path / "slow.mp4", frames=20, rate=15, size=(48, 64))
    write_clip(tmp_path / "short.mp4", frames=3)
    (tmp_path / "junk.mp4").touch()
    settings = entry(caption_strategy=None, video={"num_frames": 17})
    settings = settings.model_copy(update={"instance_data_dir": tmp_path})
    plan = plan_dataset(settings, scan(settings), framerate=15)
    assert [clip.record.name for clip in plan.clips] == ["slow.mp4"]
    assert [refusal.path.name for refusal in plan.refusals] == ["junk.mp4", "long.mp4", "short.mp4"]
    assert plan.found == 4


def test_plan_counts_the_rates_and_sizes_of_its_files():
    clips = [
        record("a.mp4"),
        record("b.mp4"),
        record("c.mp4", rate=30000 / 1001, size=(480, 832)),
        image("d.png"),
    ]
    plan = plan_dataset(entry(), manifest(*clips), framerate=30)
    assert plan.source_rates == Counter({30.0: 2, 29.97: 1})
    assert plan.source_sizes == Counter({(832, 480): 3, (480, 832): 1})
