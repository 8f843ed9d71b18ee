"""Cached latents and text features: safetensors files whose names are hashes of everything that made them.

A changed clip, size, frame choice, crop, caption or encoder gives another name, so a stale file is never
read. A file is there whole or not at all: whoever asks whether it is there looks at its name and size only.
Knows no encoder and no config: `runs` passes functions in.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from longcat_tune.data.claims import make_once
from longcat_tune.data.collecting import uncollected
from longcat_tune.data.decode_ahead import decode_ahead
from longcat_tune.errors import DataError
from longcat_tune.files import write_tensors_atomically
from longcat_tune.types import Bucket, FramePicks, TextFeatures

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
        picks: the frames to take, one per frame of the bucket.
        bucket: the size and length it is brought to.
        crop: share of the spare width and height left of the crop and above it.
        source_fps: pictures per second of a folder of them; None for any other kind.
        path: where its latents belong, from `latents_path`.
    """

    clip_id: str
    source: Path
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


def fill_latents(
    jobs: Sequence[LatentJob],
    *,
    load_chunks: Callable[[LatentJob], Generator[Tensor, None, None]],
    encode: Callable[[Iterator[Tensor]], Tensor],
    on_done: Callable[[LatentJob], None],
    least_bytes: Callable[[LatentJob], int],
) -> int:
    """Encode clips while the next ones are decoded, and write their latents.

    Stopped at any point it leaves finished files only. Other processes may fill the same folders.

    Args:
        jobs: clips to encode, one per file.
        load_chunks: yields frames_CFHW uint8 of a clip, a few at a time; called in background threads.
        encode: takes them and gives latents_CTHW, normalised.
        on_done: told of each job when its file is there, whoever made it.
        least_bytes: what a job's complete file has at least.

    Returns:
        How many were encoded here.

    Raises:
        DataError: a clip cannot be read, or its latents are not finite.
        UserError: the cache folder cannot be written to.
    """

    def load(job: LatentJob) -> Generator[Tensor, None, None]:
        with _noted(f"while decoding {job.clip_id}"):
            yield from load_chunks(job)

    def make(claimed: Iterable[LatentJob]) -> Generator[LatentJob, None, None]:
        with closing(decode_ahead(claimed, load)) as clips:
            for job, chunks in clips:
                with _noted(f"while encoding {job.clip_id} at {job.bucket.name}"):
                    latents_CTHW = encode(chunks).to("cpu", torch.bfloat16)
                _require_finite(latents_CTHW, job)
                _write(job.path, LATENTS, latents_CTHW, {"clip": job.clip_id, "bucket": job.bucket.name})
                yield job

    return make_once(jobs, is_there=lambda job: _is_there(job, least_bytes), make=make, on_done=on_done)


def fill_text(
    jobs: Sequence[TextJob],
    *,
    encode: Callable[[Sequence[str]], Sequence[TextFeatures]],
    on_done: Callable[[TextJob], None],
) -> int:
    """Encode captions and write their features in the dtype that the encoder gives.

    Args:
        jobs: captions to encode, one per file.
        encode: gives one TextFeatures per caption.
        on_done: told of each job when its file is there, whoever made it.

    Returns:
        How many were encoded here.

    Raises:
        UserError: the cache folder cannot be written to.
    """

    def make(claimed: Iterable[TextJob]) -> Generator[TextJob, None, None]:
        for job in claimed:
            [features] = encode([job.caption])
            _write(job.path, TEXT, features.text_LD.cpu(), {"caption": job.caption})
            yield job

    return make_once(jobs, is_there=lambda job: _is_there(job, text_bytes), make=make, on_done=on_done)


def text_bytes(_: TextJob) -> int:
    """What a complete file of text features has at least: anything, for its length depends on the caption."""
    return 1


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


def _write(path: Path, name: str, tensor: Tensor, origin: Mapping[str, str]) -> None:
    about = {"schema": SCHEMA, **origin, "content": content_hash(tensor)}
    write_tensors_atomically(path, {name: tensor}, {ORIGIN: json.dumps(about, ensure_ascii=False)})


def content_hash(tensor: Tensor) -> str:
    """Hash a tensor's bytes, by which a damaged file is told from a whole one."""
    data = tensor.contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(data.data, digest_size=DIGEST_BYTES).hexdigest()


def _is_there(job: Job, least_bytes: Callable[[Job], int]) -> bool:
    try:
        return job.path.stat().st_size >= least_bytes(job)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _require_finite(latents_CTHW: Tensor, job: LatentJob) -> None:
    if not latents_CTHW.isfinite().all():
        raise DataError(
            f"the latents of {job.clip_id} are not finite: the VAE overflowed; set vae_dtype to fp32"
        )


@contextmanager
def _noted(note: str) -> Iterator[None]:
    """Add to the traceback of a bug or a full device which clip it was."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        error.add_note(note)
        raise


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()
