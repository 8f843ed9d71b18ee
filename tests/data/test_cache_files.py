"""What lies in cache folders is told by name; what is damaged, by reading all of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longcat_tune.data import cache, cache_files
from longcat_tune.data.cache import LatentJob, TextJob
from longcat_tune.data.cache_files import FolderContents
from longcat_tune.data.cache_fill import fill_latents, fill_text
from longcat_tune.files import write_atomically
from longcat_tune.types import Bucket, FramePicks, Stamp, TextFeatures

BUCKET = Bucket(64, 64, 5)
SHAPE = (16, 2, 8, 8)
KEY = "0123456789abcdef" * 2


def write_latents(folder: Path, tensor: torch.Tensor) -> Path:
    path = cache.latents_path(folder, KEY)
    picks = FramePicks(0, 5, 30.0)
    job = LatentJob("clips/a.mp4", Path("a.mp4"), Stamp(1, 1), picks, BUCKET, (0.5, 0.5), None, path)
    fill_latents(
        [job],
        load_chunks=lambda _: iter_chunks(),
        encode=lambda chunks: tensor,
        on_done=lambda _: None,
        least_bytes=lambda _: 1,
    )
    return path


def iter_chunks():
    yield torch.zeros(3, 1, 64, 64, dtype=torch.uint8)


def write_text(folder: Path, text_LD: torch.Tensor) -> Path:
    job = TextJob("a cat", cache.text_path(folder, KEY))
    fill_text([job], encode=lambda _: [TextFeatures(text_LD)], on_done=lambda _: None)
    return job.path


def flipped(path: Path, *, place: int) -> Path:
    """The same file with one bit of one byte changed."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    return path


def latents_fault(path: Path) -> str | None:
    return cache_files.latents_fault(path, BUCKET, channels=16)


def text_fault(path: Path) -> str | None:
    return cache_files.text_fault(path, width=32)


def test_what_was_written_has_no_fault(tmp_path):
    assert latents_fault(write_latents(tmp_path, torch.randn(SHAPE))) is None
    for dtype in (torch.bfloat16, torch.float32):
        path = write_text(tmp_path, torch.randn(7, 32, dtype=dtype))
        assert text_fault(path) is None
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: flipped(path, place=-1), "does not hold the bytes that were written"),
        (lambda path: flipped(path, place=2), "cannot be read ("),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read ("),
        (lambda path: path.write_bytes(b""), "cannot be read ("),
        (lambda path: path.unlink(), "cannot be read ("),
        (lambda path: save_file({"latents": torch.zeros(SHAPE)}, path), "cannot be read ("),
        (lambda path: save_file({"text": torch.zeros(3)}, path), "cannot be read ("),
    ],
)
def test_damage_is_found_wherever_it_is(tmp_path, harm, reason):
    path = write_latents(tmp_path, torch.randn(SHAPE))
    harm(path)
    fault = latents_fault(path)
    assert fault is not None
    assert fault.startswith(reason)


def test_values_that_are_not_finite_are_a_fault(tmp_path):
    tensor = torch.full(SHAPE, float("nan")).bfloat16()
    about = {cache.ORIGIN: json.dumps({"content": cache.content_hash(tensor)})}
    path = tmp_path / "a.latents.safetensors"
    save_file({"latents": tensor}, path, metadata=about)
    assert latents_fault(path) == "holds values that are not finite"


def test_latents_of_another_shape_are_a_fault(tmp_path):
    path = write_latents(tmp_path, torch.randn(16, 3, 8, 8))
    assert latents_fault(path) == "holds bfloat16 16x3x8x8 instead of bfloat16 16x2x8x8 for 64x64@5"


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.zeros(7, 48), "float32 7x48"),
        (torch.zeros(513, 32), "float32 513x32"),
        (torch.zeros(0, 32), "float32 0x32"),
        (torch.zeros(32), "float32 32"),
        (torch.zeros(7, 32, dtype=torch.int64), "int64 7x32"),
    ],
)
def test_text_features_of_another_kind_are_a_fault(tmp_path, tensor, found):
    assert (
        text_fault(write_text(tmp_path, tensor)) == f"holds {found} instead of 1 to 512 tokens of 32 values"
    )


def test_only_our_files_are_counted_and_only_old_unfinished_ones_are_left_over(tmp_path):
    ours = [f"{KEY}.latents.safetensors", f"{KEY}.text.safetensors"]
    parts: list[str] = []
    for _ in range(2):
        write_atomically(tmp_path / ours[0], lambda part: (parts.append(part.name), part.write_bytes(b"123")))
    old, young = parts
    others = ["lora.safetensors", "claims.lock", "sources.jsonl", f"{KEY}.safetensors", "notes.part"]
    for name in (*ours, old, young, *others):
        (tmp_path / name).write_bytes(b"123")
    for name in (old, "notes.part"):
        os.utime(tmp_path / name, (time.time() - 25 * 3600,) * 2)
    contents = FolderContents.of(tmp_path)
    assert contents.sizes == dict.fromkeys(ours, 3)
    assert contents.leftovers == {old: 3}
    cache_files.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*ours, young, *others}


def test_a_folder_that_does_not_exist_holds_nothing(tmp_path):
    assert FolderContents.of(tmp_path / "none") == FolderContents(tmp_path / "none", {}, {})
    cache_files.remove_leftovers(tmp_path / "none")
