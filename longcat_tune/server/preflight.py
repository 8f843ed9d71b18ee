"""Runs `check` on a config as it is being written: one at a time for each draft, the newest wins.

Knows when a check is ended, and what it prints; nothing of forms or pages.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from longcat_tune.files import explained_disk_errors
from longcat_tune.server.tool import run_tool

CONFIG = "config.json"
TIME_LIMIT = 300.0
"""Seconds: a first look at thousands of clips takes minutes on a slow disk."""
AT_ONCE = 2
"""Checks of all drafts together: each needs 0.5 GB for a few seconds."""
REMEMBERED = 200
"""Drafts whose last result is known."""
SAID_AT_MOST = 4000
"""Letters of what a check says without giving a report."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a check is run.

    Attributes:
        options: more words of its command line.
        environment: more variables.
        busy: whether other jobs have all devices now.
    """

    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    busy: bool = False


ANY = Conditions()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a check.

    Attributes:
        report: what it found out; None when it gave none.
        said: on its standard error, for when there is no report.
        exit_code: of the process; None: it was ended here, because it took too long.
    """

    report: dict[str, Any] | None
    said: str
    exit_code: int | None

    @property
    def passed(self) -> bool:
        """Whether the run can be started."""
        return self.exit_code == 0 and self.report is not None and not self.report.get("problems")


class SupersededError(Exception):
    """A newer check of the same draft has taken this one's place."""


@dataclass
class _Draft:
    """What is known of one draft.

    Attributes:
        asked: how many checks were asked for.
        task: the one under way.
        passed: the content that passed last.
    """

    asked: int = 0
    task: asyncio.Task[Outcome] | None = None
    passed: str | None = None


@dataclass
class Preflights:
    """All checks of a server.

    Attributes:
        command: how the tool is run.
        working_folder: that the checks run in.
        drafts: folder that configs are written to while they are checked.
        time_limit: seconds for each.
    """

    command: Sequence[str]
    working_folder: Path
    drafts: Path
    time_limit: float = TIME_LIMIT
    _drafts: OrderedDict[str, _Draft] = field(default_factory=OrderedDict)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def check(self, draft: str, config: str, *, content: str, conditions: Conditions = ANY) -> Outcome:
        """Check a config; a check of the same draft that is under way is ended.

        Args:
            draft: which page asks.
            config: its text, with absolute paths.
            content: stands for all that the result depends on; `passed` compares it.
            conditions: what it plans for.

        Raises:
            SupersededError: a newer check was asked for.
        """
        known = self._draft(draft)
        known.asked += 1
        known.passed, number = None, known.asked
        await _ended(known.task)
        if known.asked != number:
            raise SupersededError
        task = known.task = asyncio.create_task(self._run(config, conditions))
        try:
            outcome = await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise SupersededError from error
            # Whoever asked has gone; nobody waits for the answer.
            await _ended(task)
            raise
        if known.asked != number:
            raise SupersededError
        if outcome.passed:
            known.passed = content
        return outcome

    def passed(self, draft: str, content: str) -> bool:
        """Whether the last check of a draft was of exactly this content, and found nothing wrong."""
        known = self._drafts.get(draft)
        return known is not None and known.passed == content

    def _draft(self, name: str) -> _Draft:
        known = self._drafts.setdefault(name, _Draft())
        self._drafts.move_to_end(name)
        idle = [one for one, draft in self._drafts.items() if draft.task is None or draft.task.done()]
        for old in idle[: max(0, len(self._drafts) - REMEMBERED)]:
            if old != name:
                del self._drafts[old]
        return known

    async def _run(self, config: str, conditions: Conditions) -> Outcome:
        async with self._places:
            with explained_disk_errors(self.drafts / CONFIG):
                self.drafts.mkdir(parents=True, exist_ok=True)
                folder = TemporaryDirectory(dir=self.drafts, ignore_cleanup_errors=True)
            with folder:
                path = Path(folder.name, CONFIG)
                with explained_disk_errors(path):
                    path.write_text(config, encoding="utf-8")
                return await self._checked(path, conditions)

    async def _checked(self, path: Path, conditions: Conditions) -> Outcome:
        finished = await run_tool(
            [*self.command, "check", "--json", "--config", str(path), *conditions.options],
            folder=self.working_folder,
            time_limit=self.time_limit,
            environment=conditions.environment,
        )
        if finished.exit_code is None:
            return Outcome(None, "", None)
        name, quoted = str(path), json.dumps(str(path))[1:-1]
        said = finished.said.replace(name, CONFIG).strip()
        printed = finished.printed.decode("utf-8", errors="replace")
        return Outcome(_report_in(printed.replace(quoted, CONFIG)), said[-SAID_AT_MOST:], finished.exit_code)


async def _ended(task: asyncio.Task[Outcome] | None) -> None:
    """Cancel a task and wait until its process is gone."""
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task])


def _report_in(printed: str) -> dict[str, Any] | None:
    try:
        report = json.loads(printed)
    except ValueError:
        return None
    return report if isinstance(report, dict) else None
