"""Files are opened when the index does not know them, and only then; a killed scan goes on where it was."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from longcat_tune.data import examine
from longcat_tune.data.manifest import scan
from longcat_tune.data.sources import SourceIndex
from tests.data.scans import clips_in, entry_of, names
from tests.media_builders import write_clip, write_image


def count_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened from now on, in any order."""
    opened = []
    for name in ("probe", "read_image", "sequence_size"):
        original = getattr(examine, name)

        def noted(path: Path, original=original, **keys):
            opened.append(path.name)
            return original(path, **keys)

        monkeypatch.setattr(examine, name, noted)
    return opened


def test_a_second_scan_opens_only_what_changed(tmp_path, monkeypatch):
    folder, cache = tmp_path / "clips", tmp_path / "cache"
    write_clip(folder / "a.mp4", frames=2)
    write_clip(folder / "b.mp4", frames=2)
    (folder / "c.mp4").write_text("broken")
    for number in range(3):
        write_image(folder / "d" / f"{number}.png")
    opened = count_opened(monkeypatch)
    first = clips_in(folder, index=SourceIndex(cache))
    assert sorted(opened) == ["a.mp4", "b.mp4", "c.mp4", "d"]
    opened.clear()
    assert clips_in(folder, index=SourceIndex(cache)) == first
    # What is wrong may be a disk's bad moment, so it is never remembered.
    assert opened == ["c.mp4"]
    opened.clear()
    write_clip(folder / "b.mp4", frames=3)
    write_image(folder / "d" / "1.png", orientation=3)
    second = clips_in(folder, index=SourceIndex(cache))
    assert sorted(opened) == ["b.mp4", "c.mp4", "d"]
    assert [record.source_frames for record in second.records] == [2, 3, 3]


def test_another_reader_looks_for_itself(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", frames=2)
    index = SourceIndex(tmp_path / "cache")
    clips_in(tmp_path, index=index)
    opened = count_opened(monkeypatch)
    scan(entry_of(tmp_path), index=index, backend="decord")
    scan(entry_of(tmp_path), index=index, backend="decord")
    assert opened == ["a.mp4"]


def test_another_frame_rate_of_pictures_opens_nothing(tmp_path, monkeypatch):
    for number in range(4):
        write_image(tmp_path / "take" / f"{number}.png")
    index = SourceIndex(tmp_path / "cache")
    clips_in(tmp_path, index=index)
    opened = count_opened(monkeypatch)
    [record] = scan(entry_of(tmp_path), index=index, framerate=2).records
    assert (record.seconds, opened) == (2.0, [])


def test_a_killed_scan_goes_on_where_it_was(tmp_path, monkeypatch):
    folder, cache = tmp_path / "clips", tmp_path / "cache"
    clip = write_clip(folder / "00.mp4", frames=1)
    for number in range(1, 40):
        (folder / f"{number:02}.mp4").hardlink_to(clip)
    probe = examine.probe

    def killed(path: Path, **keys):
        if path.name == "30.mp4":
            raise KeyboardInterrupt
        return probe(path, **keys)

    monkeypatch.setattr(examine, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(examine, "probe", killed)
    with pytest.raises(KeyboardInterrupt):
        clips_in(folder, index=SourceIndex(cache))
    monkeypatch.setattr(examine, "probe", probe)
    opened = count_opened(monkeypatch)
    clips_in(folder, index=SourceIndex(cache))
    assert sorted(opened) == [f"{number}.mp4" for number in range(30, 40)]


def test_a_memory_that_cannot_be_written_costs_one_warning(tmp_path, caplog):
    write_clip(tmp_path / "clips" / "a.mp4", frames=2)
    (tmp_path / "file").touch()
    index = SourceIndex(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        assert names(clips_in(tmp_path / "clips", index=index)) == ["a.mp4"]
        assert names(clips_in(tmp_path / "clips", index=index)) == ["a.mp4"]
    [message] = caplog.messages
    assert message.startswith(f"cannot write sources.jsonl in {tmp_path / 'file' / 'cache'}: ")
    assert message.endswith("; until then every file is examined again in each run")


def test_relative_folders_are_remembered_by_their_absolute_path(tmp_path, monkeypatch):
    write_clip(tmp_path / "clips" / "a.mp4", frames=2)
    monkeypatch.chdir(tmp_path)
    index = SourceIndex(tmp_path / "cache")
    [record] = clips_in(Path("clips"), index=index).records
    assert record.path == Path("clips/a.mp4")
    [line] = (tmp_path / "cache" / "sources.jsonl").read_text().strip().splitlines()
    assert json.loads(line)[0] == str(tmp_path / "clips" / "a.mp4")
