"""What lies below a dataset's folder: names, sizes and times of its files, which of them it takes, and links.

Opens no file and follows no link to a folder; knows nothing of captions or of what files hold.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from longcat_tune.config.datasets import DatasetType
from longcat_tune.data.images import IMAGE_EXTENSIONS
from longcat_tune.data.refusals import REPLACE, UnusableFileError
from longcat_tune.data.sequences import numbered_pictures
from longcat_tune.data.sources import stamp_of_pictures
from longcat_tune.types import Stamp

Kind = Literal["video", "image", "sequence"]

VIDEO_EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
)  # fmt: skip
KINDS: dict[str, Kind] = {
    **dict.fromkeys(VIDEO_EXTENSIONS, "video"),
    **dict.fromkeys(IMAGE_EXTENSIONS, "image"),
}
TEXTS_AND_TABLES = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".md", ".yaml", ".yml", ".srt", ".vtt",
)  # fmt: skip
COMPANIONS = frozenset({*TEXTS_AND_TABLES, ".safetensors", ".part"})
"""Endings of texts, tables and our own caches, which may lie beside clips without being clips."""
TAKEN: dict[DatasetType, tuple[Kind, ...]] = {
    "video": ("video", "sequence"),
    "image": ("image",),
    "conditioning": ("image",),
    "eval": ("video", "image"),
}
"""Only under `video` are the pictures of a folder one clip; elsewhere each is on its own."""

COPY_HERE = "copy the file there or make its folder a dataset"
UNSEEN = Stamp(0, 0)


class FoundFile(NamedTuple):
    """One file that the dataset takes; a folder of numbered pictures counts as one.

    Attributes:
        name: its path below the dataset's folder, with forward slashes.
        kind: how it is read.
        stamp: its size and time.
        trouble: why it cannot be used, if that shows without opening it.
    """

    name: str
    kind: Kind
    stamp: Stamp
    trouble: UnusableFileError | None = None


@dataclass(slots=True)
class Listing:
    """Everything below one folder that is not hidden.

    Attributes:
        base: where the names start: the folder itself; the one above, when the folder is itself a clip.
        files: those the dataset takes, by name.
        others: names of videos and images that it does not take.
        unknown: names of files that are neither, nor texts or tables beside them.
        linked_folders: names of links to folders.
        unreadable: folders that cannot be listed, with the system's words.
    """

    base: Path
    files: list[FoundFile] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    linked_folders: list[str] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)


def list_files(folder: Path, dataset_type: DatasetType) -> Listing:
    """Walk through a folder and all below it, without what is hidden.

    Args:
        folder: of the dataset.
        dataset_type: decides which files are taken.
    """
    walk = _Walk(folder, TAKEN[dataset_type])
    while walk.waiting:
        walk.visit(walk.waiting.pop())
    found = walk.found
    # As if folders were compared name by name: the slash counts as the lowest character.
    found.files.sort(key=lambda file: file.name.replace("/", "\0"))
    found.others.sort()
    found.unknown.sort()
    found.linked_folders.sort()
    return found


class _Walk:
    """The state of one walk; prefixes are relative folders that end in a slash, or empty."""

    def __init__(self, folder: Path, taken: Sequence[Kind]) -> None:
        self.folder = folder
        self.taken = taken
        self.found = Listing(base=folder)
        self.waiting = [""]

    @cached_property
    def real_folder(self) -> Path:
        """The folder with all links resolved; what a link inside leads to must lie below."""
        return self.folder.resolve()

    def visit(self, prefix: str) -> None:
        """Take what lies directly in one folder, and note the folders in it."""
        try:
            with os.scandir(self.folder / prefix) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            self.found.unreadable.append((self.folder / printable(prefix), error.strerror or str(error)))
            return
        if "sequence" in self.taken and self._take_sequence(prefix, visible):
            return
        for entry in visible:
            self._take(prefix + entry.name, entry)

    def _take(self, name: str, entry: os.DirEntry[str]) -> None:
        if _is_folder(entry):
            if entry.is_symlink():
                self.found.linked_folders.append(name)
            else:
                self.waiting.append(f"{name}/")
            return
        _, dot, ending = entry.name.rpartition(".")
        kind = KINDS.get(dot + ending.lower())
        if kind is None:
            if dot + ending.lower() not in COMPANIONS:
                self.found.unknown.append(name)
        elif kind in self.taken:
            self.found.files.append(self._file(name, kind, entry))
        else:
            self.found.others.append(name)

    def _file(self, name: str, kind: Kind, entry: os.DirEntry[str]) -> FoundFile:
        try:
            return FoundFile(name, kind, self._checked_stamp(name, entry))
        except UnusableFileError as error:
            return FoundFile(name, kind, UNSEEN, error)

    def _take_sequence(self, prefix: str, visible: Sequence[os.DirEntry[str]]) -> bool:
        """Take a whole folder as one clip, if its files are numbered pictures and nothing else."""
        if not numbered_pictures([entry.name for entry in visible]) or any(map(_is_folder, visible)):
            return False
        name = prefix.removesuffix("/")
        if not name:
            whole = self.folder.absolute()
            name, self.found.base = whole.name, whole.parent
        try:
            looks = [(entry.name, *self._checked_stamp(prefix + entry.name, entry)) for entry in visible]
            file = FoundFile(name, "sequence", stamp_of_pictures(looks))
        except UnusableFileError as error:
            file = FoundFile(name, "sequence", UNSEEN, error)
        self.found.files.append(file)
        return True

    def _checked_stamp(self, name: str, entry: os.DirEntry[str]) -> Stamp:
        """Size and time of a file.

        Raises:
            UnusableFileError: something speaks against it that shows without opening it.
        """
        try:
            name.encode()
            status = entry.stat()
            is_file = entry.is_file()
        except UnicodeEncodeError as error:
            path = self.folder / printable(name)
            raise UnusableFileError(path, "has a name that is not valid UTF-8", "rename it") from error
        except OSError as error:
            what = "is a link that leads to no file" if entry.is_symlink() else "cannot be looked at"
            reason = f"{what} ({error.strerror})"
            raise UnusableFileError(self.folder / name, reason, REPLACE) from error
        if entry.is_symlink() and not (self.folder / name).resolve().is_relative_to(self.real_folder):
            reason = "is a link that leads out of instance_data_dir"
            raise UnusableFileError(self.folder / name, reason, COPY_HERE)
        if not is_file:
            raise UnusableFileError(self.folder / name, "is no regular file", REPLACE)
        if not status.st_size:
            raise UnusableFileError(self.folder / name, "is empty (0 bytes)", REPLACE)
        return Stamp(status.st_size, status.st_mtime_ns)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link in a circle leads nowhere


def without_extension(name: str, *, kind: Kind) -> str:
    """A name by which a clip's caption and start image are found; a folder's has no extension to leave out.

    Args:
        name: of a file or folder, or its path. Text is 20 times faster than a Path.
        kind: what it is.
    """
    return name if kind == "sequence" else name.rpartition(".")[0]


def printable(name: str) -> str:
    """A file name for a message, also where it is not valid UTF-8."""
    return os.fsencode(name).decode(errors="replace")
