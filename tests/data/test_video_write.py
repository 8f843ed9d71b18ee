"""Videos that are written play anywhere and keep their colours."""

from __future__ import annotations

import av
import numpy as np
import pytest

from longcat_tune.data.video import probe, write_mp4
from longcat_tune.errors import DataError
from tests.media_builders import read_frames


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
