"""Fingerprints of a checkpoint's components, by which cached results are found again.

Knows files only; reads no weights into tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

DIGEST_BYTES = 16
BLOCK = 1 << 20
WHOLE_UP_TO = 1 << 30
SAMPLES, SAMPLE = 1024, 1 << 16


def file_hash(path: Path) -> str:
    """Hash a config or weight file.

    Of files above a gibibyte a thousand places of 64 KiB are read, spread over their whole length: 320 MiB
    for a text encoder of 22 GB in five shards, and no training leaves that many places unchanged.
    """
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=DIGEST_BYTES)
    stride, length = (BLOCK, BLOCK) if size <= WHOLE_UP_TO else (size // SAMPLES, SAMPLE)
    with path.open("rb") as file:
        for start in range(0, size, stride):
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()


def component_identity(
    folder: Path,
    *,
    suffixes: tuple[str, ...] = (".json", ".safetensors"),
    hash_of: Callable[[Path], str] = file_hash,
) -> str:
    """Hash every config and weight file of a component's folder.

    Args:
        folder: such as `vae/` in a checkpoint.
        suffixes: which files count.
        hash_of: gives a file's `file_hash`, perhaps from memory.

    Returns:
        32 hexadecimal digits; the place and the age of the folder do not matter.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for path in sorted(path for path in folder.iterdir() if path.suffix in suffixes):
        digest.update(f"{path.name} {path.stat().st_size} {hash_of(path)} ".encode())
    return digest.hexdigest()
