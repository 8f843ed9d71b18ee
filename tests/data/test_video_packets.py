"""Packet tables made by hand: which frame is nearest, where decoding starts, how far it must reach."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from longcat_tune.data.video_packets import PacketTable


def table_of(stored: tuple[int, ...], keys: tuple[int, ...]) -> PacketTable:
    return PacketTable(
        path=Path("clip.mp4"),
        container="mp4",
        codec="h264",
        time_base=Fraction(1, 10),
        moments=tuple(sorted(stored)),
        stored=stored,
        keys=keys,
        sizes=dict.fromkeys(stored, 1),
        last_duration=1,
        open_gop=False,
        pixel_aspect=Fraction(1),
    )


def test_times_count_from_the_first_frame():
    table = table_of((7, 8, 9, 12), keys=(7,))
    assert [table.time(moment) for moment in table.moments] == pytest.approx([0.0, 0.1, 0.2, 0.5])
    assert table.seconds == pytest.approx(0.6)


def test_nearest_frame_is_the_earlier_of_two():
    table = table_of((7, 8, 9, 12), keys=(7,))
    assert [table.nearest(time) for time in (0, 0.05, 0.0501, 0.35, 0.36, 9)] == [7, 7, 8, 9, 12, 12]


def test_starts_are_the_two_keyframes_before_and_the_head():
    table = table_of(tuple(range(40)), keys=(0, 10, 20, 30))
    assert table.starts(25) == (20, 10, None)
    assert table.starts(20) == (20, 10, None)
    assert table.starts(9) == (0, None)


def test_horizon_is_the_last_shown_of_the_frames_stored_before():
    table = table_of((0, 4, 2, 1, 3, 8, 6, 5, 7), keys=(0,))
    assert [table.horizon(moment) for moment in (0, 1, 3, 4, 5, 8)] == [0, 4, 4, 4, 8, 8]
