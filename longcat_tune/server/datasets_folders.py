"""The folders that may become a dataset: what lies in each, as far as names and links say.

Walks inside the workspace only and opens no file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from longcat_tune.server.workspace import Workspace

VIDEO_ENDINGS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"}
)
IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
"""As the tool takes them; a test compares."""
MOST_COUNTED = 20_000
"""Files that are counted below one folder; a person who chooses one needs to know no more."""
MOST_WATCHED = 200_000
"""Files whose changes show."""


@dataclass(frozen=True, slots=True)
class FolderRow:
    """One folder to choose or to open.

    Attributes:
        name: of the folder.
        shown: its path as people see it, which the workspace reads back.
        videos: below it, at any depth.
        images: the same.
        captions: text files, the same.
        more: there are more files than were counted.
    """

    name: str
    shown: str
    videos: int
    images: int
    captions: int
    more: bool


@dataclass(frozen=True, slots=True)
class Place:
    """One folder with those directly in it.

    Attributes:
        here: itself; None where the workspace's roots are listed.
        above: path of the folder above as people see it, empty for the list of roots; None: there is none.
        folders: in it, by name.
    """

    here: FolderRow | None
    above: str | None
    folders: tuple[FolderRow, ...]


def look(workspace: Workspace, at: str) -> Place:
    """List a folder.

    Args:
        workspace: the folders that may be seen.
        at: path as people see it; empty for the roots.

    Raises:
        Refusal: it is no folder inside the workspace.
    """
    if not at and len(workspace.roots) > 1:
        return Place(None, None, tuple(_row(root, workspace) for root in workspace.roots))
    here = workspace.inside(at or ".", kind="folder")
    inside = sorted(_folders(here, workspace), key=lambda path: path.name.casefold())
    return Place(
        _row(here, workspace), _above(here, workspace), tuple(_row(one, workspace) for one in inside)
    )


def signature(folders: Iterable[Path]) -> str:
    """A short name of what lies below some folders, by which a change of any file shows."""
    content = hashlib.sha256()
    for folder in folders:
        for number, entry in enumerate(_files(folder)):
            if number == MOST_WATCHED:
                break
            try:
                status = entry.stat()
            except OSError:
                continue  # gone since it was listed, or a link to nowhere
            content.update(f"{os.fsencode(entry.path)!r} {status.st_size} {status.st_mtime_ns}\n".encode())
    return content.hexdigest()


def _row(folder: Path, workspace: Workspace) -> FolderRow:
    counts = {"video": 0, "image": 0, "text": 0}
    more = False
    for number, entry in enumerate(_files(folder)):
        if number == MOST_COUNTED:
            more = True
            break
        ending = Path(entry.name).suffix.lower()
        if ending in VIDEO_ENDINGS:
            counts["video"] += 1
        elif ending in IMAGE_ENDINGS:
            counts["image"] += 1
        elif ending == ".txt":
            counts["text"] += 1
    shown = workspace.shown(folder)
    return FolderRow(folder.name, shown, counts["video"], counts["image"], counts["text"], more)


def _above(folder: Path, workspace: Workspace) -> str | None:
    if folder in workspace.roots:
        return "" if len(workspace.roots) > 1 else None
    return workspace.shown(folder.parent)


def _folders(folder: Path, workspace: Workspace) -> Iterator[Path]:
    """The folders directly in one, without hidden ones and links that lead out of the workspace."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return  # may not be listed: nothing to choose from
    for entry in entries:
        if entry.name.startswith(".") or not _is_utf8(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)
        elif entry.is_symlink():
            target = _target(entry)
            if target is not None and any(target.is_relative_to(root) for root in workspace.roots):
                yield target


def _target(link: os.DirEntry[str]) -> Path | None:
    """The folder that a link leads to, if it is one."""
    try:
        target = Path(link.path).resolve()
        return target if target.is_dir() else None
    except (OSError, RuntimeError):
        return None  # links in a ring


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Every file below a folder that is not hidden; follows no link to a folder."""
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                visible = sorted(
                    (one for one in entries if not one.name.startswith(".")), key=lambda one: one.name
                )
        except OSError:
            continue  # may not be listed
        for entry in visible:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                yield entry


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
