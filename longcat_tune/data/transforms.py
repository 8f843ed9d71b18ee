"""Pictures of any size become the frames of a bucket, a few at a time; knows neither datasets nor the VAE."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from longcat_tune.data.buckets import cover_size, crop_slices
from longcat_tune.data.framing import CENTER
from longcat_tune.data.images import is_image, read_image
from longcat_tune.data.sequences import iter_sequence
from longcat_tune.data.video import VideoBackend, iter_frames
from longcat_tune.types import TEMPORAL_STRIDE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from longcat_tune.types import Bucket


def load_chunks(
    path: Path,
    frame_times: Sequence[float],
    bucket: Bucket,
    *,
    crop: tuple[float, float] = CENTER,
    source_fps: float | None = None,
    backend: VideoBackend = "auto",
) -> Generator[Tensor, None, None]:
    """Read one planned clip, or an image, at its bucket's size; see `to_chunks`.

    Args:
        path: a video, an image, or a folder of numbered pictures.
        frame_times: in seconds, one per frame of the bucket; of an image always its one picture is taken.
        bucket: the size and length wanted.
        crop: as in `to_chunks`.
        source_fps: pictures per second of a folder; None for any other kind.
        backend: who reads a video.

    Raises:
        UnusableFileError: the file is unusable or damaged.
    """
    if source_fps is not None:
        frames: Iterable[NDArray[np.uint8]] = iter_sequence(path, frame_times, fps=source_fps)
    elif is_image(path):
        frames = read_image(path)
    else:
        frames = iter_frames(path, frame_times, backend=backend)
    return to_chunks(frames, bucket, crop=crop)


def to_chunks(
    frames: Iterable[NDArray[np.uint8]], bucket: Bucket, *, crop: tuple[float, float] = CENTER
) -> Generator[Tensor, None, None]:
    """Resize every frame until it covers the bucket, and cut the bucket out.

    Args:
        frames: HW3 uint8 RGB, as many as the bucket has frames; only one is held at a time.
        bucket: the size and length wanted.
        crop: share of the spare width and height that lies left of the cut and above it.

    Yields:
        frames_CFHW uint8: the first frame alone, then four at a time, as the VAE takes them in.
    """
    count, size, fitted = 0, 1, []
    for picture_HW3 in frames:
        fitted.append(_fitted(picture_HW3, bucket, crop))
        if len(fitted) == size:
            yield torch.stack(fitted, dim=1)
            count, size, fitted = count + size, TEMPORAL_STRIDE, []
    count += len(fitted)
    assert count == bucket.num_frames, f"{count} frames for a bucket of {bucket.num_frames}"


def _fitted(picture_HW3: NDArray[np.uint8], bucket: Bucket, crop: tuple[float, float]) -> Tensor:
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
    rows, columns = crop_slices(cover_width, cover_height, bucket.width, bucket.height, crop)
    return resized_1CHW[0, :, rows, columns]
