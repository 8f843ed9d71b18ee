"""Resizing is checked against Pillow's bicubic filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from longcat_tune.data.transforms import load_chunks, to_chunks
from longcat_tune.types import Bucket
from tests.media_builders import numbered_picture, numbers_of, write_clip, write_image


def texture(width: int, height: int, *, frames: int = 1) -> np.ndarray:
    """Smooth random frames_FHW3."""
    coarse = np.random.default_rng(0).integers(0, 256, (frames, height // 4, width // 4, 3), dtype=np.uint8)
    return np.stack([np.array(Image.fromarray(picture).resize((width, height))) for picture in coarse])


def frames_of(chunks) -> np.ndarray:
    """Chunks put together as frames_FHW3."""
    return torch.cat(list(chunks), dim=1).permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize(
    ("source", "bucket", "cover"),
    [
        ((256, 144), (64, 64), (114, 64)),
        ((144, 256), (64, 64), (64, 114)),
        ((60, 40), (128, 64), (128, 85)),
    ],
)
@pytest.mark.parametrize("at", [(0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (0.25, 0.75)])
def test_frames_are_resized_to_cover_and_cut_where_they_are_told(source, bucket, cover, at):
    frames_FHW3 = texture(*source, frames=5)
    found_FHW3 = frames_of(to_chunks(frames_FHW3, Bucket(*bucket, 5), crop=at))
    assert found_FHW3.shape == (5, bucket[1], bucket[0], 3)
    assert found_FHW3.dtype == np.uint8
    left, top = int((cover[0] - bucket[0]) * at[0]), int((cover[1] - bucket[1]) * at[1])
    for found, picture in zip(found_FHW3.astype(int), frames_FHW3, strict=True):
        resized = np.asarray(Image.fromarray(picture).resize(cover, Image.Resampling.BICUBIC)).astype(int)
        expected = resized[top : top + bucket[1], left : left + bucket[0]]
        assert np.abs(found - expected).max() <= 2


def test_frames_of_the_right_size_keep_every_value():
    frames_FHW3 = texture(64, 64)
    assert np.array_equal(frames_of(to_chunks(frames_FHW3, Bucket(64, 64, 1))), frames_FHW3)


def test_the_first_frame_comes_alone_and_then_four_at_a_time():
    chunks = to_chunks(texture(64, 64, frames=13), Bucket(64, 64, 13))
    assert [chunk.shape for chunk in chunks] == [(3, 1, 64, 64), *[(3, 4, 64, 64)] * 3]


def test_frames_are_taken_no_further_than_their_chunk():
    taken = []

    def frames():
        for picture_HW3 in texture(64, 64, frames=9):
            taken.append(len(taken))
            yield picture_HW3

    chunks = to_chunks(frames(), Bucket(64, 64, 9))
    assert [(next(chunks).shape[1], len(taken)) for _ in range(3)] == [(1, 1), (4, 5), (4, 9)]


@pytest.mark.parametrize("frames", [1, 6, 9])
def test_another_number_of_frames_is_a_bug(frames):
    with pytest.raises(AssertionError, match=f"{frames} frames for a bucket of 5"):
        list(to_chunks(texture(64, 64, frames=frames), Bucket(64, 64, 5)))


def test_planned_clips_images_and_folders_of_pictures_become_chunks(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=9, rate=10)
    times, wide = [0.1, 0.3, 0.5, 0.7, 0.8], Bucket(128, 64, 5)
    assert numbers_of(frames_of(load_chunks(clip, times, wide))[:, :48]) == [1, 3, 5, 7, 8]
    image = write_image(tmp_path / "image.PNG")
    assert frames_of(load_chunks(image, [0.0], Bucket(64, 64, 1))).shape == (1, 64, 64, 3)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(9):
        Image.fromarray(numbered_picture(number)).save(folder / f"{number:03}.png")
    shown = frames_of(load_chunks(folder, times, wide, source_fps=10))
    assert numbers_of(shown[:, :48]) == [1, 3, 5, 7, 8]


def test_the_crop_reaches_the_clip(tmp_path):
    image = write_image(tmp_path / "image.png", size=(128, 64))
    left, right = (
        frames_of(load_chunks(image, [0.0], Bucket(64, 64, 1), crop=crop))[0, 32, 32]
        for crop in ((0.0, 0.0), (1.0, 0.0))
    )
    assert left.argmax() == 0
    assert right.argmax() == 1
