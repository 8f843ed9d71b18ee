"""What a plan asks of the caches, and which of a config's values reach the names of the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from longcat_tune.data.cache import LatentJob
from longcat_tune.model.weights import resolve_checkpoint
from longcat_tune.runs.build import CheckpointFolders, find_checkpoint
from longcat_tune.runs.cache_jobs import CachedRun, CacheJobs
from longcat_tune.runs.plan import make_plan
from longcat_tune.runs.requests import plan_requests
from longcat_tune.types import Bucket, Task
from tests.builders import make_clips, make_run, video_entry
from tests.media_builders import write_clip, write_image


def collect(
    folder: Path, datasets: list[dict[str, Any]], checkpoint: CheckpointFolders | None = None, **keys: Any
) -> tuple[CacheJobs, CachedRun]:
    config = make_run(folder, datasets, **keys)
    plan = make_plan(config, config_dir=folder)
    plan.require_sound()
    jobs = CacheJobs(config, plan, checkpoint or find_checkpoint(config.model))
    return jobs, jobs.of_run(plan_requests(config, plan.render_source, config_dir=folder))


def test_a_training_set_carries_how_often_when_and_for_what_it_is_used(tmp_path):
    entry = video_entry(
        make_clips(tmp_path / "clips"),
        repeats=2,
        probability=0.5,
        start_step=3,
        end_step=9,
        task_mix={"t2v": 1, "i2v": 3},
    )
    first = video_entry(tmp_path / "clips", id="first")
    _, cached = collect(tmp_path, [first, entry])
    _, used = cached.training
    assert (used.dataset_id, used.uses_per_epoch, used.probability) == ("clips", 3, 0.5)
    assert (used.start_step, used.end_step) == (3, 9)
    assert used.tasks == (Task(0, 0.25), Task(1, 0.75))
    assert [sample.clip_id for sample in used.samples] == ["clips/clip-0.mp4", "clips/clip-1.mp4"]
    assert cached.num_clips == 4


def test_every_window_has_its_own_job_and_they_share_their_source(tmp_path):
    make_clips(tmp_path / "clips", 1, frames=40)
    entry = video_entry(tmp_path / "clips", video={"num_frames": 9, "clip_selection": "random"})
    jobs, cached = collect(tmp_path, [entry])
    [sample] = cached.training[0].samples
    assert len(jobs.latents) == len(sample.latents_paths) > 1
    assert tuple(job.path for job in jobs.latents) == sample.latents_paths
    assert len({job.picks.first for job in jobs.latents}) == len(jobs.latents)


def test_a_caption_is_encoded_once_whoever_uses_it(tmp_path):
    make_clips(tmp_path / "clips", 3)
    entry = video_entry(tmp_path / "clips", caption_strategy="instanceprompt", instance_prompt="a walk")
    jobs, _ = collect(tmp_path, [entry], validation_prompt="a walk")
    assert sorted(job.caption for job in jobs.texts) == ["", "a walk"]


def test_a_crop_counts_only_where_something_is_cut(tmp_path):
    for name, size in (("exact", (64, 64)), ("high", (64, 96)), ("wide", (96, 64))):
        write_clip(tmp_path / "clips" / f"{name}.mp4", size=size, frames=9, rate=15)
        (tmp_path / "clips" / f"{name}.txt").write_text(name)
    squares = {"crop_aspect": "square"}
    jobs = {}
    for style in ("center", "corner"):
        entry = video_entry(tmp_path / "clips", crop_style=style, **squares)
        jobs[style] = {job.clip_id: job for job in collect(tmp_path, [entry])[0].latents}
    crops = {clip: job.crop for clip, job in jobs["corner"].items()}
    assert crops == {
        "clips/exact.mp4": (0.5, 0.5),
        "clips/high.mp4": (0.5, 0.0),
        "clips/wide.mp4": (0.0, 0.5),
    }
    same = [clip for clip in crops if jobs["center"][clip].path == jobs["corner"][clip].path]
    assert same == ["clips/exact.mp4"]


def test_a_start_image_is_cropped_like_its_clip_and_lies_with_its_dataset(tmp_path):
    make_clips(tmp_path / "clips", 1, size=(96, 64))
    write_image(tmp_path / "starts" / "clip-0.png", size=(96, 64))
    starts = {"id": "starts", "dataset_type": "conditioning", "instance_data_dir": str(tmp_path / "starts")}
    entry = video_entry(
        tmp_path / "clips",
        is_i2v=True,
        conditioning_data=["starts"],
        crop_style="corner",
        crop_aspect="square",
    )
    jobs, cached = collect(tmp_path, [entry, starts])
    clip, image = jobs.latents
    # Of the clip only the width is cut; what has to be cut of the image shows when it is read.
    assert (clip.crop, image.crop) == ((0.0, 0.5), (0.0, 0.0))
    assert image.bucket == Bucket(64, 64, 1)
    assert image.path.parent == tmp_path / "out" / "cache" / "vae" / "starts"
    assert cached.training[0].samples[0].cond_latents_path == image.path


def test_a_folder_of_pictures_is_read_at_its_own_rate_for_training_and_for_renders(tmp_path):
    for number in range(9):
        write_image(tmp_path / "clips" / "walk" / f"{number:03}.png", size=(64, 64))
    (tmp_path / "clips" / "walk.txt").write_text("a walk")
    make_clips(tmp_path / "more", 1)
    entry = video_entry(tmp_path / "clips", is_i2v=True, video={"num_frames": 9, "frames_fps": 15})
    trained, _ = collect(tmp_path, [entry])
    assert [job.source_fps for job in trained.latents] == [15]
    datasets = [entry | {"id": "held-out"}, video_entry(tmp_path / "more", id="more")]
    keys = {"eval_dataset_id": "held-out", "validation_using_datasets": True}
    rendered, cached = collect(tmp_path, datasets, **keys)
    [start] = [job for job in rendered.latents if job.path == cached.requests[0].start.path]
    assert (start.source.name, start.source_fps) == ("walk", 15)


def text_names(folder: Path, datasets: list[dict[str, Any]], text_encoder: Path, **keys: Any) -> set[str]:
    tiny = resolve_checkpoint(None, flavour="tiny")
    checkpoint = CheckpointFolders(tiny / "dit", tiny, text_encoder)
    return {job.path.name for job in collect(folder, datasets, checkpoint, **keys)[0].texts}


def test_zero_padding_renames_text_features_only_where_it_widens_them(tmp_path):
    datasets = [video_entry(make_clips(tmp_path / "clips", 1))]
    tiny = resolve_checkpoint(None, flavour="tiny")
    plain = text_names(tmp_path, datasets, tiny)
    assert text_names(tmp_path, datasets, tiny, text_encoder_zero_pad=True) == plain
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(tiny / name, tmp_path / "narrow" / name)
    path = tmp_path / "narrow" / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"d_model": 16}))
    narrow = text_names(tmp_path, datasets, tmp_path / "narrow")
    padded = text_names(tmp_path, datasets, tmp_path / "narrow", text_encoder_zero_pad=True)
    assert len(plain | narrow | padded) == len(plain) + len(narrow) + len(padded)


@pytest.mark.parametrize("key", ["lora_rank", "train_batch_size", "learning_rate", "seed"])
def test_other_keys_rename_nothing(tmp_path, key):
    datasets = [video_entry(make_clips(tmp_path / "clips", 1))]

    def names(jobs: CacheJobs) -> set[str]:
        files: list[LatentJob] = jobs.latents
        return {job.path.name for job in files} | {job.path.name for job in jobs.texts}

    assert names(collect(tmp_path, datasets)[0]) == names(collect(tmp_path, datasets, **{key: 2})[0])
