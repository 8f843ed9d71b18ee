"""What lies in cache folders: which files are cached items, which are unfinished, and which are damaged.

Knows the files by their names and contents; what a run needs of them is in `cache`.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from longcat_tune.data.cache import (
    DIGEST_BYTES,
    LATENTS,
    LATENTS_SUFFIX,
    ORIGIN,
    TEXT,
    TEXT_SUFFIX,
    content_hash,
    files_in,
)
from longcat_tune.files import PART_SUFFIX, explained_disk_errors
from longcat_tune.types import TEXT_TOKENS, Bucket

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = "|".join(map(re.escape, (LATENTS_SUFFIX, TEXT_SUFFIX)))
OUR_NAME = re.compile(rf"[0-9a-f]{{{2 * DIGEST_BYTES}}}({SUFFIXES})(\.[0-9a-f]+{re.escape(PART_SUFFIX)})?")
"""A key, what it is, and, while it is being written, what tells its writer from others."""
LEFT_AFTER_SECONDS = 24 * 3600.0
"""An unfinished file that nobody has written to for so long is that of a process that was killed."""


@dataclass(frozen=True, slots=True)
class FolderContents:
    """The files of one cache folder that are ours.

    Attributes:
        folder: the folder; it need not exist.
        sizes: bytes of every cached item by its file name.
        leftovers: unfinished files of killed processes, and their bytes.
    """

    folder: Path
    sizes: dict[str, int]
    leftovers: dict[str, int]

    @classmethod
    def of(cls, folder: Path) -> FolderContents:
        """Look at a folder once; no file is opened.

        Raises:
            DataError: the folder cannot be listed.
        """
        sizes: dict[str, int] = {}
        leftovers: dict[str, int] = {}
        before = time.time() - LEFT_AFTER_SECONDS
        for name, state in files_in(folder, _is_ours):
            if not name.endswith(PART_SUFFIX):
                sizes[name] = state.st_size
            elif state.st_mtime < before:
                leftovers[name] = state.st_size
        return cls(folder, sizes, leftovers)


def remove_leftovers(folder: Path) -> None:
    """Delete the unfinished files of killed processes.

    Raises:
        UserError: the folder cannot be read or written to.
    """
    for name in FolderContents.of(folder).leftovers:
        remove(folder / name)


def remove(path: Path) -> None:
    """Delete a cached file, which another process may have done already.

    Raises:
        UserError: the folder cannot be written to.
    """
    with explained_disk_errors(path):
        path.unlink(missing_ok=True)


def latents_fault(path: Path, bucket: Bucket, *, channels: int) -> str | None:
    """Read cached latents and say what is wrong with them; None when nothing is.

    Args:
        path: the file.
        bucket: what they were encoded at.
        channels: that the VAE gives.
    """
    tensor, fault = _examined(path, LATENTS)
    if tensor is None:
        return fault
    expected = (channels, *bucket.latent_shape)
    if tensor.dtype != torch.bfloat16 or tensor.shape != expected:
        return f"holds {_described(tensor)} instead of bfloat16 {_sides(expected)} for {bucket.name}"
    return None


def text_fault(path: Path, *, width: int) -> str | None:
    """Read cached text features and say what is wrong with them; None when nothing is.

    Args:
        path: the file.
        width: of the features.
    """
    tensor, fault = _examined(path, TEXT)
    if tensor is None:
        return fault
    fits = tensor.ndim == 2 and 0 < len(tensor) <= TEXT_TOKENS and tensor.shape[1] == width
    if not fits or not tensor.is_floating_point():
        return f"holds {_described(tensor)} instead of 1 to {TEXT_TOKENS} tokens of {width} values"
    return None


def _is_ours(name: str) -> bool:
    return OUR_NAME.fullmatch(name) is not None


def _examined(path: Path, name: str) -> tuple[Tensor | None, str]:
    """The tensor of a file, unless its bytes are not those that were written, or are no finite numbers."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            written = json.loads(file.metadata()[ORIGIN])["content"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        return None, f"cannot be read ({error})"
    if written != content_hash(tensor):
        return None, "does not hold the bytes that were written"
    if not tensor.isfinite().all():
        return None, "holds values that are not finite"
    return tensor, ""


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {_sides(tuple(tensor.shape))}"


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
