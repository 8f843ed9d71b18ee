"""Pictures of any size become the pixels of a bucket, one at a time; knows nothing of datasets or the VAE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from longcat_tune.data.buckets import cover_size, crop_slices
from longcat_tune.data.images import is_image, read_image
from longcat_tune.data.video import VideoBackend, iter_frames

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from longcat_tune.types import Bucket


def load_pixels(
    path: Path, frame_times: Sequence[float], bucket: Bucket, *, backend: VideoBackend = "auto"
) -> Tensor:
    """Read one planned clip, or an image, as pixels_CFHW in [-1, 1].

    Args:
        path: a video or an image.
        frame_times: in seconds, one per frame of the bucket; of an image always its one picture is taken.
        bucket: the size and length wanted.
        backend: who reads a video.

    Raises:
        UnusableFileError: the file is unusable or damaged.
    """
    frames = read_image(path) if is_image(path) else iter_frames(path, frame_times, backend=backend)
    return to_pixels(frames, bucket)


def to_pixels(frames: Iterable[NDArray[np.uint8]], bucket: Bucket) -> Tensor:
    """Resize every frame until it covers the bucket, and cut out the middle.

    Args:
        frames: HW3 uint8 RGB, as many as the bucket has frames; only one is held at a time.
        bucket: the size and length wanted.

    Returns:
        pixels_CFHW float32 in [-1, 1].
    """
    pixels_CFHW = torch.empty(3, bucket.num_frames, bucket.height, bucket.width)
    count = 0
    for picture_HW3 in frames:
        pixels_CFHW[:, count] = _fitted(picture_HW3, bucket) / 127.5 - 1
        count += 1
    assert count == bucket.num_frames, f"{count} frames for a bucket of {bucket.num_frames}"
    return pixels_CFHW


def _fitted(picture_HW3: NDArray[np.uint8], bucket: Bucket) -> Tensor:
    """The picture at the bucket's size, still uint8.

    Interpolating bytes with channels last takes 10 ms for a 4K frame; floats take 150 ms and differ by the
    rounding. The result is that of Pillow's bicubic, to one or two steps of 255.
    """
    height, width, _ = picture_HW3.shape
    cover_width, cover_height = cover_size(width, height, bucket.width, bucket.height)
    picture_1CHW = torch.from_numpy(picture_HW3).permute(2, 0, 1)[None]
    resized_1CHW = functional.interpolate(
        picture_1CHW, size=(cover_height, cover_width), mode="bicubic", antialias=True
    )
    rows, columns = crop_slices(cover_width, cover_height, bucket.width, bucket.height, (0.5, 0.5))
    return resized_1CHW[0, :, rows, columns]
