"""Fingerprints of a checkpoint's components, by which cached results are found again.

Knows files only; reads no weights into tensors.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

DIGEST_BYTES = 16
BLOCK = 1 << 20
MOST_BLOCKS = 1024


def component_identity(folder: Path, *, suffixes: tuple[str, ...] = (".json", ".safetensors")) -> str:
    """Hash every config and weight file of a component's folder.

    Of files above a gibibyte a thousand places are read, spread over their whole length: a text encoder of
    22 GB then takes a second, and no training leaves that many places unchanged.

    Args:
        folder: such as `vae/` in a checkpoint.
        suffixes: which files count.

    Returns:
        32 hexadecimal digits; the place and the age of the folder do not matter.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for path in sorted(path for path in folder.iterdir() if path.suffix in suffixes):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        stride = max(BLOCK, size // MOST_BLOCKS)
        with path.open("rb") as file:
            for start in range(0, size, stride):
                file.seek(start)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()
