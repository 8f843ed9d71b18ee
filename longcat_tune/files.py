"""Files that are either complete or absent: written beside their place, flushed to disk, renamed.

Knows how a full or protected disk is told to the user; knows nothing of what the files mean.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from longcat_tune.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PART_SUFFIX = ".part"
"""Ends the name of every unfinished file; what still carries it after a power cut may be deleted."""
PART_BYTES = 4
"""Of chance in that name. Process ids are no better: containers that share a volume have the same ones."""

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR}
PROTECTED = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Create or replace a file in one step; its folder is made when missing.

    Args:
        path: where the file belongs.
        write: fills the file at the path it is given, in the same folder. What it raises passes through, and
            neither the unfinished file nor a changed `path` is left behind.

    Raises:
        UserError: the folder cannot be written to or the disk is full.
    """
    part = path.with_name(f"{path.name}.{token_hex(PART_BYTES)}{PART_SUFFIX}")
    with explained_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            flush_to_disk(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        flush_to_disk(path.parent)


def write_json_atomically(path: Path, value: Any) -> None:
    """Create or replace an indented JSON file.

    Raises:
        UserError: as `write_atomically`.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_tensors_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Create or replace a safetensors file.

    Raises:
        UserError: as `write_atomically`.
    """
    from safetensors.torch import save

    # Not save_file: safetensors 0.8 makes its own temporary file, whose mode 0600 stays on the result, so
    # that nobody else could read a shared cache; and a full disk comes as an error of its own kind.
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=dict(metadata))
    write_atomically(path, lambda part: part.write_bytes(data))


def require_writable(folder: Path) -> None:
    """Make the folder if needed and prove that a file can be put there, before long work counts on it.

    Raises:
        UserError: the folder cannot be written to or the disk is full.
    """
    probe = folder / f"probe.{token_hex(PART_BYTES)}{PART_SUFFIX}"
    with explained_disk_errors(probe):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"1")
        probe.unlink()


@contextmanager
def explained_disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing `path` into a message with a remedy.

    Raises:
        UserError: in place of any OSError of the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            rule, remedy = "the disk is full", "free some space there or choose a folder on another disk"
        elif error.errno in PROTECTED:
            rule, remedy = "the folder is not writable", "change its permissions or choose another folder"
        elif error.errno in IN_THE_WAY:
            rule, remedy = "a file stands where a folder must be", "remove it or choose another folder"
        else:
            rule, remedy = "the system refused", "check that the folder exists and its disk is healthy"
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path.name} in {path.parent}: {rule} ({reason}); {remedy}") from error


def flush_to_disk(path: Path) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
