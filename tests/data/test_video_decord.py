"""decord reads what PyAV reads, or is refused: where it is known to err, and where its pictures differ."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.video import probe
from longcat_tune.errors import ConfigError
from tests.data.video_clips import CLIPS, FRAMES, REFUSED_BY_DECORD, message_of, windows
from tests.media_builders import read_frames, write_clip


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
