"""Cached latents and text features: safetensors files whose names are hashes of everything that made them.

A changed clip, size, frame choice, caption or encoder gives another name, so a stale file is never read.
Knows no encoder and no config: `runs` passes functions in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from longcat_tune.data.prefetch import mapped_ahead
from longcat_tune.errors import DataError
from longcat_tune.files import write_json_atomically, write_tensors_atomically
from longcat_tune.types import Bucket, FramePicks, TextFeatures

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 2
"""Raised by one whenever the way from a file to its cached tensor changes, so that older files are left."""
LATENTS = "latents"
TEXT = "text"


@dataclass(frozen=True, slots=True)
class LatentJob:
    """One clip or conditioning image to encode.

    Attributes:
        clip_id: dataset id and name, as messages show it.
        source: the clip or image.
        picks: the frames to take, one per frame of the bucket.
        bucket: the size and length it is brought to.
        path: where its latents belong, from `latents_path`.
    """

    clip_id: str
    source: Path
    picks: FramePicks
    bucket: Bucket
    path: Path


@dataclass(frozen=True, slots=True)
class TextJob:
    """One caption to encode.

    Attributes:
        caption: cleaned, as the encoder gets it.
        path: where its features belong, from `text_path`.
    """

    caption: str
    path: Path


Job = TypeVar("Job", LatentJob, TextJob)


def latent_key(source: str, *, picks: FramePicks, bucket: Bucket, crop: str, vae: str, precision: str) -> str:
    """Name the latents of one clip by everything that they depend on.

    Args:
        source: content hash of the file, from `SourceHashes`.
        picks: the frames that are taken.
        bucket: the size and length it is encoded at.
        crop: where the frame is cut, as the data file says it.
        vae: identity of the encoder.
        precision: what the encoder computes in; the file itself is always bfloat16.
    """
    frames = [picks.first, picks.count, picks.framerate]
    return _hash([LATENTS, SCHEMA, source, frames, bucket.name, crop, vae, precision])


def text_key(caption: str, *, encoder: str, precision: str) -> str:
    """Name the features of one caption by everything that they depend on.

    Args:
        caption: cleaned, as the encoder gets it.
        encoder: identity of the text encoder and its tokenizer.
        precision: what the encoder computes in.
    """
    return _hash([TEXT, SCHEMA, caption, encoder, precision])


def latents_path(folder: Path, key: str) -> Path:
    """Where the latents of that key live in a cache folder."""
    return folder / f"{key}.{LATENTS}.safetensors"


def text_path(folder: Path, key: str) -> Path:
    """Where the text features of that key live in a cache folder."""
    return folder / f"{key}.{TEXT}.safetensors"


class SourceHashes:
    """Content hashes of clips, remembered in the cache folder so that a second run opens no clip.

    A hash is taken again when the file's size or modification time changed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sources.json"
        self.known = self._remembered()
        self.changed = False

    def of(self, source: Path) -> str:
        """Return the content hash of a file.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            stat = source.stat()
            name, stamp = str(source.resolve()), [stat.st_size, stat.st_mtime_ns]
            entry = self.known.get(name)
            if entry is not None and entry[:2] == stamp:
                return str(entry[2])
            with source.open("rb") as file:
                digest = hashlib.file_digest(file, _blake2b).hexdigest()
        except OSError as error:
            raise DataError(
                f"{source} cannot be read ({error.strerror}); restore it or remove it from the dataset"
            ) from error
        self.known[name] = [*stamp, digest]
        self.changed = True
        return digest

    def save(self) -> None:
        """Remember what was hashed since the last save.

        Raises:
            UserError: the cache folder cannot be written to.
        """
        if self.changed:
            write_json_atomically(self.path, self.known)
            self.changed = False

    def _remembered(self) -> dict[str, list[int | str]]:
        """Size, modification time in nanoseconds and content hash by absolute path."""
        try:
            known: dict[str, list[int | str]] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # only a memory: without it the files are hashed again
        return known


def is_complete(path: Path) -> bool:
    """Whether a cached file exists and is as long as its header says; no tensor is read."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def unfinished(jobs: Iterable[Job]) -> list[Job]:
    """Select the jobs whose file is missing or cut short; of several that share a file, one."""
    by_path = {job.path: job for job in jobs}
    return [job for path, job in by_path.items() if not is_complete(path)]


def fill_latents(
    jobs: Iterable[LatentJob],
    *,
    load_pixels: Callable[[LatentJob], Tensor],
    encode: Callable[[Tensor], Tensor],
    on_done: Callable[[LatentJob], None],
) -> None:
    """Encode clips and write their latents, decoding the next clip in the background.

    Stopped at any point it leaves finished files only.

    Args:
        jobs: clips to encode.
        load_pixels: gives pixels_CFHW in [-1, 1]; called in a background thread.
        encode: gives latents_CTHW, normalised.
        on_done: told after each file is written.

    Raises:
        DataError: a clip cannot be read, or its latents are not finite.
        UserError: the cache folder cannot be written to.
    """

    def load(job: LatentJob) -> tuple[LatentJob, Tensor]:
        with _noted(f"while decoding {job.clip_id}"):
            return job, load_pixels(job)

    with closing(mapped_ahead(load, jobs)) as loaded:
        for job, pixels_CFHW in loaded:
            with _noted(f"while encoding {job.clip_id} at {job.bucket.name}"):
                latents_CTHW = encode(pixels_CFHW).to("cpu", torch.bfloat16)
            if not latents_CTHW.isfinite().all():
                raise DataError(
                    f"the latents of {job.clip_id} are not finite: the VAE overflowed; set vae_dtype to fp32"
                )
            metadata = {"schema": str(SCHEMA), "clip": job.clip_id, "bucket": job.bucket.name}
            write_tensors_atomically(job.path, {LATENTS: latents_CTHW}, metadata)
            on_done(job)


def fill_text(
    jobs: Iterable[TextJob],
    *,
    encode: Callable[[Sequence[str]], Sequence[TextFeatures]],
    on_done: Callable[[TextJob], None],
) -> None:
    """Encode captions and write their features in the dtype that the encoder gives.

    Args:
        jobs: captions to encode.
        encode: gives one TextFeatures per caption.
        on_done: told after each file is written.

    Raises:
        UserError: the cache folder cannot be written to.
    """
    for job in jobs:
        [features] = encode([job.caption])
        metadata = {"schema": str(SCHEMA), "caption": job.caption}
        write_tensors_atomically(job.path, {TEXT: features.text_LD.cpu()}, metadata)
        on_done(job)


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
            "run `longcat-tune cache-latents` again: it writes what is missing and keeps the rest"
        ) from error
    return tensor


@contextmanager
def _noted(note: str) -> Iterator[None]:
    """Add to the traceback of a bug or a full device which clip it was."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        error.add_note(note)
        raise


def _blake2b() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _hash(parts: list[object]) -> str:
    """Hash a list by its JSON, whose quoting keeps neighbours apart."""
    digest = _blake2b()
    digest.update(json.dumps(parts).encode())
    return digest.hexdigest()
