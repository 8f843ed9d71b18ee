"""Small clips and images for tests: every frame shows its own number as eight bright or dark fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longcat_tune.data.video import VideoBackend, iter_frames

WIDTH, HEIGHT = 64, 48
DARK, BRIGHT, THRESHOLD = 40, 220, 130
TIMESCALE = Fraction(1, 90000)

H264 = {"codec": "libx264", "options": {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3"}}
OPEN_GOP = {
    "codec": "libx264",
    "options": {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:open-gop=1"},
}
TINY_OPEN_GOP = {
    "codec": "libx264",
    "options": {"x264-params": "keyint=3:min-keyint=1:scenecut=0:bframes=2:b-adapt=0:open-gop=1"},
}
INTRA_REFRESH = {"codec": "libx264", "options": {"x264-params": "keyint=12:intra-refresh=1:bframes=0"}}
HEVC = {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12:scenecut=0:bframes=3"}}
VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "g": "12"}}
VP8 = {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "300k", "g": "12"}}
AV1 = {"codec": "libsvtav1", "options": {"preset": "12", "g": "12"}}
MPEG4 = {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}


def read_frames(
    path: Path, frame_times: Sequence[float], *, backend: VideoBackend = "auto"
) -> NDArray[np.uint8]:
    """The frames of a small video at these times, FHW3."""
    return np.stack(list(iter_frames(path, frame_times, backend=backend)))


def numbered_picture(number: int, *, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """HW3: the number as bits along the upper half, and a red bar below that grows with it."""
    picture = np.full((height, width, 3), DARK, np.uint8)
    field = width // 8
    for bit in range(8):
        if number >> bit & 1:
            picture[: height // 2, bit * field : (bit + 1) * field] = BRIGHT
    picture[height // 2 :, : number * 3 % width] = (200, 60, 60)
    return picture


def number_of(picture_HW3: NDArray[np.uint8]) -> int:
    """The number that `numbered_picture` drew, at any size and after any codec."""
    height, width, _ = picture_HW3.shape
    field = width // 8
    band = picture_HW3[height // 8 : height * 3 // 8].mean(axis=(0, 2))
    return sum(
        int(band[bit * field + 1 : (bit + 1) * field - 1].mean() > THRESHOLD) << bit for bit in range(8)
    )


def numbers_of(frames_FHW3: NDArray[np.uint8]) -> list[int]:
    return [number_of(picture_HW3) for picture_HW3 in frames_FHW3]


def write_clip(
    path: Path,
    *,
    codec: str = "libx264",
    options: Mapping[str, str] = H264["options"],
    container_options: Mapping[str, str] | None = None,
    frames: int = 60,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    rate: Fraction | int = 30,
    pix_fmt: str = "yuv420p",
    ticks: Sequence[int] | None = None,
    rotation: float | None = None,
    pixel_aspect: Fraction | None = None,
    noise: float = 0.0,
) -> Path:
    """Write a clip of numbered pictures.

    Args:
        ticks: when each frame is shown, in units of TIMESCALE; None: regularly at `rate`.
        rotation: degrees that a player turns the picture by, counterclockwise.
        noise: standard deviation of what is added to every picture, so that packets have some size.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    with av.open(str(path), "w", options=dict(container_options or {})) as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if ticks is not None:
            stream.time_base = stream.codec_context.time_base = TIMESCALE
        for number in range(frames):
            picture = numbered_picture(number, width=size[0], height=size[1])
            if noise:
                grain = generator.normal(0, noise, picture.shape)
                picture = (picture + grain).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture).reformat(format=pix_fmt)
            if ticks is not None:
                frame.pts, frame.time_base = ticks[number], TIMESCALE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut_off(path: Path, *, share: float) -> Path:
    """Keep only the first part of a file, as an aborted download does."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def damage(path: Path, *, frame: int, share: float = 1.0) -> float:
    """Overwrite the last part of one packet, counted in the order of decoding; return its time in seconds."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][frame]
        position, size, time = packet.pos, packet.size, float(packet.pts * packet.time_base)
    data = bytearray(path.read_bytes())
    kept = size - int(size * share)
    data[position + kept : position + size] = bytes(size - kept)
    path.write_bytes(data)
    return time


def write_image(
    path: Path, *, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int | None = None
) -> Path:
    """Write an image that is red left, green right; `orientation` is EXIF's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[:, : size[0] // 2] = (200, 0, 0)
    picture[:, size[0] // 2 :] = (0, 200, 0)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(picture).save(path, exif=exif)
    return path
