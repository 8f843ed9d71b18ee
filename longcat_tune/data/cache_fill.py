"""Fills caches: clips are decoded ahead and encoded, captions encoded, each item once among all processes.

Knows no encoder and no config: `runs` passes functions in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import torch

from longcat_tune.data.cache import LATENTS, TEXT, LatentJob, TextJob, is_there, text_bytes, write_item
from longcat_tune.data.claims import make_once
from longcat_tune.data.decode_ahead import decode_ahead
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.errors import DataError
from longcat_tune.types import TextFeatures

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


def fill_latents(
    jobs: Sequence[LatentJob],
    *,
    load_chunks: Callable[[LatentJob], Generator[Tensor, None, None]],
    encode: Callable[[Iterator[Tensor]], Tensor],
    on_done: Callable[[LatentJob], None],
    least_bytes: Callable[[LatentJob], int],
) -> int:
    """Encode clips while the next ones are decoded, and write their latents.

    Stopped at any point it leaves finished files only. Other processes may fill the same folders. A clip that
    turns out to be unusable keeps no other from being encoded: it is told at once, and again at the end.

    Args:
        jobs: clips to encode, one per file.
        load_chunks: yields frames_CFHW uint8 of a clip, a few at a time; called in background threads.
        encode: takes them and gives latents_CTHW, normalised.
        on_done: told of each job when it is done with, whoever encoded it.
        least_bytes: what a job's complete file has at least.

    Returns:
        How many were encoded here.

    Raises:
        DataError: clips cannot be read, or latents are not finite.
        UserError: the cache folder cannot be written to.
    """

    def load(job: LatentJob) -> Generator[Tensor, None, None]:
        with _noted(f"while decoding {job.clip_id}"):
            yield from load_chunks(job)

    def make_one(job: LatentJob, chunks: Iterator[Tensor]) -> None:
        with _noted(f"while encoding {job.clip_id} at {job.bucket.name}"):
            latents_CTHW = encode(chunks).to("cpu", torch.bfloat16)
        _require_finite(latents_CTHW, job)
        write_item(job.path, LATENTS, latents_CTHW, {"clip": job.clip_id, "bucket": job.bucket.name})

    def make(claimed: Iterable[LatentJob]) -> Generator[LatentJob, None, None]:
        with closing(decode_ahead(claimed, load)) as clips:
            for job, chunks in clips:
                try:
                    make_one(job, chunks)
                except UnusableFileError as error:
                    logger.warning("%s; going on with the other clips", error)
                    unusable.append(error)
                yield job

    unusable: list[UnusableFileError] = []
    done_here = make_once(jobs, is_there=lambda job: is_there(job, least_bytes), make=make, on_done=on_done)
    if unusable:
        # Of a clip with several windows each has failed.
        lines = dict.fromkeys(map(str, unusable))
        raise DataError(
            "\n  ".join([f"{len(lines)} of the clips cannot be encoded; all others are:", *lines])
        )
    return done_here


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
            write_item(job.path, TEXT, features.text_LD.cpu(), {"caption": job.caption})
            yield job

    return make_once(jobs, is_there=lambda job: is_there(job, text_bytes), make=make, on_done=on_done)


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
