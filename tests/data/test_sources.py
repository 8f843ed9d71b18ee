"""The memory of files between runs stays right through changes, kills, torn lines and other processes."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
from pathlib import Path

import pytest

from longcat_tune.data import sources
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.source_rows import Probe
from longcat_tune.data.sources import SourceIndex, require_unchanged, stamp_of, stamp_of_pictures
from longcat_tune.errors import DataError, UserError
from longcat_tune.types import Stamp

PROBE = Probe("pyav 1", 64, 48, 9, 0.3)
STAMP = Stamp(100, 1_700_000_000_123_456_789)


def write(path: Path, content: bytes = b"clip", *, mtime_ns: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def content(index: SourceIndex, path: Path) -> str:
    return index.content(path, stamp_of(path))


def hash_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def lines_of(folder: Path) -> list[str]:
    return [line for line in (folder / "sources.jsonl").read_text().split("\n") if line]


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args) -> str:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(sources, "_hash_of_file", refuse)


def pictures(folder: Path, count: int = 3) -> Path:
    for number in range(count):
        write(folder / f"{number}.png", b"picture %d" % number)
    return folder


def test_content_is_that_of_the_file_and_taken_once(tmp_path, monkeypatch):
    clip = write(tmp_path / "a.mp4", b"some bytes")
    index = SourceIndex(tmp_path / "cache")
    assert content(index, clip) == hash_of(b"some bytes")
    index.save()
    no_reading(monkeypatch)
    assert content(index, clip) == hash_of(b"some bytes")
    assert content(SourceIndex(tmp_path / "cache"), clip) == hash_of(b"some bytes")


def test_content_is_taken_again_when_size_or_time_changed(tmp_path):
    clip = write(tmp_path / "a.mp4", b"one", mtime_ns=10**18)
    index = SourceIndex(tmp_path)
    content(index, clip)
    write(clip, b"two", mtime_ns=10**18)
    assert content(index, clip) == hash_of(b"one")
    write(clip, b"two", mtime_ns=10**18 + 1)
    assert content(index, clip) == hash_of(b"two")
    write(clip, b"three", mtime_ns=10**18 + 1)
    assert content(index, clip) == hash_of(b"three")


def test_content_does_not_depend_on_name_and_place(tmp_path, monkeypatch):
    one, other = write(tmp_path / "a.mp4"), write(tmp_path / "sub" / "ü\n.mov")
    index = SourceIndex(tmp_path / "cache")
    assert content(index, one) == content(index, other)
    index.save()
    no_reading(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert content(SourceIndex(Path("cache")), Path("sub/ü\n.mov")) == content(index, one)


def test_a_missing_file_is_named(tmp_path):
    clip = tmp_path / "gone.mp4"
    message = f"{clip} cannot be read (No such file or directory); restore it or remove it from the dataset"
    with pytest.raises(DataError) as caught:
        content(SourceIndex(tmp_path), clip)
    assert str(caught.value) == message
    with pytest.raises(DataError) as caught:
        stamp_of(clip)
    assert str(caught.value) == message


def test_content_of_a_folder_of_pictures_covers_names_and_pictures(tmp_path, monkeypatch):
    index = SourceIndex(tmp_path / "cache")
    first = content(index, pictures(tmp_path / "take"))
    assert content(index, pictures(tmp_path / "copy")) == first
    write(tmp_path / "copy" / ".hidden", b"is none of them")
    assert content(index, tmp_path / "copy") == first
    write(tmp_path / "copy" / "1.png", b"Picture 1")
    assert content(index, tmp_path / "copy") != first
    assert content(index, pictures(tmp_path / "longer", 4)) != first
    (pictures(tmp_path / "named") / "2.png").rename(tmp_path / "named" / "02.png")
    assert content(index, tmp_path / "named") != first
    index.save()
    no_reading(monkeypatch)
    assert content(SourceIndex(tmp_path / "cache"), tmp_path / "take") == first


def test_a_folder_of_pictures_is_read_again_when_one_of_them_has_another_time(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "take")
    index = SourceIndex(tmp_path / "cache")
    content(index, folder)
    stamp = stamp_of(folder)
    os.utime(folder / "1.png", ns=(5, 5))
    assert stamp_of(folder) != stamp
    assert stamp_of(folder).size == stamp.size == 27
    no_reading(monkeypatch)
    with pytest.raises(AssertionError):
        content(index, folder)


def test_a_folder_that_is_no_clip_any_more_is_named(tmp_path):
    folder = pictures(tmp_path / "take")
    (folder / "1.png").unlink()
    with pytest.raises(DataError, match="take lacks the picture number 1, between "):
        content(SourceIndex(tmp_path), folder)


def test_a_probe_is_recalled_for_the_same_file_and_reader_only(tmp_path):
    path = tmp_path / "a.mp4"
    index = SourceIndex(tmp_path)
    assert index.probed(path, STAMP, "pyav 1") is None
    index.remember(path, STAMP, PROBE)
    index.save()
    for one in (index, SourceIndex(tmp_path)):
        assert one.probed(path, STAMP, "pyav 1") == PROBE
        assert one.probed(path, STAMP, "pyav 2") is None
        assert one.probed(path, STAMP._replace(size=99), "pyav 1") is None
        assert one.probed(path, STAMP._replace(version=1), "pyav 1") is None
        assert one.probed(tmp_path / "b.mp4", STAMP, "pyav 1") is None


def test_probe_and_content_of_one_file_are_kept_together(tmp_path, monkeypatch):
    clip = write(tmp_path / "a.mp4")
    index = SourceIndex(tmp_path)
    index.remember(clip, stamp_of(clip), PROBE)
    content(index, clip)
    index.save()
    assert [json.loads(line) for line in lines_of(tmp_path)] == [
        [str(clip), *stamp_of(clip), hash_of(b"clip"), list(PROBE)]
    ]
    no_reading(monkeypatch)
    again = SourceIndex(tmp_path)
    assert (content(again, clip), again.probed(clip, stamp_of(clip), "pyav 1")) == (hash_of(b"clip"), PROBE)


@pytest.mark.parametrize("first", ["content", "probe"])
def test_what_two_processes_learned_of_one_file_is_put_together(tmp_path, monkeypatch, first):
    clip = write(tmp_path / "a.mp4")
    one, other = SourceIndex(tmp_path), SourceIndex(tmp_path)
    content(one, clip)
    other.remember(clip, stamp_of(clip), PROBE)
    for index in (one, other) if first == "content" else (other, one):
        index.save()
    no_reading(monkeypatch)
    both = SourceIndex(tmp_path)
    assert (content(both, clip), both.probed(clip, stamp_of(clip), "pyav 1")) == (hash_of(b"clip"), PROBE)


def test_a_probe_after_the_content_keeps_it(tmp_path, monkeypatch):
    clip = write(tmp_path / "a.mp4")
    index = SourceIndex(tmp_path)
    before = content(index, clip)
    index.remember(clip, stamp_of(clip), PROBE)
    no_reading(monkeypatch)
    assert content(index, clip) == before


def test_what_two_processes_learned_before_and_after_a_change_is_kept_apart(tmp_path):
    clip = write(tmp_path / "a.mp4")
    one, other = SourceIndex(tmp_path), SourceIndex(tmp_path)
    content(one, clip)
    write(clip, b"longer clip")
    other.remember(clip, stamp_of(clip), PROBE)
    one.save()
    other.save()
    assert content(SourceIndex(tmp_path), clip) == hash_of(b"longer clip")


def test_a_folder_of_pictures_has_one_stamp_however_it_is_listed():
    pictures = [("1.png", 10, 5), ("02.png", 11, 6), ("10.png", 12, 7)]
    assert stamp_of_pictures(pictures) == stamp_of_pictures(reversed(pictures))
    assert stamp_of_pictures(pictures).size == 33


def test_a_changed_file_keeps_nothing_of_its_former_self(tmp_path):
    clip = write(tmp_path / "a.mp4")
    index = SourceIndex(tmp_path)
    index.remember(clip, stamp_of(clip), PROBE)
    write(clip, b"longer clip")
    content(index, clip)
    index.save()
    assert SourceIndex(tmp_path).probed(clip, stamp_of(clip), "pyav 1") is None
    assert index.probed(clip, stamp_of(clip), "pyav 1") is None


@pytest.mark.parametrize(
    "noise",
    [
        "",
        "\n\n",
        "null\n",
        "{}\n",
        '{"schema": 9}\n',
        "[1, 2, 3]\n",
        "[]\n",
        "[[1], 2]\n",
        '["/x"]\n',
        "\0\0\0\0",
        "\x80\xff\n",
        '["%s",1,2,"xyz",null]\n',
        '["%s",1,2,"abc",["pyav 1",64,48]]\n',
        '["%s",1,"2","abc",null]\n',
        '["%s",1,2,"abc",null,"new"]\n',
    ],
)
def test_lines_that_are_torn_or_unknown_cost_nothing(tmp_path, noise):
    path = tmp_path / "a.mp4"
    index = SourceIndex(tmp_path)
    index.remember(path, STAMP, PROBE)
    index.save()
    file = tmp_path / "sources.jsonl"
    if "%s" in noise:
        noise %= path
    data = noise.encode("latin-1")
    file.write_bytes(data + file.read_bytes() + data)
    again = SourceIndex(tmp_path)
    # A row of other rules about the file itself stands for a change.
    recalled = again.probed(path, STAMP, "pyav 1")
    assert recalled == (None if '"abc",["pyav 1"' in noise else PROBE)
    again.remember(path, STAMP, PROBE)
    again.save()
    assert SourceIndex(tmp_path).probed(path, STAMP, "pyav 1") == PROBE


def test_a_kill_while_writing_loses_one_line(tmp_path):
    paths = [tmp_path / name for name in ("a.mp4", "é.mp4", "c.mp4")]
    index = SourceIndex(tmp_path)
    for path in paths:
        index.remember(path, STAMP, PROBE)
    index.save()
    file = tmp_path / "sources.jsonl"
    whole = file.read_bytes()
    ends = [
        number for number, byte in enumerate(whole) if byte == ord("]") and whole[number + 1] == ord("\n")
    ]
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        torn = SourceIndex(tmp_path)
        known = sum(torn.probed(path, STAMP, "pyav 1") == PROBE for path in paths)
        assert known == sum(end < length for end in ends)
        torn.remember(tmp_path / "d.mp4", STAMP, PROBE)
        torn.save()
        again = SourceIndex(tmp_path)
        assert again.probed(tmp_path / "d.mp4", STAMP, "pyav 1") == PROBE
        assert sum(again.probed(path, STAMP, "pyav 1") == PROBE for path in paths) == known


def test_only_what_is_new_is_written(tmp_path):
    index = SourceIndex(tmp_path)
    index.remember(tmp_path / "a.mp4", STAMP, PROBE)
    index.save()
    before = (tmp_path / "sources.jsonl").read_bytes()
    index.save()
    SourceIndex(tmp_path).save()
    assert (tmp_path / "sources.jsonl").read_bytes() == before
    index.remember(tmp_path / "b.mp4", STAMP, PROBE)
    index.save()
    after = (tmp_path / "sources.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(lines_of(tmp_path)) == 2


def test_nothing_is_written_before_something_is_learned(tmp_path):
    SourceIndex(tmp_path / "cache").save()
    assert not (tmp_path / "cache").exists()


def test_a_file_of_mostly_stale_lines_is_rewritten_with_other_processes_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "COMPACTED_FROM", 10)
    index, other = SourceIndex(tmp_path), SourceIndex(tmp_path)
    other.remember(tmp_path / "other.mp4", STAMP, PROBE)
    other.save()
    with (tmp_path / "sources.jsonl").open("a") as file:
        file.write('["/torn.mp4",12')
    for version in range(9):
        for name in "ab":
            index.remember(tmp_path / name, Stamp(1, version), PROBE)
        index.save()
        assert len(lines_of(tmp_path)) < 12
    again = SourceIndex(tmp_path)
    assert again.probed(tmp_path / "a", Stamp(1, 8), "pyav 1") == PROBE
    assert again.probed(tmp_path / "other.mp4", STAMP, "pyav 1") == PROBE
    assert not any("torn" in line for line in lines_of(tmp_path))


def append_many(folder: Path, name: str) -> None:
    index = SourceIndex(folder)
    for number in range(100):
        index.remember(folder / f"{name}{number}.mp4", STAMP, PROBE)
        index.save()


def test_several_processes_write_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append_many, args=(tmp_path, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    index = SourceIndex(tmp_path)
    paths = [tmp_path / f"{name}{number}.mp4" for name in "abc" for number in range(100)]
    assert all(index.probed(path, STAMP, "pyav 1") == PROBE for path in paths)


def test_a_folder_that_cannot_be_written_is_explained_by_save_and_endured_by_keep(tmp_path, caplog):
    (tmp_path / "file").touch()
    index = SourceIndex(tmp_path / "file")
    index.remember(tmp_path / "a.mp4", STAMP, PROBE)
    with pytest.raises(
        UserError, match=r"cannot write sources\.jsonl in .*file: a file stands where a folder"
    ):
        index.save()
    with caplog.at_level(logging.WARNING):
        index.keep()
        index.keep()
    assert len(caplog.messages) == 1
    assert index.probed(tmp_path / "a.mp4", STAMP, "pyav 1") == PROBE


def test_an_index_that_cannot_be_read_is_told_and_costs_only_work(tmp_path, caplog):
    (tmp_path / "sources.jsonl").mkdir()
    with caplog.at_level(logging.WARNING):
        index = SourceIndex(tmp_path)
    assert caplog.messages == [
        f"{tmp_path / 'sources.jsonl'} cannot be read (Is a directory); every file is examined again"
    ]
    clip = write(tmp_path / "a.mp4")
    assert content(index, clip) == hash_of(b"clip")


def test_a_file_that_changed_since_it_was_stamped_is_refused(tmp_path):
    clip = write(tmp_path / "a.mp4")
    stamp = stamp_of(clip)
    require_unchanged(clip, stamp)
    write(clip, b"Clip", mtime_ns=stamp.version + 1)
    with pytest.raises(UnusableFileError, match=r"a\.mp4 is no longer the file .*; it changed"):
        require_unchanged(clip, stamp)
    with pytest.raises(UnusableFileError, match=r"a\.mp4 is no longer the file .*; it changed"):
        SourceIndex(tmp_path / "cache").content(clip, stamp)
    clip.unlink()
    with pytest.raises(UnusableFileError, match=r"a\.mp4 cannot be read \(No such file"):
        require_unchanged(clip, stamp)


def test_a_file_whose_content_is_known_is_not_looked_at(tmp_path):
    clip, index = write(tmp_path / "a.mp4"), SourceIndex(tmp_path / "cache")
    stamp = stamp_of(clip)
    assert index.content(clip, stamp) == hash_of(b"clip")
    clip.unlink()
    assert index.content(clip, stamp) == hash_of(b"clip")


def test_keep_waits_as_long_as_it_is_told(tmp_path):
    index = SourceIndex(tmp_path / "cache")
    index.remember(tmp_path / "a.mp4", STAMP, PROBE)
    index.keep(after=60.0)
    assert not (tmp_path / "cache").exists()
    index.keep()
    assert lines_of(tmp_path / "cache")
