"""Keys of an entry become tasks with shares, and clips that leave nothing to learn are refused."""

from __future__ import annotations

import pytest

from longcat_tune.data.tasks import given_frames, takes_start_images, tasks_of
from longcat_tune.types import IMAGE_TO_VIDEO, TEXT_TO_VIDEO, Task
from tests.data.records import entry, image, planned, record, refusal_of

CONTINUED = {"continuation_frames": 13}


def test_tasks_without_a_mix():
    assert tasks_of(entry()) == TEXT_TO_VIDEO
    assert tasks_of(entry(is_i2v=True)) == IMAGE_TO_VIDEO
    assert tasks_of(entry(video=CONTINUED)) == (Task(num_cond_latents=4),)


def test_shares_of_a_mix_add_up_in_a_fixed_order():
    mix = {"continuation": 1, "i2v": 3, "t2v": 4}
    assert tasks_of(entry(task_mix=mix, video=CONTINUED)) == (Task(0, 0.5), Task(1, 0.375), Task(4, 0.125))
    assert tasks_of(entry(task_mix={"t2v": 0, "i2v": 0.2})) == IMAGE_TO_VIDEO
    assert tasks_of(entry(task_mix={"t2v": 1, "i2v": 0}, conditioning_data=["stills"])) == TEXT_TO_VIDEO


@pytest.mark.parametrize(("frames", "latents"), [(5, 2), (9, 3), (13, 4), (17, 5)])
def test_continuation_gives_whole_latent_frames(frames, latents):
    [task] = tasks_of(entry(video={"continuation_frames": frames}))
    assert task == Task(latents)
    assert given_frames(task) == frames


def test_only_image_to_video_takes_start_images():
    assert not takes_start_images(tasks_of(entry(video={"continuation_frames": 5})))
    assert takes_start_images(tasks_of(entry(task_mix={"t2v": 0.9, "i2v": 0.1})))


def test_all_clips_of_a_dataset_share_its_tasks():
    mix = {"t2v": 0.5, "i2v": 0.5}
    assert planned(record(), task_mix=mix).tasks == (Task(0, 0.5), Task(1, 0.5))


SHORT = {"bucket_strategy": "resolution_frames", "min_frames": 1}
START_IMAGE = "has one frame, which image-to-video takes as the start image, so that nothing is left to learn"


def test_clips_of_one_frame_are_no_image_to_video():
    assert refusal_of(record(frames=4), is_i2v=True, video=SHORT) == (
        f"{START_IMAGE}; take a longer clip or set is_i2v to false"
    )
    assert refusal_of(record(frames=4), task_mix={"t2v": 9, "i2v": 1}, video=SHORT) == (
        f"{START_IMAGE}; take a longer clip or take i2v out of task_mix"
    )
    assert planned(record(frames=5), is_i2v=True, video=SHORT).bucket.num_frames == 5


def test_clips_that_continuation_gives_whole_are_refused():
    assert refusal_of(record(frames=16), video=SHORT | CONTINUED) == (
        "is 13 frames long, all of which continuation takes as given (video.continuation_frames 13), "
        "so that nothing is left to learn; take a longer clip or lower video.continuation_frames"
    )
    mix = {"t2v": 1, "i2v": 1, "continuation": 1}
    assert "continuation takes as given" in refusal_of(
        record(frames=4), task_mix=mix, video=SHORT | CONTINUED
    )
    assert planned(record(frames=17), video=SHORT | CONTINUED).bucket.num_frames == 17


def test_images_train_text_to_video_only():
    remedy = "put images into a text-to-video dataset of their own"
    assert planned(image("a.png"), dataset_type="image").tasks == TEXT_TO_VIDEO
    assert refusal_of(image("a.png"), dataset_type="image", is_i2v=True) == f"{START_IMAGE}; {remedy}"
    assert refusal_of(image("a.png"), dataset_type="eval", video=CONTINUED).endswith(f"; {remedy}")
