"""Files that are cut off, damaged, empty or no video: each is refused and no picture is ever wrong."""

from __future__ import annotations

import re
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from PIL import Image

from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.video import probe
from tests.data.video_clips import CLIPS, FRAMES, message_of
from tests.media_builders import (
    H264,
    HEIGHT,
    MPEG4,
    VP9,
    WIDTH,
    cut_off,
    damage,
    numbered_picture,
    numbers_of,
    read_frames,
    write_clip,
)

REPLACE = "replace the file or take it out of the folder"


FASTSTART = {"container_options": {"movflags": "+faststart"}}


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("clip.mp4", FASTSTART, 0.6),
        ("clip.mkv", {}, 0.6),
        ("clip.webm", VP9, 0.6),
        ("clip.avi", MPEG4, 0.8),
    ],
)
def test_file_that_is_cut_off_is_refused(tmp_path, name, options, share):
    path = cut_off(write_clip(tmp_path / name, **options), share=share)
    assert re.fullmatch(
        rf"{name} is cut off: it announces 2\.00 s and holds [01]\.\d\d s; copy or export it again",
        message_of(path),
    )


def test_mp4_that_is_cut_off_before_its_index_is_refused(tmp_path):
    path = cut_off(write_clip(tmp_path / "clip.mp4"), share=0.5)
    assert message_of(path) == (
        f"clip.mp4 cannot be read as a video (Invalid data found when processing input); {REPLACE}"
    )


@pytest.mark.parametrize("missing", [1, 2, 7])
def test_mp4_that_is_cut_off_between_two_frames_is_refused(tmp_path, missing):
    path = write_clip(tmp_path / "clip.mp4", **FASTSTART)
    with av.open(str(path)) as container:
        starts = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
    data, end = path.read_bytes(), starts[-missing]
    path.write_bytes(data[:end])
    assert message_of(path) == (
        f"clip.mp4 is cut off: it announces {len(data):,} bytes and holds {end:,}; copy or export it again"
    )


def test_boxes_of_any_length_and_what_follows_them_are_no_cut(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    boxes = path.read_bytes()
    start = boxes.index(b"mdat") - 4
    length = int.from_bytes(boxes[start : start + 4], "big")
    # As a camera writes it that does not know the length beforehand: 64 bits of it, in the place kept free.
    assert boxes[start - 8 : start] == b"\0\0\0\x08free"
    large = b"\0\0\0\x01mdat" + (length + 8).to_bytes(8, "big")
    whole = boxes[: start - 8] + large + boxes[start + 8 :]
    for content in (whole, whole + bytes(3), whole + bytes(40), boxes + b"\0\0\0\x03free" + bytes(40)):
        path.write_bytes(content)
        assert numbers_of(read_frames(path, (0.0, 1.9))) == [0, 57]


@pytest.mark.parametrize(("name", "share"), [("h264.ts", 0.5), ("h264.ts", 0.6), ("unindexed.webm", 0.6)])
def test_stream_that_is_cut_off_is_a_shorter_clip_with_the_right_frames(tmp_path, name, share):
    # Broadcasts and live streams announce no length; what is left of them is whole.
    path = cut_off(write_clip(tmp_path / name, **CLIPS[name]), share=share)
    times = probe(path).times
    assert 20 < len(times) < 40
    assert numbers_of(read_frames(path, times)) == [round(30 * time) for time in times]


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
