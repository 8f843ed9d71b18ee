"""Folders of numbered pictures: which are a clip, in which order, and which picture is shown at a time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.sequences import (
    iter_sequence,
    numbered_pictures,
    require_each_number_once,
    sequence_pictures,
    sequence_size,
)
from longcat_tune.data.video import iter_frames
from tests.media_builders import cut_off, number_of, numbered_picture, write_clip, write_image


def write_pictures(folder: Path, numbers: range, *, name: str = "frame_{}.png") -> Path:
    """Pictures that show their own number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(numbered_picture(number)).save(folder / name.format(number))
    return folder


def names(*found: str) -> list[str]:
    return [picture.name for picture in numbered_pictures(found)]


def refusal_of(call) -> UnusableFileError:
    with pytest.raises(UnusableFileError) as caught:
        call()
    return caught.value


def gap_in(*found: str) -> tuple[str, str]:
    pictures = numbered_pictures(found)
    error = refusal_of(lambda: require_each_number_once(Path("take"), pictures))
    assert error.path == Path("take")
    return error.reason, error.remedy


@pytest.mark.parametrize(
    "found",
    [
        ("1.png", "2.png"),
        ("frame_0009.jpg", "frame_0010.jpg"),
        ("a2-1.webp", "a2-2.webp"),
        ("1.png", "2.PNG"),
        ("новый кадр 1.tif", "новый кадр 2.tif"),
        ("line\nbreak1.bmp", "line\nbreak2.bmp"),
        ("v1.2.1.png", "v1.2.2.png"),
    ],
)
def test_pictures_that_differ_by_their_last_number_are_a_clip(found):
    assert names(*reversed(found)) == list(found)


@pytest.mark.parametrize(
    "found",
    [
        (),
        ("1.png",),
        ("1.png", "2.jpg"),
        ("a1.png", "b2.png"),
        ("1.png", "2.png", "notes.txt"),
        ("1.png", "2.png", "cover.png"),
        ("1.mp4", "2.mp4"),
        ("1a.png", "2a.png"),
        ("1.png", "2.png", "2"),
        ("１.png", "２.png"),
    ],
)
def test_other_folders_are_none(found):
    assert names(*found) == []


def test_pictures_are_sorted_by_number_not_by_text():
    found = [f"p{number}.png" for number in range(8, 102)]
    assert names(*sorted(found)) == found


def test_the_first_missing_number_is_named():
    assert gap_in("a1.png", "a2.png", "a4.png") == (
        "lacks the picture number 3, between a2.png and a4.png",
        "add what is missing, or number the pictures one after the other",
    )
    assert gap_in("1.png", "10.png", "12.png")[0] == (
        "lacks the picture numbers 2 to 9, between 1.png and 10.png, and 1 more gaps"
    )


def test_a_number_that_is_there_twice_is_named():
    assert gap_in("1.png", "2.png", "02.png") == (
        "holds two pictures with the number 2: 02.png and 2.png",
        "keep one of them",
    )


def test_pictures_come_in_order_and_hidden_files_are_none(tmp_path):
    write_pictures(tmp_path, range(9, 12))
    (tmp_path / ".DS_Store").touch()
    assert [path.name for path in sequence_pictures(tmp_path)] == [
        "frame_9.png",
        "frame_10.png",
        "frame_11.png",
    ]


def test_a_folder_that_changed_is_refused(tmp_path):
    write_pictures(tmp_path / "take", range(2))
    (tmp_path / "take" / "notes.txt").touch()
    error = refusal_of(lambda: sequence_pictures(tmp_path / "take"))
    assert str(error) == (
        f"{tmp_path / 'take'} no longer holds the numbered pictures of one clip; "
        "it changed after it was planned: start again"
    )
    error = refusal_of(lambda: sequence_pictures(tmp_path / "gone"))
    assert error.reason == "cannot be read as a folder of pictures (No such file or directory)"


def test_the_size_is_read_off_the_first_and_the_last_picture(tmp_path):
    write_image(tmp_path / "1.png", size=(40, 30))
    cut_off(write_image(tmp_path / "2.png"), share=0.5)
    write_image(tmp_path / "3.png", size=(30, 40), orientation=6)
    assert sequence_size(tmp_path) == (40, 30, 3)
    write_image(tmp_path / "3.png", size=(30, 40))
    error = refusal_of(lambda: sequence_size(tmp_path))
    assert (error.path, error.reason, error.remedy) == (
        tmp_path,
        "changes its picture size: 3.png is 30x40, pictures before it 40x30",
        "export all its pictures in one size",
    )


@pytest.mark.parametrize("fps", [10.0, 29.97, 30.0])
@pytest.mark.parametrize("framerate", [5.0, 10.0, 15.0, 24.0, 25.0, 30.0, 60.0])
def test_the_nearest_picture_is_the_one_a_video_of_that_rate_would_show(tmp_path, fps, framerate):
    count = 12
    folder = write_pictures(tmp_path / "take", range(count))
    video = write_clip(tmp_path / "take.mp4", frames=count, rate=Fraction(fps).limit_denominator(1001))
    times = [index / framerate for index in range(int(count / fps * framerate))]
    shown = [number_of(picture) for picture in iter_sequence(folder, times, fps=fps)]
    assert shown == [number_of(picture) for picture in iter_frames(video, times)]


def test_of_two_pictures_as_near_the_earlier_is_taken(tmp_path):
    folder = write_pictures(tmp_path / "take", range(4))
    times = [0.0, 0.05, 0.0501, 0.15, 0.25, 0.2500001, 0.35, 0.4]
    shown = [number_of(picture) for picture in iter_sequence(folder, times, fps=10)]
    assert shown == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_picture_for_several_times_is_read_once(tmp_path):
    folder = write_pictures(tmp_path / "take", range(2))
    pictures = list(iter_sequence(folder, [0.0, 0.01, 0.02, 0.1], fps=10))
    assert pictures[0] is pictures[1] is pictures[2]
    assert (pictures[0].shape, pictures[0].dtype) == ((48, 64, 3), np.uint8)


def test_a_clip_too_short_for_its_times_is_refused(tmp_path):
    folder = write_pictures(tmp_path / "take", range(3))
    assert len(list(iter_sequence(folder, [0.0, 0.3], fps=10))) == 2
    error = refusal_of(lambda: list(iter_sequence(folder, [0.0, 0.35], fps=10)))
    assert (error.path, error.reason) == (folder, "lasts 0.300 s and has no frame at 0.350 s")


def test_every_picture_is_checked_when_it_is_read(tmp_path):
    folder = write_pictures(tmp_path / "take", range(4))
    write_image(folder / "frame_2.png", size=(40, 30))
    times = [0.0, 0.1, 0.2, 0.3]
    error = refusal_of(lambda: list(iter_sequence(folder, times, fps=10)))
    assert error.reason == "changes its picture size: frame_2.png is 40x30, pictures before it 64x48"
    cut_off(write_image(folder / "frame_2.png"), share=0.5)
    error = refusal_of(lambda: list(iter_sequence(folder, times, fps=10)))
    assert (error.path, error.reason) == (
        folder / "frame_2.png",
        "cannot be read as an image (image file is truncated)",
    )
