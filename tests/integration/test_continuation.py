"""Image-to-video, continuation and long videos by the command line; mp4s are read by another library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longcat_tune.cli import main
from longcat_tune.runs.render_record import ShownVideo, read_record
from tests.builders import make_clips, make_run
from tests.media_builders import write_image

decord = pytest.importorskip("decord")

MEDIA = Path(__file__).parents[3] / "shared" / "media"
SIZE = {"validation_num_video_frames": 17, "validation_num_inference_steps": 1, "validation_guidance": 1.0}


def render(folder: Path, *options: str) -> tuple[ShownVideo, np.ndarray, float]:
    """One render by `validate`: its record, frames_FHW3 and fps as decord sees them."""
    make_run(folder, [], data_backend_config=None, **SIZE)
    config = str(folder / "config.json")
    assert main(["validate", "--config", config, "--prompt", "it moves", *options]) == 0
    base = folder / "out" / "validation" / "base"
    [video] = read_record(base).videos
    reader = decord.VideoReader(str(base / video.file))
    return video, reader.get_batch(range(len(reader))).asnumpy(), reader.get_avg_fps()


def decord_frames(clip: Path, fps: float, count: int) -> np.ndarray:
    """The last frames of a clip at a frame rate, cut to a square of 64 pixels, as decord sees them."""
    reader = decord.VideoReader(str(clip))
    total = round(len(reader) / reader.get_avg_fps() * fps)
    wanted = [(total - count + i) / fps * reader.get_avg_fps() for i in range(count)]
    return reader.get_batch([min(len(reader) - 1, round(index)) for index in wanted]).asnumpy()


def test_a_start_image_becomes_the_first_frame(tmp_path: Path) -> None:
    image = MEDIA / "girl.png"
    if not image.is_file():
        image = write_image(tmp_path / "start.png", size=(96, 64))
    video, frames, fps = render(tmp_path, "--image", str(image))
    assert frames.shape == (17, 64, 64, 3)
    assert fps == 15
    assert video.numbers["first_frame_psnr"] > 12
    assert f"starts from {image.name}" in video.details


def test_a_clip_is_continued_from_its_last_frames(tmp_path: Path) -> None:
    clip = make_clips(tmp_path / "clips", 1, frames=20) / "clip-0.mp4"
    video, frames, fps = render(tmp_path, "--video", str(clip))
    assert (frames.shape, fps) == ((17, 64, 64, 3), 15)
    given = decord_frames(clip, 15, 13).astype(float)
    # The miniature's VAE is coarse; the last given frame is still much nearer to its own than to the first.
    near, far = (np.abs(frames[12].astype(float) - given[index]).mean() for index in (12, 0))
    assert near < far
    assert "starts from 13 frames of clip-0.mp4" in video.details


def test_three_segments_go_on_from_their_own_last_frames(tmp_path: Path) -> None:
    clip = MEDIA / "motorcycle.mp4"
    source = ["--video", str(clip)] if clip.is_file() else []
    video, frames, fps = render(tmp_path, *source, "--segments", "3")
    assert frames.shape == (17 + 4 + 4, 64, 64, 3)
    assert (fps, video.num_frames) == (15, 25)
    assert "3 segments" in video.details


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "a.png", "--video", "b.mp4"], "--image (a.png) and --video (b.mp4) cannot both be"),
        (["--video", "b.mp4"], "--video (b.mp4) does not exist; give the path of a clip to continue"),
    ],
)
def test_a_start_that_cannot_be_is_refused(tmp_path: Path, capsys, options: list[str], message: str) -> None:
    make_run(tmp_path, [], data_backend_config=None)
    assert main(["validate", "--config", str(tmp_path / "config.json"), "--prompt", "a", *options]) == 2
    assert message in capsys.readouterr().err
