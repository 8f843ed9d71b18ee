"""Copies within a dataset, between datasets, and of what is held out; files of other sizes are never read."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.data import sources
from longcat_tune.data.duplicates import duplicates
from longcat_tune.data.manifest import Manifest
from longcat_tune.data.sources import SourceIndex, stamp_of
from longcat_tune.errors import DataError
from longcat_tune.types import ClipRecord, Notice


def dataset(dataset_id: str, folder: Path, **contents: str) -> Manifest:
    """Files of these contents; keys are names without extension, and existing files stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_text(content)
    paths = sorted(folder.iterdir())
    records = tuple(
        ClipRecord(
            dataset_id=dataset_id,
            path=path,
            name=path.name,
            kind="sequence" if path.is_dir() else "video",
            captions=("a caption",),
            width=64,
            height=48,
            source_frames=9,
            seconds=0.3,
            stamp=stamp_of(path),
        )
        for path in paths
    )
    return Manifest(dataset_id, folder, records=records, refusals=(), found=len(records))


def found(tmp_path: Path, *manifests: Manifest, held_out: tuple[str, ...] = ()) -> tuple[Notice, ...]:
    indexes = {
        manifest.dataset_id: SourceIndex(tmp_path / f"cache-{manifest.dataset_id}") for manifest in manifests
    }
    return duplicates(manifests, indexes.__getitem__, held_out=held_out)


def test_files_of_different_content_are_no_copies_and_of_different_size_are_not_read(tmp_path, monkeypatch):
    read = []
    original = sources._hash_of_file
    monkeypatch.setattr(sources, "_hash_of_file", lambda path: read.append(path.name) or original(path))
    assert found(tmp_path, dataset("clips", tmp_path / "clips", a="one", b="two", c="three")) == ()
    assert sorted(read) == ["a.mp4", "b.mp4"]


def test_copies_within_a_dataset_are_counted_and_named(tmp_path):
    clips = dataset("clips", tmp_path / "clips", a="one", b="two", c="one", d="one", e="two", f="six")
    assert found(tmp_path, clips) == (
        Notice(
            "clips",
            "files that are copies of others: 3 (a.mp4 = c.mp4 = d.mp4; b.mp4 = e.mp4)",
            "keep one of each; what is meant to be used more often has repeats",
        ),
    )


def test_links_count_as_copies(tmp_path):
    clips = dataset("clips", tmp_path / "clips", a="one")
    (clips.folder / "b.mp4").hardlink_to(clips.folder / "a.mp4")
    (clips.folder / "c.mp4").symlink_to(clips.folder / "a.mp4")
    [notice] = found(tmp_path, dataset("clips", clips.folder))
    assert notice.fact == "files that are copies of others: 2 (a.mp4 = b.mp4 = c.mp4)"


def test_folders_of_pictures_are_compared_too(tmp_path):
    for take in "abc":
        for number in range(2):
            path = tmp_path / "clips" / take / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("odd" if take == "c" else "one")
    [notice] = found(tmp_path, dataset("clips", tmp_path / "clips"))
    assert notice.fact == "files that are copies of others: 1 (a = b)"


def test_copies_between_datasets_name_both(tmp_path):
    one = dataset("one", tmp_path / "one", a="one", b="two")
    more = dataset("more", tmp_path / "more", c="one", d="six")
    [notice] = found(tmp_path, one, more)
    assert (notice.dataset_id, notice.fact) == (
        "one",
        "files that are copies of others: 1 (one/a.mp4 = more/c.mp4)",
    )


def test_the_same_file_in_two_datasets_is_no_copy(tmp_path):
    small, large = dataset("small", tmp_path / "clips", a="one"), dataset("large", tmp_path / "clips")
    assert found(tmp_path, small, large) == ()
    small, large = dataset("small", tmp_path / "clips", b="one"), dataset("large", tmp_path / "clips")
    [notice] = found(tmp_path, small, large)
    assert (notice.dataset_id, notice.fact) == ("small", "files that are copies of others: 1 (a.mp4 = b.mp4)")


def test_what_is_held_out_and_trained_on_is_told_apart_with_both_datasets(tmp_path):
    clips = dataset("clips", tmp_path / "clips", a="one", b="two")
    test = dataset("test", tmp_path / "test", x="two", y="six")
    assert found(tmp_path, clips, test, held_out=("test",)) == (
        Notice(
            "test",
            "files that are held out and trained on too: 1 (test/x.mp4 = clips/b.mp4)",
            "take them out of clips, or renders show what was learned by heart",
        ),
    )


def test_the_same_file_held_out_and_trained_on_is_told(tmp_path):
    clips, test = dataset("clips", tmp_path / "clips", a="one"), dataset("test", tmp_path / "clips")
    [notice] = found(tmp_path, test, clips, held_out=("test",))
    assert notice.fact == "files that are held out and trained on too: 1 (test/a.mp4 = clips/a.mp4)"


def test_copies_among_held_out_files_are_told_too(tmp_path):
    test = dataset("test", tmp_path / "test", a="one", b="one")
    [notice] = found(tmp_path, test, held_out=("test",))
    assert notice.fact == "files that are copies of others: 1 (a.mp4 = b.mp4)"


def test_only_a_few_are_named(tmp_path):
    names = [f"{group}{copy}" for group in "abcdefg" for copy in range(7)]
    clips = dataset("clips", tmp_path / "clips", **{name: name[0] for name in names})
    [notice] = found(tmp_path, clips)
    assert notice.fact.startswith(
        "files that are copies of others: 42 (a0.mp4 = a1.mp4 = a2.mp4 = a3.mp4 = a4.mp4 = 2 more; b0"
    )
    assert notice.fact.endswith(" = 2 more; 2 more sets)")
    assert "f0" not in notice.fact


def test_hashes_are_remembered_by_the_index_of_each_dataset(tmp_path):
    clips = dataset("clips", tmp_path / "clips", a="one", b="two")
    index = SourceIndex(tmp_path / "cache")
    duplicates([clips], lambda _dataset_id: index)
    index.save()
    assert len((tmp_path / "cache" / "sources.jsonl").read_text().split()) == 2


def test_a_file_that_vanished_is_named(tmp_path):
    clips = dataset("clips", tmp_path / "clips", a="one", b="two")
    (tmp_path / "clips" / "b.mp4").unlink()
    with pytest.raises(DataError, match=r"b\.mp4 cannot be read \(No such file or directory\)"):
        found(tmp_path, clips)
