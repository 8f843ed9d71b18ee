"""What a run is trained on, as hashes, by which a resumed run tells that clips or captions are others now.

Reads no file: the names of cached files are hashes of all that made them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from longcat_tune.types import TrainingSet

DIGEST_BYTES = 8


def content_hashes(training: Sequence[TrainingSet]) -> dict[str, str]:
    """Hash the content of every dataset, apart from the order it comes in.

    Args:
        training: the cached datasets.

    Returns:
        `latents of ID` (a clip, its frames, size or crop, a start image, the VAE) and `captions of ID` (a
        caption, the text encoder), as a table of changes names them.
    """
    hashes = {}
    for one in training:
        hashes[f"latents of {one.dataset_id}"] = _hash(_latents(one))
        hashes[f"captions of {one.dataset_id}"] = _hash(
            path for sample in one.samples for path in sample.text_paths
        )
    return hashes


def _latents(one: TrainingSet) -> Iterator[Path]:
    for sample in one.samples:
        yield from sample.latents_paths
        if sample.cond_latents_path is not None:
            yield sample.cond_latents_path


def _hash(paths: Iterable[Path]) -> str:
    # The names alone: a cache that moved to another folder holds the same.
    names = " ".join([path.name for path in paths])
    return hashlib.blake2b(names.encode(), digest_size=DIGEST_BYTES).hexdigest()
