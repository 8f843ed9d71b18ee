"""What a page of a run is told as it happens: new events, lines of the log, its state; as server-sent events.

Knows what is sent, not what it means. The id of a message is the offset in events.jsonl that it ends at: a
browser that lost the connection names the last one it has, and is sent what follows.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from longcat_tune.server.events import EventsReader
from longcat_tune.server.jobs_record import TAIL_BYTES
from longcat_tune.server.replies import Refusal
from longcat_tune.server.runs import Run, RunBook, RunStatus

MOST_STREAMS = 64
"""At a time, over all runs and visitors."""
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_TAKE = 30.0
"""A client that takes nothing for so long is given up."""

FIRST_LINES = 300
"""Of a log that a page begins with."""

Redact = Callable[[str], str]
"""Takes what must not be seen out of a text."""


class Streams:
    """Counts the streams that are open.

    Args:
        most: that may be.
    """

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self.most = most
        self.open = 0

    def take(self) -> None:
        """Take a place.

        Raises:
            Refusal: there is none left.
        """
        if self.open >= self.most:
            raise Refusal(429, "runs.too_many_streams", most=self.most)
        self.open += 1

    def give_back(self) -> None:
        """Free a place."""
        self.open -= 1


class RunStream(EventSourceResponse):
    """A reply that holds a place among the streams for as long as somebody listens.

    Args:
        watch: what is told.
        streams: where a place was taken for it.
    """

    def __init__(self, watch: RunWatch, streams: Streams) -> None:
        super().__init__(_told(watch), send_timeout=SECONDS_TO_TAKE)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the listener goes away or the server ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.give_back()


class RunWatch:
    """What is new about a run since the last look.

    Args:
        book: that has the run.
        run: which.
        reader: the place in its events where the listener is.
        redact: passes over every text that was printed or written by the run.

    Attributes:
        ended: whether there will be no more.
        more: whether there is more to tell at once.
    """

    def __init__(self, book: RunBook, run: Run, reader: EventsReader, redact: Redact) -> None:
        self._book = book
        self._run = run
        self._reader = reader
        self._redact = redact
        self._state: dict[str, Any] = {}
        self._log: LogReader | None = None
        self.ended = False
        self.more = False

    def look(self) -> list[ServerSentEvent]:
        """Messages of what is new; a message `reset` is the last one."""
        # Before the events: when the end is told, all that came before it is told too.
        status = self._book.status(self._run)
        read = self._reader.read()
        self.ended, self.more = read.replaced, read.more
        if read.replaced:
            # Curves of the old one are on the screen: they have to be drawn anew.
            return [_message("reset", {})]
        messages = []
        for event in read.events:
            event.pop("traceback", None)
        if read.events:
            messages.append(_message("events", self._redacted(list(read.events)), read.offset))
        return messages if read.more else messages + self._new_lines(status) + self._new_state(status)

    def _new_lines(self, status: RunStatus) -> list[ServerSentEvent]:
        if status.job is None:
            return []
        if self._log is None or self._log.path != status.job.log:
            self._log = LogReader(status.job.log)
        lines = self._log.read()
        return [_message("log", self._redacted(lines))] if lines else []

    def _new_state(self, status: RunStatus) -> list[ServerSentEvent]:
        job = "" if status.job is None else status.job.id
        state = {"state": status.state, "place": status.place, "job": job}
        if state == self._state:
            return []
        self._state = state
        return [_message("state", state)]

    def _redacted(self, value: Any) -> Any:
        return redacted(value, self._redact)


class LogReader:
    """A place in a log that grows; gives whole lines.

    Args:
        path: of the log, which may be missing yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset: int | None = None

    def read(self) -> dict[str, Any] | None:
        """What is new: `text`, and whether it is the `first`, so that what is shown goes; None: nothing."""
        try:
            file = self.path.open("rb")
        except OSError:
            return None
        with file:
            size = file.seek(0, os.SEEK_END)
            # Also when it prints more than anybody reads: its end is what counts.
            first = self._offset is None or not 0 <= size - self._offset <= TAIL_BYTES
            offset = max(0, size - TAIL_BYTES) if first or self._offset is None else self._offset
            file.seek(offset)
            data = file.read(size - offset)
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            return None
        self._offset = offset + len(whole)
        lines = whole.decode("utf-8", errors="replace").splitlines(keepends=True)
        return {"text": "".join(lines[-FIRST_LINES:] if first else lines), "first": first}


async def _told(watch: RunWatch) -> AsyncIterator[ServerSentEvent]:
    while not watch.ended:
        for message in await asyncio.to_thread(watch.look):
            yield message
        if not watch.more:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def _message(kind: str, value: Any, place: int | None = None) -> ServerSentEvent:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return ServerSentEvent(data, event=kind, id=None if place is None else str(place))


def redacted(value: Any, redact: Redact) -> Any:
    """The same value with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redacted(one, redact) for key, one in value.items()}
    return [redacted(one, redact) for one in value] if isinstance(value, list) else value
