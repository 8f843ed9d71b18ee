"""Resizing is checked against Pillow's bicubic filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from longcat_tune.data.transforms import load_pixels, to_pixels
from longcat_tune.types import Bucket
from tests.media_builders import numbers_of, write_clip, write_image


def texture(width: int, height: int, *, frames: int = 1) -> np.ndarray:
    """Smooth random frames_FHW3."""
    coarse = np.random.default_rng(0).integers(0, 256, (frames, height // 4, width // 4, 3), dtype=np.uint8)
    return np.stack([np.array(Image.fromarray(picture).resize((width, height))) for picture in coarse])


def back_to_bytes(pixels_CFHW: torch.Tensor) -> np.ndarray:
    return ((pixels_CFHW.permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).numpy()


@pytest.mark.parametrize(
    ("source", "bucket", "cover"),
    [
        ((256, 144), (64, 64), (114, 64)),
        ((144, 256), (64, 64), (64, 114)),
        ((60, 40), (128, 64), (128, 85)),
    ],
)
def test_frames_are_resized_to_cover_and_cropped_in_the_middle(source, bucket, cover):
    frames_FHW3 = texture(*source, frames=5)
    pixels_CFHW = to_pixels(frames_FHW3, Bucket(*bucket, 5))
    assert pixels_CFHW.shape == (3, 5, bucket[1], bucket[0])
    assert pixels_CFHW.dtype == torch.float32
    left, top = (cover[0] - bucket[0]) // 2, (cover[1] - bucket[1]) // 2
    for found, picture in zip(back_to_bytes(pixels_CFHW), frames_FHW3, strict=True):
        resized = np.asarray(Image.fromarray(picture).resize(cover, Image.Resampling.BICUBIC)).astype(int)
        expected = resized[top : top + bucket[1], left : left + bucket[0]]
        assert np.abs(found - expected).max() <= 2


def test_frames_of_the_right_size_keep_every_value():
    frames_FHW3 = texture(64, 64)
    pixels_CFHW = to_pixels(frames_FHW3, Bucket(64, 64, 1))
    assert np.array_equal(back_to_bytes(pixels_CFHW), frames_FHW3)


def test_values_span_minus_one_to_one():
    frames_FHW3 = np.zeros((1, 96, 128, 3), np.uint8)
    frames_FHW3[:, :, 64:] = 255
    pixels_CFHW = to_pixels(frames_FHW3, Bucket(64, 64, 1))
    assert (pixels_CFHW.min(), pixels_CFHW.max()) == (-1, 1)


def test_frames_are_taken_one_at_a_time():
    held = []

    def frames():
        for picture_HW3 in texture(64, 64, frames=5):
            held.append(len(held))
            yield picture_HW3

    to_pixels(frames(), Bucket(64, 64, 5))
    assert held == [0, 1, 2, 3, 4]


def test_another_number_of_frames_is_a_bug():
    with pytest.raises(AssertionError, match="1 frames for a bucket of 5"):
        to_pixels(texture(64, 64), Bucket(64, 64, 5))


def test_planned_clips_and_images_become_pixels(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=9, rate=10)
    pixels_CFHW = load_pixels(clip, [0.1, 0.3, 0.5, 0.7, 0.8], Bucket(128, 64, 5))
    assert numbers_of(back_to_bytes(pixels_CFHW)[:, :48]) == [1, 3, 5, 7, 8]
    image = write_image(tmp_path / "image.PNG")
    assert load_pixels(image, [0.0], Bucket(64, 64, 1)).shape == (3, 1, 64, 64)
