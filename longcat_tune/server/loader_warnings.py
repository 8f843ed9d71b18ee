"""What the config's loader warns of, for a page instead of the console; knows no files and no requests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident

LOADER = "longcat_tune.config"
_ONE_AT_A_TIME = Lock()


@contextmanager
def loader_warnings() -> Iterator[list[str]]:
    """What the loader warns of while the block runs, in this thread; blocks do not nest."""
    told: list[str] = []
    handler = _Collector(told)
    loader = logging.getLogger(LOADER)
    with _ONE_AT_A_TIME:
        loader.addHandler(handler)
        loader.propagate = False
        try:
            yield told
        finally:
            loader.propagate = True
            loader.removeHandler(handler)


class _Collector(logging.Handler):
    """Keeps the warnings of the thread that made it."""

    def __init__(self, told: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._told, self._thread = told, get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._told.append(record.getMessage())
