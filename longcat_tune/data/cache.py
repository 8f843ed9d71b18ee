"""Cached latents and text features: safetensors files whose names are hashes of everything that made them.

A changed clip, size, frame choice, crop, caption or encoder gives another name, so a stale file is never
read. A file is there whole or not at all: whoever asks whether it is there looks at its name and size only.
Knows no encoder and no config.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from longcat_tune.data.collecting import uncollected
from longcat_tune.errors import DataError
from longcat_tune.files import write_tensors_atomically
from longcat_tune.types import Bucket, FramePicks, Stamp, TextFeatures

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 2
"""Raised by one whenever the way from a file to its cached tensor changes, so that older files are left."""
LATENTS = "latents"
TEXT = "text"
LATENTS_SUFFIX = f".{LATENTS}.safetensors"
TEXT_SUFFIX = f".{TEXT}.safetensors"
DIGEST_BYTES = 16
ORIGIN = "longcat_tune"
"""The one key of a file's metadata: several come in an order that differs from process to process."""


@dataclass(frozen=True, slots=True)
class LatentJob:
    """One clip or conditioning image to encode.

    Attributes:
        clip_id: dataset id and name, as messages show it.
        source: the clip, image or folder of numbered pictures.
        stamp: of the source when its content was hashed for the name of the file.
        picks: the frames to take, one per frame of the bucket.
        bucket: the size and length it is brought to.
        crop: share of the spare width and height left of the crop and above it.
        source_fps: pictures per second of a folder of them; None for any other kind.
        path: where its latents belong, from `latents_path`.
    """

    clip_id: str
    source: Path
    stamp: Stamp
    picks: FramePicks
    bucket: Bucket
    crop: tuple[float, float]
    source_fps: float | None
    path: Path


@dataclass(frozen=True, slots=True)
class TextJob:
    """One caption to encode.

    Attributes:
        caption: as written; cleaned when it is encoded.
        path: where its features belong, from `text_path`.
    """

    caption: str
    path: Path


Job = TypeVar("Job", LatentJob, TextJob)


def latent_key(
    source: str,
    *,
    picks: FramePicks,
    bucket: Bucket,
    crop: tuple[float, float],
    source_fps: float | None,
    encoder: str,
) -> str:
    """Name the latents of one clip by everything that they depend on.

    Args:
        source: content hash of the file or folder.
        picks: the frames that are taken; the very first frame is the same at any rate.
        bucket: the size and length it is encoded at.
        crop: as in LatentJob.
        source_fps: as in LatentJob.
        encoder: identity of the VAE and what it computes in; the file itself is always bfloat16.
    """
    rates = (picks.framerate, source_fps) if picks.first or picks.count > 1 else ()
    return _hash(
        f"{LATENTS} {SCHEMA} {source} {picks.first} {picks.count} {rates} {bucket.width} {bucket.height} "
        f"{bucket.num_frames} {crop} {encoder}"
    )


def text_key(caption: str, *, encoder: str) -> str:
    """Name the features of one caption by everything that they depend on.

    Args:
        caption: as written. How it is cleaned is part of SCHEMA.
        encoder: identity of the text encoder and its tokenizer, what it computes in, and the features' width.
    """
    return _hash(f"{TEXT} {SCHEMA} {encoder} {caption}")


def latents_path(folder: Path, key: str) -> Path:
    """Where the latents of that key live in a cache folder."""
    return folder / (key + LATENTS_SUFFIX)


def text_path(folder: Path, key: str) -> Path:
    """Where the text features of that key live in a cache folder."""
    return folder / (key + TEXT_SUFFIX)


def latents_sizes(channels: int) -> Callable[[LatentJob], int]:
    """Make the function that tells how many bytes a job's complete file has at least: those of its latents.

    Args:
        channels: of the latents, as the VAE gives them.
    """

    @cache
    def of_bucket(bucket: Bucket) -> int:
        frames, rows, columns = bucket.latent_shape
        return torch.bfloat16.itemsize * channels * frames * rows * columns

    return lambda job: of_bucket(job.bucket)


def by_folder(jobs: Iterable[Job]) -> dict[str, dict[str, Job]]:
    """Sort jobs by folder and file name; of several that share a file, the first stands for all."""
    folders: dict[str, dict[str, Job]] = {}
    for job in jobs:
        folder, _, name = str(job.path).rpartition(os.sep)
        if folder not in folders:
            folders[folder] = {}
        folders[folder].setdefault(name, job)
    return folders


@uncollected()
def unfinished(jobs: Iterable[Job], *, least_bytes: Callable[[Job], int]) -> list[Job]:
    """Select the jobs whose file is missing or too small to be complete, one per file.

    One look at each folder and at the size of each file: 200,000 jobs take under a second.

    Args:
        jobs: what is wanted.
        least_bytes: what a job's complete file has at least.

    Raises:
        DataError: a folder cannot be listed.
    """
    missing: list[Job] = []
    for folder, wanted in by_folder(jobs).items():
        sizes = {name: state.st_size for name, state in files_in(folder, wanted.__contains__)}
        missing += [job for name, job in wanted.items() if sizes.get(name, -1) < least_bytes(job)]
    return missing


def files_in(folder: str | Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, os.stat_result]]:
    """Look at a folder once: names and states of the wanted files; a folder that is not there has none.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if wanted(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DataError(
            f"cache folder {folder} cannot be read ({error.strerror}); change its permissions"
        ) from error
    for entry in found:
        with suppress(FileNotFoundError):  # another process has renamed or deleted it meanwhile
            yield entry.name, entry.stat()


def text_bytes(_: TextJob) -> int:
    """What a complete file of text features has at least: anything, for its length depends on the caption."""
    return 1


def is_there(job: Job, least_bytes: Callable[[Job], int]) -> bool:
    """Whether a job's file is complete, by a look at this one file."""
    try:
        return job.path.stat().st_size >= least_bytes(job)
    except (FileNotFoundError, NotADirectoryError):
        return False


def write_item(path: Path, name: str, tensor: Tensor, origin: Mapping[str, str]) -> None:
    """Write a cached item, complete or not at all.

    Args:
        path: its file.
        name: LATENTS or TEXT.
        tensor: on the CPU.
        origin: what it was made from, for whoever looks at the file.

    Raises:
        UserError: the cache folder cannot be written to.
    """
    about = {"schema": SCHEMA, **origin, "content": content_hash(tensor)}
    write_tensors_atomically(path, {name: tensor}, {ORIGIN: json.dumps(about, ensure_ascii=False)})


def content_hash(tensor: Tensor) -> str:
    """Hash a tensor's bytes, by which a damaged file is told from a whole one."""
    data = tensor.contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(data.data, digest_size=DIGEST_BYTES).hexdigest()


def read_latents(path: Path) -> Tensor:
    """Read latents_CTHW, bfloat16.

    Raises:
        DataError: the file is missing or damaged.
    """
    return _read(path, LATENTS)


def read_text(path: Path) -> TextFeatures:
    """Read the features of one caption.

    Raises:
        DataError: the file is missing or damaged.
    """
    return TextFeatures(_read(path, TEXT))


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cache file {path} is missing or damaged ({error}); "
            "run `longcat-tune cache verify --remove` to find all damaged ones, then the same command again"
        ) from error
    return tensor


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()
