"""Frame counts, frame sizes and lists: what is accepted, and the remedy when it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.config.run import keys
from longcat_tune.config.values import FrameSize, as_list, check_num_frames, frame_sizes, parse_frame_size
from longcat_tune.errors import ConfigError
from tests.config.helpers import config_of


def rule(function, value) -> str:
    with pytest.raises(ValueError) as caught:
        function(value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("frames", "nearest"),
    [(50, "49 or 53"), (52, "49 or 53"), (2, "1 or 5"), ("92", "89 or 93"), (0, "1 or 5")],
)
def test_frames_off_the_stride_name_the_two_nearest(frames, nearest):
    assert rule(check_num_frames, frames) == f"must be 4k + 1; use {nearest}"


@pytest.mark.parametrize("frames", [1, 5, 93, "93"])
def test_frames_on_the_stride_pass(frames):
    assert check_num_frames(frames) == frames


@pytest.mark.parametrize(
    ("text", "described"),
    [
        ("480x832", "480 wide x 832 high (portrait)"),
        ("832X480", "832 wide x 480 high (landscape)"),
        ("512 x 512", "512 wide x 512 high (square)"),
    ],
)
def test_a_size_is_width_first_and_says_so(text, described):
    assert parse_frame_size(text).described == described


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("481x832", "480x832 or 496x832"), ("480x850", "480x848 or 480x864"), ("8x16", "16x16")],
)
def test_a_size_off_the_grid_names_the_nearest(text, nearest):
    assert rule(parse_frame_size, text) == f"must have a width and a height divisible by 16; use {nearest}"


@pytest.mark.parametrize("text", ["480", "480x", "480x832x3", "wide"])
def test_a_size_in_another_form_is_refused(text):
    assert rule(parse_frame_size, text).startswith("must be WIDTHxHEIGHT in pixels; for example 480x832")


@pytest.mark.parametrize("value", ["480x832,832x480", ["480x832", "832x480"], '["480x832", "832x480"]'])
def test_several_sizes_come_in_any_form_of_list(value):
    assert frame_sizes(value) == (FrameSize(480, 832), FrameSize(832, 480))


def test_of_several_sizes_the_wrong_one_is_named():
    assert rule(frame_sizes, "480x832,481x832").startswith("481x832 must have a width")


def test_no_size_at_all_is_refused():
    assert rule(frame_sizes, []) == "must be WIDTHxHEIGHT or a list of them; for example 480x832"


def test_text_becomes_a_list():
    assert as_list("peft, official,") == ["peft", "official"]
    assert as_list('["a,b"]') == ["a,b"]
    assert rule(as_list, '["a"').startswith("is not a JSON list (")


@pytest.mark.parametrize("value", [[], ["x"], ["a{99999999999}"], {}, {"(": 1}, True, 10**400])
def test_a_value_of_any_kind_is_taken_or_told_of(tmp_path: Path, value: object) -> None:
    told = {key: told_of(tmp_path, key, value) for key in keys()}
    assert [key for key, message in told.items() if message is not None and key not in message] == []


def told_of(folder: Path, key: str, value: object) -> str | None:
    try:
        config_of(folder, {key: value})
    except ConfigError as error:
        return str(error)
    return None
