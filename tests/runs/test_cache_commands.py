"""What `cache status`, `verify`, `prune` and `decode` say and do, on caches that the command filled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from longcat_tune.cli import main
from longcat_tune.data.video import probe
from longcat_tune.runs.cache import cache_latents
from tests.builders import make_clips, make_run, video_entry

UNNEEDED = f"{'ab' * 16}.latents.safetensors"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three clips and full caches, to be copied."""
    folder = tmp_path_factory.mktemp("filled")
    make_clips(folder / "clips", 3, frames=21)
    entry = video_entry(folder / "clips", video={"num_frames": 9, "clip_selection": "random"})
    cache_latents(make_run(folder, [entry]), config_dir=folder)
    return folder


@pytest.fixture
def run(filled: Path, tmp_path: Path) -> Path:
    """A copy whose run has the same clips and its own caches."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    make_run(tmp_path, json.loads((tmp_path / "data.json").read_text().replace(str(filled), str(tmp_path))))
    return tmp_path


def command(run: Path, *words: str) -> int:
    return main(["cache", *words, "--config", str(run / "config.json")])


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def report(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    command(run, *words, "--json")
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def latents(run: Path) -> list[Path]:
    return sorted((run / "out" / "cache" / "vae" / "clips").glob("*.latents.safetensors"))


def test_status_counts_what_is_there_needed_missing_and_not_needed(run, capsys):
    files = latents(run)
    sizes = sum(path.stat().st_size for path in files[1:])
    files[0].unlink()
    (files[0].parent / UNNEEDED).write_bytes(b"123")
    text, clips = report(run, capsys, "status")["folders"]
    assert text["folder"] == str(run / "out" / "cache" / "text")
    assert (text["files"], text["needed"], text["have"], text["missing"], text["not_needed"]) == (
        4,
        4,
        4,
        0,
        0,
    )
    assert clips == {
        "folder": str(run / "out" / "cache" / "vae" / "clips"),
        "files": len(files),
        "bytes": sizes + 3,
        "needed": len(files),
        "have": len(files) - 1,
        "missing": 1,
        "not_needed": 1,
        "not_needed_bytes": 3,
    }
    assert command(run, "status") == 0
    head, _, row, says = printed(capsys)
    assert head.split() == ["files", "size", "needed", "have", "missing", "not", "needed", "folder"]
    assert row.split()[0] == str(len(files))
    assert row.split()[-1] == clips["folder"]
    assert says == "missing in all: 1; train encodes them first"


def test_status_says_when_clips_that_cannot_be_used_distort_the_picture(run, capsys):
    (run / "clips" / "clip-1.mp4").write_bytes(b"")
    answer = report(run, capsys, "status")
    assert answer["problems"] == 1
    assert answer["folders"][1]["not_needed"] > 0
    assert command(run, "status") == 0
    assert printed(capsys)[-1] == (
        "problems of the datasets: 1; `longcat-tune check` lists them. What is cached of clips that cannot "
        "be used counts as not needed"
    )


def test_verify_reads_whole_caches(run, capsys):
    assert command(run, "verify") == 0
    assert printed(capsys) == [f"{len(latents(run)) + 4} files read, 0 not encoded yet, 0 damaged"]


def test_verify_names_damaged_files_and_removes_them_only_when_told(run, capsys):
    count, (flipped, cut, gone, *_) = len(latents(run)) + 4, latents(run)
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    assert command(run, "verify") == 1
    shown = capsys.readouterr()
    *damages, says = shown.out.splitlines()
    flip_line, cut_line = sorted(damages, key=lambda line: str(cut) in line)
    assert flip_line == f"damaged {flipped} does not hold the bytes that were written"
    assert cut_line.startswith(f"damaged {cut} cannot be read (")
    assert says == f"{count - 1} files read, 1 not encoded yet, 2 damaged"
    assert shown.err.endswith(
        f"error: 2 of {count - 1} cached files are damaged; `longcat-tune cache verify --remove` deletes "
        "them, and the next run encodes them again\n"
    )
    answer = report(run, capsys, "verify", "--remove")
    assert {one["path"] for one in answer["damaged"]} == {str(flipped), str(cut)}
    assert (answer["read"], answer["missing"], answer["removed"]) == (count - 1, 1, True)
    assert not flipped.exists()
    assert not cut.exists()
    assert command(run, "verify") == 0


def test_prune_deletes_what_is_not_needed_only_after_yes(run, capsys):
    folder = latents(run)[0].parent
    before = set((run / "out").rglob("*"))
    (folder / UNNEEDED).write_bytes(b"123")
    (run / "out" / "cache" / "vae" / "earlier").mkdir()
    earlier = run / "out" / "cache" / "vae" / "earlier" / UNNEEDED
    earlier.write_bytes(bytes(2048))
    (folder / "notes.txt").write_text("not ours")
    assert command(run, "prune") == 0
    *counts, says = printed(capsys)
    assert counts == [f"{folder}: 1 files, 3 B", f"{earlier.parent}: 1 files, 2 KiB"]
    assert says == (
        "this config does not need these 2 files; nothing is deleted without --yes. Other configs that share "
        "the folders may need them, and would encode them again"
    )
    assert (folder / UNNEEDED).exists()
    assert command(run, "prune", "--yes") == 0
    assert printed(capsys)[-1] == "2 files deleted"
    assert set((run / "out").rglob("*")) == before | {folder / "notes.txt", earlier.parent}
    assert command(run, "prune", "--yes") == 0
    assert printed(capsys) == ["this config needs every file of its caches"]


def test_a_folder_that_is_written_in_two_ways_is_one(run, capsys, monkeypatch):
    monkeypatch.chdir(run)
    absolute = str(run / "out" / "cache" / "vae" / "clips")
    data = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps([entry | {"cache_dir_vae": absolute} for entry in data]))
    before = latents(run)
    assert command(run, "prune", "--yes", "--output_dir", "out") == 0
    assert printed(capsys) == ["this config needs every file of its caches"]
    assert latents(run) == before


def test_prune_spares_everything_while_a_clip_cannot_be_used(run, capsys):
    (run / "clips" / "clip-1.mp4").write_bytes(b"")
    before = latents(run)
    assert command(run, "prune", "--yes") == 1
    assert "clip-1.mp4" in capsys.readouterr().err
    assert latents(run) == before


def test_decode_shows_a_clip_by_its_id_and_by_its_file(run, capsys):
    assert command(run, "decode") == 0
    assert printed(capsys) == ["clips to decode:", *(f"clips/clip-{number}.mp4" for number in range(3))]
    assert command(run, "decode", "clips/clip-1.mp4") == 0
    shown = run / "out" / "decoded" / "clips-clip-1-mp4.mp4"
    assert printed(capsys) == [str(shown)]
    info = probe(shown)
    assert (info.width, info.height, info.num_frames, info.fps) == (64, 64, 9, 15)
    assert command(run, "decode", str(latents(run)[0]), "--out", str(run / "shown.mp4")) == 0
    assert probe(run / "shown.mp4").num_frames == 9


def test_a_clip_that_is_unknown_or_not_encoded_is_told(run, capsys):
    assert command(run, "decode", "clips/clip-7.mp4") == 2
    told = (
        "error: CLIP (clips/clip-7.mp4) must be the id of a clip or a *.latents.safetensors file; the nearest"
    )
    assert told in capsys.readouterr().err
    for path in latents(run):
        path.unlink()
    assert command(run, "decode", "clips/clip-0.mp4") == 1
    assert capsys.readouterr().err.rstrip().endswith("is missing); run `longcat-tune cache-latents`")
