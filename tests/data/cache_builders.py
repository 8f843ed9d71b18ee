"""Jobs of small clips, and an encoder that takes no time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from longcat_tune.data import cache
from longcat_tune.data.cache import LatentJob
from longcat_tune.data.cache_fill import fill_latents
from longcat_tune.types import Bucket, FramePicks, Stamp

BUCKET = Bucket(64, 64, 5)
SHAPE = (16, 2, 8, 8)
PICKS = FramePicks(0, 5, 30.0)
CENTER = (0.5, 0.5)
PARTS = {"picks": PICKS, "bucket": BUCKET, "crop": CENTER, "source_fps": None, "encoder": "a1 bf16"}
SIZES = cache.latents_sizes(16)


def job(folder: Path, name: str = "a") -> LatentJob:
    path = cache.latents_path(folder, name)
    return LatentJob(f"clips/{name}.mp4", Path(f"{name}.mp4"), Stamp(1, 1), PICKS, BUCKET, CENTER, None, path)


def chunks(_: LatentJob) -> Iterator[torch.Tensor]:
    yield torch.ones(3, 1, 64, 64, dtype=torch.uint8)
    yield torch.ones(3, 4, 64, 64, dtype=torch.uint8)


def encode(given: Iterator[torch.Tensor]) -> torch.Tensor:
    total = sum(int(chunk.sum()) for chunk in given)
    return total / 1000 + torch.arange(16.0 * 2 * 8 * 8).reshape(SHAPE) / 3


def fill(jobs, *, load_chunks=chunks, encode=encode) -> list[LatentJob]:
    done = []
    fill_latents(jobs, load_chunks=load_chunks, encode=encode, on_done=done.append, least_bytes=SIZES)
    return done


def unfinished(jobs) -> list[LatentJob]:
    return cache.unfinished(jobs, least_bytes=SIZES)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))
