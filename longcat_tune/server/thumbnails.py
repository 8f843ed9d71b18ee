"""Thumbnails of folders: made by the command `thumbnails` in the background, read from its index.

Knows the command and what it leaves; nothing of datasets or pages.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from longcat_tune.errors import UserError
from longcat_tune.files import explained_disk_errors
from longcat_tune.server.datasets_folders import signature
from longcat_tune.server.tool import run_tool

SIZE = 320
"""Pixels: twice the width of a card, for sharp screens."""
NAME_DIGITS = 20
CLIP_DIGITS = 16
TIME_LIMIT = 3600.0
"""Seconds; what is made until then is kept, and the next visit goes on."""
SAID_AT_MOST = 500
AT_ONCE = 2
"""Folders at a time, so that a huge one holds up no other; each takes a core, beside a training run."""


@dataclass(frozen=True)
class Pictured:
    """One clip as the index tells of it.

    Attributes:
        name: path below the folder.
        file: the clip.
        kind: video, image or sequence.
        version: by which a change of the clip shows.
        thumbnail: name of the picture; None: not made yet, or the clip cannot be read.
        width: in pixels; 0 where that is not known.
        height: the same.
        seconds: of a video.
        reason: why it cannot be read.
        remedy: what to do about it.
    """

    name: str
    file: Path
    kind: str
    version: int
    thumbnail: str | None
    width: int
    height: int
    seconds: float
    reason: str | None
    remedy: str | None

    @cached_property
    def id(self) -> str:
        """A name for addresses, whatever characters the clip's own has."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:CLIP_DIGITS]


@dataclass(frozen=True)
class Index:
    """What is known of one folder.

    Attributes:
        clips: by name.
        complete: nothing is being made any more.
    """

    clips: tuple[Pictured, ...]
    complete: bool

    @cached_property
    def by_id(self) -> dict[str, Pictured]:
        """The clips by their ids."""
        return {clip.id: clip for clip in self.clips}


@dataclass
class Thumbnails:
    """The thumbnails of all folders of a server.

    Attributes:
        command: how the tool is run.
        store: folder that takes a folder for each.
        time_limit: seconds for each run.
    """

    command: Sequence[str]
    store: Path
    time_limit: float = TIME_LIMIT
    _read: dict[Path, tuple[int, Index]] = field(default_factory=dict)
    _tasks: dict[Path, asyncio.Task[None]] = field(default_factory=dict)
    _seen: dict[Path, str] = field(default_factory=dict)
    _failures: dict[Path, str] = field(default_factory=dict)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    def place(self, folder: Path, *, apart: bool) -> Path:
        """Where the thumbnails of a folder are.

        Args:
            folder: of the clips, resolved.
            apart: numbered pictures are images of their own.
        """
        content = os.fsencode(folder) + (b"\0apart" if apart else b"")
        return self.store / hashlib.sha256(content).hexdigest()[:NAME_DIGITS]

    def index(self, folder: Path, *, apart: bool) -> Index | None:
        """What is there of a folder's thumbnails; None where nothing is yet."""
        return self._at(self.place(folder, apart=apart))

    def _at(self, place: Path) -> Index | None:
        path = place / "index.json"
        try:
            version = path.stat().st_mtime_ns
            known = self._read.get(path)
            if known is None or known[0] != version:
                known = self._read[path] = version, _index(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return known[1]

    def is_running(self, folder: Path, *, apart: bool) -> bool:
        """Whether thumbnails of a folder are being made."""
        return self.place(folder, apart=apart) in self._tasks

    def failure(self, folder: Path, *, apart: bool) -> str | None:
        """What the command said when it last failed on this folder."""
        return self._failures.get(self.place(folder, apart=apart))

    async def start(self, folder: Path, *, apart: bool) -> None:
        """Make what is missing, in the background; nothing where nothing changed since the last time.

        Args:
            folder: of the clips, resolved.
            apart: numbered pictures are images of their own.
        """
        place = self.place(folder, apart=apart)
        now = await asyncio.to_thread(signature, [folder])
        if place in self._tasks or (self._seen.get(place) == now and (place / "index.json").exists()):
            return
        words = [*self.command, "thumbnails", str(folder), "--out", str(place), "--size", str(SIZE)]
        task = asyncio.create_task(self._run([*words, "--apart"] if apart else words, place, now))
        self._tasks[place] = task
        task.add_done_callback(lambda _: self._tasks.pop(place, None))

    async def close(self) -> None:
        """End what is being made."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, words: Sequence[str], place: Path, now: str) -> None:
        try:
            with explained_disk_errors(place):
                await asyncio.to_thread(self.store.mkdir, parents=True, exist_ok=True)
        except UserError as error:
            self._failures[place] = str(error)
            return
        async with self._places:
            finished = await run_tool(words, folder=self.store, time_limit=self.time_limit)
        if finished.exit_code == 0 and self._at(place) is not None:
            self._seen[place] = now
            self._failures.pop(place, None)
        else:
            self._failures[place] = finished.error[:SAID_AT_MOST]


def _index(value: dict[str, Any]) -> Index:
    clips = tuple(
        Pictured(
            name=clip["name"],
            file=Path(clip["file"]),
            kind=clip["kind"],
            version=clip["version"],
            thumbnail=None if clip["thumbnail"] is None else Path(clip["thumbnail"]).name,
            width=clip["width"],
            height=clip["height"],
            seconds=clip["seconds"],
            reason=clip["reason"],
            remedy=clip["remedy"],
        )
        for clip in value["clips"]
    )
    return Index(clips, bool(value["complete"]))
