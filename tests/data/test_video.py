"""Frame numbers burnt into small clips of every codec and container are read back; needs PyAV's encoders."""

from __future__ import annotations

import re
import sys
from fractions import Fraction
from io import BytesIO
from itertools import accumulate, cycle, islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.video import iter_frames, probe, read_frames, write_mp4
from longcat_tune.errors import ConfigError, DataError, UserError
from tests.media_builders import (
    AV1,
    H264,
    HEIGHT,
    HEVC,
    INTRA_REFRESH,
    MPEG4,
    OPEN_GOP,
    TINY_OPEN_GOP,
    VP8,
    VP9,
    WIDTH,
    cut_off,
    damage,
    number_of,
    numbered_picture,
    numbers_of,
    write_clip,
)

MOTORCYCLE = Path(__file__).parents[3] / "shared/media/motorcycle.mp4"

FRAMES = 60
REPLACE = "replace the file or take it out of the folder"
VARIABLE_TICKS = list(accumulate(islice(cycle((1500, 3000, 6000, 4500)), FRAMES)))

CLIPS = {
    "h264.mp4": H264,
    "h264.mkv": H264,
    "h264.ts": H264,
    "fragmented.mp4": H264 | {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "variable.mp4": H264 | {"ticks": VARIABLE_TICKS},
    "open_gop.mp4": OPEN_GOP,
    "tiny_open_gop.mp4": TINY_OPEN_GOP,
    "intra_refresh.mp4": INTRA_REFRESH,
    "hevc.mp4": HEVC,
    "vp8.webm": VP8,
    "vp9.webm": VP9,
    "unindexed.webm": VP9 | {"container_options": {"live": "1"}},
    "av1.mp4": AV1,
    "mpeg4.avi": MPEG4,
    "mpeg1.mpg": MPEG4 | {"codec": "mpeg1video"},
    "mpeg2.mpg": MPEG4 | {"codec": "mpeg2video"},
    "full_range.mp4": H264 | {"pix_fmt": "yuvj420p"},
    "ten_bit.mp4": H264 | {"pix_fmt": "yuv420p10le"},
}
REFUSED_BY_DECORD = {
    "h264.ts": "its container is mpegts",
    "open_gop.mp4": "it has open GOPs",
    "tiny_open_gop.mp4": "it has open GOPs",
    "hevc.mp4": "its codec is hevc",
    "unindexed.webm": "it cannot open the file",
    "av1.mp4": "its codec is av1",
    "mpeg4.avi": "its container is avi",
    "mpeg1.mpg": "its codec is mpeg1video",
    "mpeg2.mpg": "its codec is mpeg2video",
    "ten_bit.mp4": "its pixel format is yuv420p10le",
}


def message_of(path: Path, frame_times=(0.0,), **options) -> str:
    """The whole message that reading ends with, the folder left out."""
    with pytest.raises(UserError) as caught:
        read_frames(path, frame_times, **options)
    return str(caught.value).replace(f"{path.parent}/", "")


def windows(num_frames: int, count: int = 12) -> list[range]:
    """Windows of nine frames, every frame or every second one, from the whole clip."""
    starts = np.random.default_rng(0).integers(0, num_frames - 18, count)
    return [range(int(start), int(start) + 9 * step, step) for start, step in zip(starts, cycle((1, 2)))]


@pytest.mark.parametrize("name", CLIPS)
def test_every_window_shows_the_frames_asked_for(tmp_path, name):
    path = write_clip(tmp_path / name, **CLIPS[name])
    info = probe(path)
    assert (info.width, info.height, info.num_frames) == (WIDTH, HEIGHT, FRAMES)
    assert numbers_of(read_frames(path, info.times)) == list(range(FRAMES))
    for window in windows(FRAMES):
        assert numbers_of(read_frames(path, [info.times[number] for number in window])) == list(window)


@pytest.mark.parametrize("name", REFUSED_BY_DECORD)
def test_decord_is_refused_where_it_reads_wrong_frames(tmp_path, name):
    pytest.importorskip("decord")
    path = write_clip(tmp_path / name, **CLIPS[name])
    assert message_of(path, backend="decord") == (
        f'{name} cannot be read with decord: {REFUSED_BY_DECORD[name]}; set video_backend to "pyav"'
    )


@pytest.mark.parametrize("name", CLIPS.keys() - REFUSED_BY_DECORD.keys())
def test_decord_reads_the_same_pixels_elsewhere(tmp_path, name):
    pytest.importorskip("decord")
    path = write_clip(tmp_path / name, **CLIPS[name])
    times = probe(path, backend="decord").times
    misread = []
    for window in windows(FRAMES):
        chosen = [times[number] for number in window]
        try:
            frames_FHW3 = read_frames(path, chosen, backend="decord")
        except UnusableFileError as error:
            misread.append(str(error))
        else:
            assert np.array_equal(frames_FHW3, read_frames(path, chosen))
    # In these its seeks go astray, so that only what it reads from the head on is right.
    assert not misread or name in {"fragmented.mp4", "intra_refresh.mp4"}
    assert all("differs from PyAV's; set video_backend" in message for message in misread)


def test_decord_that_is_not_installed_is_a_config_error(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", frames=2)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ConfigError):
        probe(path, backend="decord")
    with pytest.raises(ConfigError) as caught:
        read_frames(path, [0.0], backend="decord")
    assert str(caught.value) == (
        "video_backend (decord) needs the package decord, which is not installed; install it "
        "(pip install 'longcat-tune[decord]') or set video_backend to \"pyav\""
    )


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


FASTSTART = {"container_options": {"movflags": "+faststart"}}


@pytest.mark.parametrize(("name", "options"), [("clip.mp4", FASTSTART), ("clip.mkv", {})])
def test_file_that_is_cut_off_is_refused(tmp_path, name, options):
    path = cut_off(write_clip(tmp_path / name, **options), share=0.6)
    assert re.fullmatch(
        rf"{name} is cut off: it announces 2\.00 s and holds [01]\.\d\d s; copy or export it again",
        message_of(path),
    )


def test_mp4_that_is_cut_off_before_its_index_is_refused(tmp_path):
    path = cut_off(write_clip(tmp_path / "clip.mp4"), share=0.5)
    assert message_of(path) == (
        f"clip.mp4 cannot be read as a video (Invalid data found when processing input); {REPLACE}"
    )


def test_file_that_is_cut_off_in_its_last_packet_is_refused(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", **FASTSTART)
    path.write_bytes(path.read_bytes()[:-1])
    assert (
        message_of(path) == "clip.mp4 is damaged or cut off 1.93 s after its start; copy or export it again"
    )


@pytest.mark.parametrize("content", [b"", b"a line of text\n" * 300, bytes(range(256)) * 20])
def test_file_that_is_no_video_is_refused(tmp_path, content):
    path = tmp_path / "junk.mp4"
    path.write_bytes(content)
    assert message_of(path) == (
        f"junk.mp4 cannot be read as a video (Invalid data found when processing input); {REPLACE}"
    )
    with pytest.raises(UnusableFileError):
        probe(path)


def test_missing_file_is_refused(tmp_path):
    assert message_of(tmp_path / "gone.mp4") == (
        f"gone.mp4 cannot be read as a video (No such file or directory); {REPLACE}"
    )


def test_sound_without_picture_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.rate = 48000
        container.mux([*stream.encode(silence), *stream.encode()])
    assert message_of(path) == (f"sound.mp4 holds no video that can be decoded; {REPLACE}")


def test_video_without_frames_is_refused(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", container_options={"movflags": "frag_keyframe+empty_moov"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])
    assert message_of(path) == f"clip.mp4 holds no video frames; {REPLACE}"


@pytest.mark.parametrize("name", ["clip.avi", "clip.h264"])
def test_file_that_does_not_time_its_frames_is_refused(tmp_path, name):
    path = write_clip(tmp_path / name)
    assert message_of(path) == (
        f"{name} does not say when its frames are shown; "
        f'convert it: ffmpeg -i "{name}" -c:v libx264 -crf 12 "clip_timed.mp4"'
    )


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_damage_is_an_error_for_windows_that_reach_it_and_for_no_other(tmp_path, backend):
    path = write_clip(tmp_path / "clip.mp4")
    times = probe(path).times
    hurt = damage(path, frame=30)
    refused = {}
    for start in range(0, FRAMES - 4, 4):
        try:
            numbers = numbers_of(read_frames(path, times[start : start + 4], backend=backend))
        except UnusableFileError as error:
            refused[start] = error.reason
        else:
            assert numbers == list(range(start, start + 4))
    expected = dict.fromkeys((28, 32), f"is damaged at {hurt:.2f} s")
    if backend == "pyav":
        assert refused == expected
    else:  # decord itself fails in its own words, and a little earlier
        assert refused.keys() >= expected.keys()


@pytest.mark.parametrize("codec", [H264, MPEG4], ids=["h264", "mpeg4"])
def test_picture_that_a_decoder_patched_is_never_returned(tmp_path, codec):
    path = write_clip(tmp_path / "clip.mp4", **codec, noise=20, frames=36)
    times = probe(path).times
    clean = read_frames(path, times)
    whole = path.read_bytes()
    for frame in range(13, 24):
        path.write_bytes(whole)
        damage(path, frame=frame, share=0.5)
        for start in range(8, 24):
            try:
                frames_FHW3 = read_frames(path, times[start : start + 3])
            except UnusableFileError:
                continue
            assert np.array_equal(frames_FHW3, clean[start : start + 3]), (frame, start)


def test_frame_beyond_the_end_is_refused(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=30)
    assert message_of(path, [0.0, 1.2]) == (
        "clip.mp4 lasts 1.000 s and has no frame at 1.200 s; it changed after it was planned: start again"
    )


def test_picture_that_changes_its_size_is_refused(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for number, width in enumerate((64, 64, 64, 96, 96)):
            jpeg = BytesIO()
            Image.fromarray(numbered_picture(number, width=width)).save(jpeg, "jpeg")
            packet = av.Packet(jpeg.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 10), stream, True
            container.mux(packet)
    assert numbers_of(read_frames(path, [0.0, 0.1, 0.2])) == [0, 1, 2]
    assert message_of(path, [0.1, 0.2, 0.3]) == (
        "clip.mkv changes its picture size at 0.30 s; cut it there or export it in one size"
    )


def test_frames_are_decoded_as_they_are_taken(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    frames = iter_frames(path, probe(path).times)
    assert [number_of(next(frames)) for _ in range(3)] == [0, 1, 2]
    frames.close()


def test_written_mp4_plays_anywhere_and_keeps_its_colours(tmp_path):
    colours = np.zeros((8, 64, 96, 3), np.uint8)
    colours[:, :, :48], colours[:, :, 48:] = (200, 30, 40), (30, 90, 200)
    path = tmp_path / "folder" / "clip.mp4"
    write_mp4(path, colours, fps=15.0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (container.format.name, stream.codec_context.name) == ("mov,mp4,m4a,3gp,3g2,mj2", "h264")
        assert (stream.pix_fmt, stream.average_rate, stream.frames) == ("yuv420p", 15, 8)
        assert [stream.colorspace, stream.color_primaries, stream.color_trc, stream.color_range] == [
            1,
            1,
            1,
            1,
        ]
        assert len(container.streams) == 1
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    back = read_frames(path, probe(path).times).astype(int)
    difference = np.abs(back - colours)
    assert difference[:, :, :44].max() <= 3
    assert difference[:, :, 52:].max() <= 3
    assert [file.name for file in path.parent.iterdir()] == ["clip.mp4"]


def test_written_mp4_refuses_odd_sizes(tmp_path):
    with pytest.raises(DataError) as caught:
        write_mp4(tmp_path / "clip.mp4", np.zeros((2, 47, 64, 3), np.uint8), fps=15.0)
    assert str(caught.value).endswith(
        "clip.mp4 cannot hold 64x47 pixels: H.264 needs even sizes; crop by one pixel"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not MOTORCYCLE.exists(), reason="the shared media folder is not here")
def test_real_clip():
    info = probe(MOTORCYCLE)
    assert (info.width, info.height, info.num_frames, info.codec) == (3840, 2160, 120, "h264")
    assert (info.fps, info.seconds) == (pytest.approx(30), pytest.approx(4))
    picture = next(iter_frames(MOTORCYCLE, [1.0]))
    assert picture.shape == (2160, 3840, 3)
    assert picture.std() > 20
