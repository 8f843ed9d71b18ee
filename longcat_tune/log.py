"""Logging and progress for the console; set up once, by cli.

Rooms log through `logging.getLogger(__name__)` and show long work with `progress`; nothing here writes to a
file.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

output = Console(soft_wrap=True)
"""What a command was asked to show, on standard output."""

console = Console(stderr=True, soft_wrap=not sys.stderr.isatty())
logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""How often progress is logged where there is no terminal to draw a bar on."""

SECONDS_BETWEEN_UPDATES = 0.1
"""How often a bar takes in new numbers: drawing them takes longer than many an item."""

NOISY_LIBRARIES = (
    "accelerate",
    "diffusers",
    "httpx",
    "huggingface_hub",
    "peft",
    "torch",
    "torchao",
    "transformers",
    "urllib3",
)


def set_up(*, verbose: bool = False, quiet: bool = False) -> None:
    """Send our records to the console, and other libraries' only from warnings up.

    Args:
        verbose: show debug records and Python warnings too.
        quiet: show nothing, as in all but the first process of a run; its error still ends it.
    """
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)
    console.quiet = quiet
    if not verbose:
        warnings.simplefilter("ignore")


class _ConsoleHandler(logging.Handler):
    """Prints records above a running bar, unwrapped: a path must stay in one piece."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class _RateColumn(ProgressColumn):
    """Items per second, over the last half minute."""

    def render(self, task: Task) -> Text:
        """Draw the column."""
        return Text("" if task.speed is None else _per_second(task.speed))


class Bar:
    """One line of progress; without a terminal it becomes a log line now and then.

    Args:
        description: what is being worked on.
        total: number of items.
        display: draws the bar on a terminal.
        done: items that were finished before.
        only_long: as in `progress`.
    """

    def __init__(
        self,
        description: str,
        total: int,
        display: Progress | None,
        *,
        done: int = 0,
        only_long: bool = False,
    ) -> None:
        self.description = description
        self.total = total
        self.done = self.done_before = done
        self.began = self.shown = time.monotonic()
        self.display = display
        self.only_long = only_long
        self.pause = SECONDS_BETWEEN_LINES if display is None else SECONDS_BETWEEN_UPDATES
        self.task = (
            display.add_task(description, total=total, completed=done, note="")
            if display is not None
            else None
        )

    def advance(self, note: str = "", *, by: int = 1) -> None:
        """Count finished items and show a short note beside the bar."""
        self.done += by
        now = time.monotonic()
        if now - self.shown < self.pause and (self.done < self.total or self.only_long):
            return
        self.shown = now
        if self.display is not None and self.task is not None:
            self.display.update(self.task, completed=self.done, note=note)
        else:
            logger.info("%s %d/%d, %s %s", self.description, self.done, self.total, self._pace(), note)

    def _pace(self) -> str:
        """Items per second since the start, and how long the rest takes at this rate."""
        rate = (self.done - self.done_before) / max(self.shown - self.began, 1e-6)
        if self.done == self.total:
            return _per_second(rate)
        return f"{_per_second(rate)}, {timedelta(seconds=round((self.total - self.done) / rate))} left"


def _per_second(rate: float) -> str:
    return f"{rate:.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


@contextmanager
def progress(description: str, total: int, *, done: int = 0, only_long: bool = False) -> Iterator[Bar]:
    """Show a bar with count, rate, elapsed and remaining time while the block runs.

    Args:
        description: what is being worked on.
        total: number of items.
        done: items that were finished before, for a resumed run.
        only_long: leave no trace of work that mostly takes no time: no line unless it takes long, and no bar
            once it is done.
    """
    if not console.is_terminal:
        yield Bar(description, total, None, done=done, only_long=only_long)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=only_long) as display:
        yield Bar(description, total, display, done=done, only_long=only_long)
