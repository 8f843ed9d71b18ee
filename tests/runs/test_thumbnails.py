"""`thumbnails` makes one picture per clip, tells what it cannot read, and goes on where it stopped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longcat_tune.cli import main
from tests.media_builders import cut_off, number_of, write_clip, write_image


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    write_clip(folder / "deep" / "ä b.mp4", frames=21, size=(128, 96))
    write_image(folder / "still.png", size=(400, 100))
    for number in (1, 2, 3):
        write_image(folder / "walk" / f"{number:04}.png")
    (folder / "deep" / "ä b.txt").write_text("a caption")
    (folder / ".hidden.mp4").write_bytes(b"x")
    return folder


def made(clips: Path, *words: str) -> list[dict[str, Any]]:
    out = clips.parent / "out"
    assert main(["thumbnails", str(clips), "--out", str(out), *words]) == 0
    index = json.loads((out / "index.json").read_text())
    assert index["complete"] is True
    lines: list[dict[str, Any]] = index["clips"]
    return lines


def picture(clips: Path, line: dict[str, Any]) -> Image.Image:
    return Image.open(clips.parent / "out" / line["thumbnail"]).convert("RGB")


def test_every_clip_has_a_picture_of_its_middle(clips):
    lines = made(clips, "--size", "64")
    assert [(line["name"], line["kind"]) for line in lines] == [
        ("deep/ä b.mp4", "video"),
        ("still.png", "image"),
        ("walk", "sequence"),
    ]
    assert all(re.fullmatch(r"[0-9a-f]{32}\.jpg", line["thumbnail"]) for line in lines)
    assert [picture(clips, line).size for line in lines] == [(64, 48), (64, 16), (64, 48)]
    assert [(line["width"], line["height"]) for line in lines] == [(128, 96), (400, 100), (64, 48)]
    assert lines[0]["seconds"] == pytest.approx(0.7)
    made(clips, "--size", "256")
    import numpy as np

    assert number_of(np.asarray(picture(clips, lines[0]))) == 10


def test_numbered_pictures_may_be_images_of_their_own(clips):
    names = [line["name"] for line in made(clips, "--apart")]
    assert names == ["deep/ä b.mp4", "still.png", "walk/0001.png", "walk/0002.png", "walk/0003.png"]


def test_unreadable_files_are_told_and_the_others_made(clips, capsys):
    cut_off(clips / "deep" / "ä b.mp4", share=0.5)
    (clips / "empty.png").touch()
    broken, empty, still, _ = made(clips)
    assert broken["thumbnail"] is empty["thumbnail"] is None
    assert broken["reason"]
    assert broken["remedy"]
    assert empty["reason"] == "is empty (0 bytes)"
    assert still["thumbnail"]
    assert "(2 new), 2 unreadable" in capsys.readouterr().out


def test_a_link_that_leads_out_is_not_read(clips, tmp_path):
    secret = write_image(tmp_path / "elsewhere" / "secret.png")
    (clips / "linked.png").symlink_to(secret)
    linked = {line["name"]: line for line in made(clips)}["linked.png"]
    assert linked["thumbnail"] is None
    assert linked["reason"] == "is a link that leads out of instance_data_dir"


def test_a_second_run_makes_only_what_is_missing_or_changed(clips, capsys):
    first = made(clips)
    out = clips.parent / "out"
    kept, lost = out / first[0]["thumbnail"], out / first[2]["thumbnail"]
    inode = kept.stat().st_ino
    lost.unlink()
    write_image(clips / "still.png", size=(100, 100))
    capsys.readouterr()
    second = made(clips)
    assert "(2 new)" in capsys.readouterr().out
    assert kept.stat().st_ino == inode
    assert lost.is_file()
    assert (second[1]["width"], second[1]["height"]) == (100, 100)


def test_thumbnails_of_clips_that_are_gone_are_removed_and_nothing_else(clips):
    still = made(clips)[1]
    out = clips.parent / "out"
    (out / "note.jpg").write_bytes(b"mine")
    (clips / "still.png").unlink()
    made(clips)
    assert not (out / still["thumbnail"]).exists()
    assert (out / "note.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("text", ["{", "[]", '{"size": 256, "clips": [3]}', '{"size": 256, "clips": [{}]}'])
def test_a_damaged_index_is_made_again(clips, text):
    made(clips)
    (clips.parent / "out" / "index.json").write_text(text)
    assert all(line["thumbnail"] for line in made(clips))


def test_thumbnails_never_lie_where_they_would_be_clips(clips, capsys):
    assert main(["thumbnails", str(clips), "--out", str(clips / "small")]) == 2
    assert "must not lie in" in capsys.readouterr().err
    assert not (clips / "small").exists()
    assert main(["thumbnails", str(clips), "--out", str(clips / ".small")]) == 0


def test_a_folder_that_is_not_there_is_an_error(tmp_path, capsys):
    assert main(["thumbnails", str(tmp_path / "gone"), "--out", str(tmp_path / "out")]) == 1
    assert "cannot be read as a folder" in capsys.readouterr().err
