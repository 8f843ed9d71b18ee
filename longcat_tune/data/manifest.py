"""What a dataset's folder holds: every clip or image, examined, and a reason for each that cannot be used.

Opens files only to learn their size, length and captions; knows nothing of buckets or training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longcat_tune.config.datasets import DatasetEntry, DatasetType
from longcat_tune.data.captions import captions_of
from longcat_tune.data.images import IMAGE_EXTENSIONS, is_image, read_image
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.video import VideoBackend, probe
from longcat_tune.errors import DataError
from longcat_tune.log import progress
from longcat_tune.types import ClipRecord, Notice, Refusal

logger = logging.getLogger(__name__)

VIDEO_EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
)  # fmt: skip
EXTENSIONS: dict[DatasetType, tuple[str, ...]] = {
    "video": VIDEO_EXTENSIONS,
    "image": IMAGE_EXTENSIONS,
    "conditioning": IMAGE_EXTENSIONS,
    "eval": VIDEO_EXTENSIONS + IMAGE_EXTENSIONS,
}

WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of one dataset.

    Attributes:
        dataset_id: the entry they belong to.
        folder: instance_data_dir.
        records: usable files, by name.
        refusals: the others.
        found: how many files there are; none is left out of the two lists.
        faults: what keeps the dataset as a whole from being used.
        notices: what its owner should know about the files.
    """

    dataset_id: str
    folder: Path
    records: tuple[ClipRecord, ...]
    refusals: tuple[Refusal, ...]
    found: int
    faults: tuple[Refusal, ...] = ()
    notices: tuple[Notice, ...] = ()


def scan(entry: DatasetEntry, *, backend: VideoBackend = "auto") -> Manifest:
    """Examine every file below instance_data_dir that the dataset type takes.

    Hidden files and folders are left out, and links to folders, which are named in the log.

    Args:
        entry: the dataset.
        backend: who will read the videos; what it cannot read is refused.

    Raises:
        DataError: the folder is missing, unreadable, or holds no such file.
        ConfigError: decord is asked for and not installed.
    """
    folder = entry.instance_data_dir
    extensions = EXTENSIONS[entry.dataset_type]
    every = sorted(_files(entry.id, folder))
    paths = [path for path in every if path.suffix.lower() in extensions]
    if not paths:
        raise DataError(
            f"{entry.id}: instance_data_dir ({folder}) holds no {entry.dataset_type} file; "
            f"put some there ({', '.join(extensions)}) or correct the path"
        )
    others = sum(path.suffix.lower() in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS for path in every) - len(paths)
    if others:
        logger.info(
            "%s: %d files are left alone, because dataset_type %s does not take their kind",
            entry.id,
            others,
            entry.dataset_type,
        )

    def examined(path: Path) -> ClipRecord | Refusal:
        try:
            return _examine(path, entry, backend)
        except UnusableFileError as error:
            return error.refusal(entry.id)

    results = []
    with ThreadPoolExecutor(WORKERS) as pool, progress(f"Examining {entry.id}", len(paths)) as bar:
        for result in pool.map(examined, paths):
            results.append(result)
            bar.advance()
    return Manifest(
        dataset_id=entry.id,
        folder=folder,
        records=tuple(result for result in results if isinstance(result, ClipRecord)),
        refusals=tuple(result for result in results if isinstance(result, Refusal)),
        found=len(paths),
    )


def _files(dataset_id: str, folder: Path) -> Iterator[Path]:
    """Every file that is not hidden."""

    def stop(error: OSError) -> None:
        raise DataError(
            f"{dataset_id}: instance_data_dir ({folder}) cannot be read: {error.filename} "
            f"({error.strerror}); create it, correct the path, or change its permissions"
        ) from error

    for parent, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if (Path(parent) / name).is_symlink():
                logger.warning(
                    "%s: %s is a link to a folder and is not followed; its files are not used",
                    dataset_id,
                    Path(parent) / name,
                )
        yield from (Path(parent) / name for name in files if not name.startswith("."))


def _examine(path: Path, entry: DatasetEntry, backend: VideoBackend) -> ClipRecord:
    _require_inside(path, entry.instance_data_dir)
    name = path.relative_to(entry.instance_data_dir).as_posix()
    captions = () if entry.dataset_type == "conditioning" else captions_of(path, entry)
    kind: Literal["video", "image"]
    if is_image(path):
        kind, frames, seconds = "image", 1, 0.0
        _, height, width, _ = read_image(path).shape
    else:
        info = probe(path, backend=backend)
        kind, frames, seconds = "video", info.num_frames, info.seconds
        width, height = info.width, info.height
    return ClipRecord(
        dataset_id=entry.id,
        path=path,
        name=name,
        kind=kind,
        captions=captions,
        width=width,
        height=height,
        source_frames=frames,
        seconds=seconds,
    )


def _require_inside(path: Path, folder: Path) -> None:
    """Refuse links that lead elsewhere, and names that cannot be written down."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        printable = Path(os.fsencode(path).decode(errors="replace"))
        raise UnusableFileError(printable, "has a name that is not valid UTF-8", "rename it") from error
    if not path.resolve().is_relative_to(folder.resolve()):
        reason = "is a link that leads out of instance_data_dir"
        raise UnusableFileError(path, reason, "copy the file there or make its folder a dataset")
