"""A real 4K clip and a real portrait through the whole path; skipped where ../shared/media is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longcat_tune.cli import main
from longcat_tune.data.images import read_image
from longcat_tune.data.transforms import to_chunks
from longcat_tune.data.video import iter_frames, probe, write_mp4
from longcat_tune.data.video_packets import read_packets
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.model.weights import resolve_checkpoint
from longcat_tune.runs import render
from longcat_tune.sampling.pictures import to_frames
from longcat_tune.types import Bucket
from tests.data.video_clips import nearest_frames, plan_folder, source_times
from tests.media_builders import read_frames

MEDIA = Path(__file__).parents[3] / "shared" / "media"
CAPTION = "a motorcycle drives along a road"
STEPS = 20

pytestmark = pytest.mark.skipif(not MEDIA.is_dir(), reason="needs ../shared/media")


def write_run(folder: Path, *, i2v: bool) -> str:
    """The clip as text-to-video, or with the portrait as its start image."""
    clips, stills = folder / "clips", folder / "stills"
    for made in (clips, stills):
        made.mkdir(parents=True)
    shutil.copy(MEDIA / "motorcycle.mp4", clips / "motorcycle.mp4")
    (clips / "motorcycle.txt").write_text(CAPTION)
    shutil.copy(MEDIA / "girl.png", stills / "motorcycle.png")
    video = {
        "id": "clips",
        "dataset_type": "video",
        "instance_data_dir": "clips",
        "video": {"num_frames": 9},
    }
    datasets = [video]
    if i2v:
        video |= {"is_i2v": True, "conditioning_data": ["stills"]}
        still = {"id": "stills", "dataset_type": "conditioning", "instance_data_dir": "stills"}
        datasets.append(still | {"caption_strategy": None})
    config = {
        "model_flavour": "tiny",
        "data_backend_config": "data.json",
        "output_dir": str(folder / "out"),
        "resolution": 128,
        "resolution_type": "pixel_area",
        "framerate": 15,
        "max_train_steps": STEPS,
        "validation_on_startup": False,
        "validation_step_interval": 0,
        "validation_prompt": CAPTION,
        "validation_resolution": "128x192",
        "validation_num_video_frames": 9,
        "validation_num_inference_steps": 4,
    }
    (folder / "data.json").write_text(json.dumps(datasets))
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder / "config.json")


@pytest.mark.parametrize(
    ("framerate", "length", "first"),
    [
        (15, 57, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
        # Every 1.25th frame of 30 a second: the third lies between 2 and 3 and goes to the earlier.
        (24, 93, [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]),
        (25, 97, [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]),
    ],
)
def test_planned_frames_are_those_nearest_by_presentation_time(framerate, length, first) -> None:
    strategy = {"bucket_strategy": "resolution_frames"}
    [clip] = plan_folder(MEDIA, framerate=framerate, video=strategy).clips
    assert (clip.record.width, clip.record.height, clip.bucket.name) == (3840, 2160, f"832x512@{length}")
    expected = nearest_frames(source_times(clip.record.path), range(length), framerate)
    assert expected[:10] == first
    table = read_packets(clip.record.path)
    taken = [table.moments.index(table.nearest(time)) for time in clip.picks(0).times]
    assert taken == expected

    whole = iter_frames(clip.record.path, probe(clip.record.path).times[:6])
    for picture, other in zip(
        [picture for number, picture in enumerate(whole) if number in first],
        iter_frames(clip.record.path, clip.picks(0).times[: sum(number < 6 for number in first)]),
        strict=True,
    ):
        assert np.array_equal(picture, other)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.square(first.astype(np.float64) - second.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


@pytest.mark.parametrize("i2v", [False, True], ids=["t2v", "i2v"])
def test_check_cache_train_and_validate(tmp_path: Path, capsys, i2v: bool) -> None:
    config = write_run(tmp_path, i2v=i2v)
    assert main(["check", "--config", config, "--json"]) == 0
    [dataset] = json.loads(capsys.readouterr().out)["datasets"]
    assert (dataset["found"], dataset["used"], dataset["refused"]) == (1, 1, 0)

    assert main(["cache-latents", "--config", config]) == 0
    assert len(list(tmp_path.rglob("*.latents.safetensors"))) == 1 + i2v
    assert main(["train", "--config", config]) == 0
    lora = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    image = ["--image", str(MEDIA / "girl.png")] if i2v else []
    assert main(["validate", "--config", config, "--lora", str(lora), *image]) == 0

    [video] = (tmp_path / "out" / "validation").rglob("*.mp4")
    info = probe(video)
    assert (info.width, info.height, info.num_frames, round(info.fps)) == (128, 192, 9, 15)
    assert Image.open(video.with_name("grid.png")).size[0] > 0
    steps = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "step" for event in steps) == STEPS


def test_the_render_s_first_frame_is_the_start_image(tmp_path: Path, monkeypatch) -> None:
    written: list[np.ndarray] = []

    def keep_and_write(path: Path, frames_FHW3: np.ndarray, fps: float) -> None:
        written.append(frames_FHW3)
        write_mp4(path, frames_FHW3, fps)

    monkeypatch.setattr(render, "write_mp4", keep_and_write)
    config = write_run(tmp_path, i2v=True)
    arguments = ["--prompt", CAPTION, "--image", str(MEDIA / "girl.png")]
    assert main(["validate", "--config", config, *arguments]) == 0
    [video] = (tmp_path / "out" / "validation").rglob("*.mp4")
    shown = read_frames(video, probe(video).times)[0]

    vae = VideoAutoencoder.load(
        resolve_checkpoint(None, flavour="tiny"), dtype=torch.bfloat16, device=torch.device("cpu")
    )
    [picture] = to_chunks(read_image(MEDIA / "girl.png"), Bucket(128, 192, 1))
    reconstruction = to_frames(vae.decode(vae.encode([picture])))[0]
    assert psnr(written[0][0], reconstruction) >= 40
    # H.264 halves the resolution of colour, which costs a little.
    assert psnr(shown, reconstruction) >= 35
