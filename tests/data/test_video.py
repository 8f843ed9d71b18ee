"""Frame numbers burnt into small clips of every codec and container are read back; needs PyAV's encoders."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.video import iter_frames, probe
from tests.data.video_clips import CLIPS, FRAMES, VARIABLE_TICKS, windows
from tests.media_builders import (
    HEIGHT,
    WIDTH,
    number_of,
    numbered_picture,
    numbers_of,
    read_frames,
    write_clip,
)

MOTORCYCLE = Path(__file__).parents[3] / "shared/media/motorcycle.mp4"


@pytest.mark.parametrize("name", CLIPS)
def test_every_window_shows_the_frames_asked_for(tmp_path, name):
    path = write_clip(tmp_path / name, **CLIPS[name])
    info = probe(path)
    assert (info.width, info.height, info.num_frames) == (WIDTH, HEIGHT, FRAMES)
    assert numbers_of(read_frames(path, info.times)) == list(range(FRAMES))
    for window in windows(FRAMES):
        assert numbers_of(read_frames(path, [info.times[number] for number in window])) == list(window)


def test_times_are_the_presentation_times_from_zero(tmp_path):
    path = write_clip(tmp_path / "variable.mp4", ticks=VARIABLE_TICKS)
    expected = [(tick - VARIABLE_TICKS[0]) / 90000 for tick in VARIABLE_TICKS]
    assert probe(path).times == pytest.approx(expected, abs=1e-9)


def test_frame_nearest_in_time_is_taken_and_the_earlier_of_two(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=10, rate=10)
    assert numbers_of(read_frames(path, [0.0, 0.04, 0.05, 0.06, 0.15, 0.25, 0.26, 0.9, 0.99])) == [
        0, 0, 0, 1, 1, 2, 3, 9, 9,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (30, 30, list(range(30))),
        (30, 15, list(range(0, 60, 2))),
        (30, 24, [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14]),
        (25, 30, [0, 1, 2, 2, 3, 4, 5, 6, 7, 7, 8, 9]),
        (Fraction(30000, 1001), 30, list(range(30))),
        (60, 30, list(range(0, 60, 2))),
    ],
)
def test_resampled_frames(tmp_path, source, target, expected):
    path = write_clip(tmp_path / "clip.mp4", rate=source)
    times = [index / target for index in range(len(expected))]
    assert numbers_of(read_frames(path, times)) == expected


def test_times_that_an_edit_list_hides_are_not_frames(tmp_path):
    # The first five frames are stored before time 0: a player decodes but does not show them.
    source, path = write_clip(tmp_path / "source.mp4"), tmp_path / "edited.mp4"
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(video=0):
            if packet.size:
                hidden = round(5 / 30 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - hidden, packet.dts - hidden, stream
                writing.mux(packet)
    times = probe(path).times
    assert len(times) == FRAMES - 5
    assert numbers_of(read_frames(path, times[:3])) == [5, 6, 7]


@pytest.mark.parametrize(("degrees", "turns"), [(-90, 3), (90, 1), (180, 2)])
def test_rotation_is_applied(tmp_path, degrees, turns):
    path = write_clip(tmp_path / "turned.mp4", rotation=degrees, frames=3)
    stored = read_frames(write_clip(tmp_path / "stored.mp4", frames=3), [0.0])
    info = probe(path)
    assert (info.width, info.height) == ((WIDTH, HEIGHT) if turns == 2 else (HEIGHT, WIDTH))
    assert np.array_equal(read_frames(path, [0.0]), np.rot90(stored, turns, axes=(1, 2)))
    with pytest.raises(UnusableFileError) as caught:
        probe(path, backend="decord")
    assert caught.value.reason == "cannot be read with decord: it is rotated or its pixels are not square"


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    path = write_clip(tmp_path / "wide.mp4", pixel_aspect=Fraction(3, 2), frames=2)
    info = probe(path)
    assert (info.width, info.height) == (WIDTH * 3 // 2, HEIGHT)
    assert read_frames(path, [0.0]).shape == (1, HEIGHT, WIDTH * 3 // 2, 3)


def test_single_frame_and_odd_size(tmp_path):
    one = probe(write_clip(tmp_path / "one.mp4", frames=1))
    assert (one.num_frames, one.times, one.fps) == (1, (0.0,), pytest.approx(30))
    odd = write_clip(tmp_path / "odd.mp4", frames=2, size=(63, 47), pix_fmt="yuv444p")
    assert read_frames(odd, [0.0]).shape == (1, 47, 63, 3)


@pytest.mark.parametrize(
    "name", ["two words.mp4", "naïve 文字.mp4", "line\nbreak.mp4", "a:b%d.mp4", "-i.mp4"]
)
def test_any_name_is_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = write_clip(tmp_path / "clip.mp4", frames=3).rename(name)
    assert numbers_of(read_frames(path, probe(path).times)) == [0, 1, 2]


def test_sound_that_is_longer_than_the_picture_is_no_truncation(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=30), container.add_stream("aac", rate=48000)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(30):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered_picture(number))))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.float32), format="fltp", layout="mono")
        silence.rate = 48000
        container.mux([*video.encode(), *sound.encode(silence), *sound.encode()])
    assert (probe(path).num_frames, probe(path).seconds) == (30, pytest.approx(1.0))


def test_frames_are_decoded_as_they_are_taken(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    frames = iter_frames(path, probe(path).times)
    assert [number_of(next(frames)) for _ in range(3)] == [0, 1, 2]
    frames.close()


@pytest.mark.skipif(not MOTORCYCLE.exists(), reason="the shared media folder is not here")
def test_real_clip():
    info = probe(MOTORCYCLE)
    assert (info.width, info.height, info.num_frames, info.codec) == (3840, 2160, 120, "h264")
    assert (info.fps, info.seconds) == (pytest.approx(30), pytest.approx(4))
    picture = next(iter_frames(MOTORCYCLE, [1.0]))
    assert picture.shape == (2160, 3840, 3)
    assert picture.std() > 20
