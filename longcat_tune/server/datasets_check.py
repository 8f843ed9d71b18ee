"""What `check` says of a data file: run in the background on a small config, kept until something changes.

Knows the report's keys; nothing of forms or pages.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.errors import UserError
from longcat_tune.files import write_json_atomically
from longcat_tune.server.datasets_file import DataFile, folder_of
from longcat_tune.server.datasets_folders import signature
from longcat_tune.server.tool import run_tool
from longcat_tune.server.workspace import Workspace

FRAMERATE = 30.0
"""The run's default."""
TIME_LIMIT = 900.0
"""Seconds: a first look at thousands of clips takes minutes on a slow disk."""
SAID_AT_MOST = 4000
"""Letters of what a check says beside its report."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of one data file at one frame rate.

    Attributes:
        content: names what was checked, so that a change shows; empty: never checked.
        report: of `check --json --clips`; None: it gave none.
        said: on standard error.
    """

    content: str = ""
    report: dict[str, Any] | None = None
    said: str = ""


@dataclass
class DatasetChecks:
    """All checks of data files of a server.

    Attributes:
        workspace: where the files are.
        command: how the tool is run.
        time_limit: seconds for each.
    """

    workspace: Workspace
    command: Sequence[str]
    time_limit: float = TIME_LIMIT
    _running: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _failures: dict[str, str] = field(default_factory=dict)
    _asked: dict[str, str] = field(default_factory=dict)
    _one_by_one: asyncio.Lock = field(default_factory=asyncio.Lock)

    def content(self, data: DataFile, entries: Sequence[DatasetEntry], framerate: float) -> str:
        """A short name of all that a check depends on.

        Args:
            data: the file.
            entries: of it.
            framerate: of the run.
        """
        folders = [folder for entry in entries if (folder := folder_of(entry, self.workspace)) is not None]
        tables = [entry.caption_table.path for entry in entries if entry.caption_table is not None]
        stamps = [_stamp(self.workspace.home / table) for table in tables]
        parts = [data.version, f"{framerate:g}", *stamps, signature(folders)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def last(self, name: str, framerate: float) -> Checked:
        """The newest result, which may be of an earlier content.

        Args:
            name: of the dataset.
            framerate: of the run.
        """
        if (failure := self._failures.get(name)) is not None:
            return Checked(said=failure)
        try:
            kept = json.loads(self._kept(name, framerate).read_bytes())
            return Checked(kept["content"], kept["report"], kept["said"])
        except (OSError, ValueError, KeyError, TypeError):
            return Checked()

    def is_running(self, name: str) -> bool:
        """Whether a check of this dataset is under way."""
        return name in self._running

    def is_of(self, name: str, framerate: float, content: str) -> bool:
        """Whether the newest result, or the one under way, is of this content.

        Args:
            name: of the dataset.
            framerate: of the run.
            content: of the dataset now.
        """
        if name in self._running:
            return self._asked.get(name) == content
        last = self.last(name, framerate)
        return last.content == content and last.report is not None

    def start(self, name: str, framerate: float, content: str) -> None:
        """Check in the background; one that is under way is ended.

        Args:
            name: of the dataset.
            framerate: of the run.
            content: of the result.
        """
        earlier = self._running.get(name)
        if earlier is not None:
            earlier.cancel()
        task = asyncio.create_task(self._check(name, framerate, content))
        self._running[name] = task
        self._asked[name] = content
        self._failures.pop(name, None)
        task.add_done_callback(lambda done: self._forget(name, done))

    async def close(self) -> None:
        """End all checks."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _check(self, name: str, framerate: float, content: str) -> None:
        try:
            await self._run(name, framerate, content)
        except UserError as error:
            self._failures[name] = str(error)

    async def _run(self, name: str, framerate: float, content: str) -> None:
        folder = self._folder(name)
        config = {
            # Buckets are the same for every model, and the miniature fits every machine.
            "model_flavour": "tiny",
            "data_backend_config": str(self.workspace.dataset_file(name)),
            "output_dir": str(folder / "results"),
            "framerate": framerate,
            "max_train_steps": 1,
        }
        # One for each rate: a check that was just ended may still write its own.
        path = folder / f"config-{framerate:g}.json"
        await asyncio.to_thread(write_json_atomically, path, config)
        words = [*self.command, "check", "--json", "--clips", "--config", str(path)]
        async with self._one_by_one:
            finished = await run_tool(words, folder=self.workspace.home, time_limit=self.time_limit)
        kept = {
            "content": content,
            "report": _report(finished.printed),
            "said": finished.said[-SAID_AT_MOST:],
        }
        await asyncio.to_thread(write_json_atomically, self._kept(name, framerate), kept)

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        if self._running.get(name) is task:
            del self._running[name]

    def _folder(self, name: str) -> Path:
        return self.workspace.state / "checks" / name

    def _kept(self, name: str, framerate: float) -> Path:
        return self._folder(name) / f"report-{framerate:g}.json"


def _report(printed: bytes) -> dict[str, Any] | None:
    try:
        report = json.loads(printed)
    except ValueError:
        return None
    return report if isinstance(report, dict) else None


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "absent"
    return f"{status.st_size} {status.st_mtime_ns}"
