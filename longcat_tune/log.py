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

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

output = Console(soft_wrap=True)
"""What a command was asked to show, on standard output."""

console = Console(stderr=True, soft_wrap=not sys.stderr.isatty())
logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""How often progress is logged where there is no terminal to draw a bar on."""

NOISY_LIBRARIES = (
    "accelerate",
    "diffusers",
    "httpx",
    "huggingface_hub",
    "peft",
    "torch",
    "transformers",
    "urllib3",
)


def set_up(*, verbose: bool = False) -> None:
    """Send our records to the console, and other libraries' only from warnings up.

    Args:
        verbose: show debug records and Python warnings too.
    """
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)
    if not verbose:
        warnings.simplefilter("ignore")


class _ConsoleHandler(logging.Handler):
    """Prints records above a running bar, unwrapped: a path must stay in one piece."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class Bar:
    """One line of progress; without a terminal it becomes a log line now and then."""

    def __init__(self, description: str, total: int, display: Progress | None) -> None:
        self.description = description
        self.total = total
        self.done = 0
        self.shown = time.monotonic()
        self.display = display
        self.task = display.add_task(description, total=total, note="") if display is not None else None

    def advance(self, note: str = "", *, by: int = 1) -> None:
        """Count finished items and show a short note beside the bar."""
        self.done += by
        if self.display is not None and self.task is not None:
            self.display.update(self.task, completed=self.done, note=note)
        elif self.done == self.total or time.monotonic() - self.shown > SECONDS_BETWEEN_LINES:
            self.shown = time.monotonic()
            logger.info("%s %d/%d %s", self.description, self.done, self.total, note)


@contextmanager
def progress(description: str, total: int, *, done: int = 0) -> Iterator[Bar]:
    """Show a bar with count, elapsed and remaining time while the block runs.

    Args:
        description: what is being worked on.
        total: number of items.
        done: items that were finished before, for a resumed run.
    """
    if not console.is_terminal:
        bar = Bar(description, total, None)
        bar.done = done
        yield bar
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as display:
        bar = Bar(description, total, display)
        bar.advance(by=done)
        yield bar
