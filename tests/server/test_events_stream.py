"""Streams of events as a browser takes them: the app is asked as a server would ask it, without a socket."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from starlette.types import Message

from longcat_tune.server.app import create_app
from longcat_tune.server.events import EventsReader
from longcat_tune.server.events_stream import FIRST_LINES, MOST_STREAMS, LogReader
from tests.server.stand_in_jobs import COMMAND, LIMIT, make_run, trains, wait_until
from tests.server.test_runs import started, write_events
from tests.server.web import make_settings

OURS = {"host": "127.0.0.1:8001", "sec-fetch-site": "same-origin"}


@dataclass
class Listener:
    """A browser with an open stream."""

    status: int = 0
    body: bytes = b""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")

    @property
    def messages(self) -> list[tuple[str, str, Any]]:
        """Kind, id and value of each whole message."""
        found = []
        for block in self.body.decode().split("\r\n\r\n")[:-1]:
            lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "data" in lines:
                found.append((lines["event"], lines.get("id", ""), json.loads(lines["data"])))
        return found

    @property
    def steps(self) -> list[int]:
        events = [event for kind, _, value in self.messages if kind == "events" for event in value]
        return [event["step"] for event in events if event["event"] == "step"]

    def last(self, kind: str) -> Any:
        return next((value for name, _, value in reversed(self.messages) if name == kind), None)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(app: Any, target: str, headers: dict[str, str] | None = None) -> AsyncIterator[Listener]:
    """A stream that is open while the block runs."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in {**OURS, **(headers or {})}.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8001),
    }
    listener = Listener()
    task = asyncio.create_task(app(scope, listener.receive, listener.send))
    await until(lambda: listener.status or task.done())
    try:
        yield listener
    finally:
        listener.gone.set()
        await asyncio.wait_for(task, LIMIT)


def app_of(home: Path, **changes: Any) -> Any:
    return create_app(make_settings(home, command=COMMAND, **changes))


def test_what_is_there_comes_first_and_then_what_happens(tmp_path):
    make_run(tmp_path)
    path = write_events(tmp_path, "one", *started(3))

    async def follow() -> None:
        async with listening(app_of(tmp_path), "/runs/one/events") as listener:
            await until(lambda: listener.steps == [1, 2, 3])
            with path.open("a") as file:
                file.write('{"event": "step", "st')
                file.flush()
                await until(lambda: listener.last("state"))
                file.write('ep": 4}\n')
            await until(lambda: listener.steps == [1, 2, 3, 4])
            kind, place, _ = next(one for one in reversed(listener.messages) if one[0] == "events")
            assert (kind, place) == ("events", str(path.stat().st_size))

    asyncio.run(follow())


def test_a_browser_that_comes_back_gets_what_it_has_not_had(tmp_path):
    make_run(tmp_path)
    path = write_events(tmp_path, "one", *started(3))
    reader = EventsReader(path)
    reader.read()
    write_events(tmp_path, "one", {"event": "step", "step": 4})

    async def follow() -> None:
        app = app_of(tmp_path)
        asked = f"/runs/one/events?after={reader.offset}&identity={reader.identity}"
        async with listening(app, asked) as listener:
            await until(lambda: listener.steps == [4])
            seen = next(place for kind, place, _ in listener.messages if kind == "events")
        write_events(tmp_path, "one", {"event": "step", "step": 5})
        # The address is still the first one: the header counts.
        async with listening(app, asked, {"last-event-id": seen}) as listener:
            await until(lambda: listener.steps == [5])

    asyncio.run(follow())


def test_a_file_in_the_place_of_another_ends_the_stream_with_a_word(tmp_path):
    make_run(tmp_path)
    path = write_events(tmp_path, "one", *started(3))

    async def follow() -> None:
        app = app_of(tmp_path)
        async with listening(app, "/runs/one/events") as listener:
            await until(lambda: listener.steps == [1, 2, 3])
            path.unlink()
            write_events(tmp_path, "one", *started(1, max_steps=77))
            await until(lambda: listener.messages[-1][0] == "reset")
        async with listening(app, "/runs/one/events?identity=another&after=0") as listener:
            await until(lambda: listener.messages and listener.messages[-1][0] == "reset")
        assert app.state.streams.open == 0

    asyncio.run(follow())


def test_many_events_come_in_few_messages(tmp_path):
    make_run(tmp_path)
    write_events(tmp_path, "one", *started(10_000))

    async def follow() -> None:
        async with listening(app_of(tmp_path), "/runs/one/events") as listener:
            await until(lambda: len(listener.steps) == 10_000)
            assert listener.steps == list(range(1, 10_001))
            assert len([kind for kind, _, _ in listener.messages if kind == "events"]) < 20

    asyncio.run(follow())


def test_so_many_may_listen_and_no_more_until_one_goes(tmp_path):
    make_run(tmp_path)
    app = app_of(tmp_path)

    async def crowd() -> None:
        gates = [asyncio.Event() for _ in range(200)]
        answers: list[int] = []

        async def listen(gate: asyncio.Event) -> None:
            async with listening(app, "/runs/one/events", {"accept": "application/json"}) as listener:
                answers.append(listener.status)
                await gate.wait()

        tasks = [asyncio.create_task(listen(gate)) for gate in gates]
        await until(lambda: len(answers) == 200)
        assert sorted(answers) == [200] * MOST_STREAMS + [429] * (200 - MOST_STREAMS)
        assert app.state.streams.open == MOST_STREAMS
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks)
        assert app.state.streams.open == 0
        async with listening(app, "/runs/one/events") as listener:
            assert listener.status == 200

    asyncio.run(crowd())


def test_a_place_that_is_none_is_refused(tmp_path):
    make_run(tmp_path)

    async def ask() -> None:
        app = app_of(tmp_path)
        for query, headers in (
            ("after=-1", {}),
            ("after=x", {}),
            (f"after={10**30}", {}),
            (f"identity={'x' * 100}", {}),
            ("", {"last-event-id": "x"}),
            ("", {"last-event-id": "-5"}),
        ):
            async with listening(app, f"/runs/one/events?{query}", headers) as listener:
                assert listener.status == 422, (query, headers)
        assert app.state.streams.open == 0

    asyncio.run(ask())


def test_state_and_log_of_the_job_are_told_up_to_its_end(tmp_path):
    make_run(tmp_path, steps=5)

    async def follow() -> None:
        app = app_of(tmp_path)
        async with listening(app, "/runs/one/events") as listener:
            await until(lambda: listener.last("state") == {"state": "new", "place": None, "job": ""})
            run = app.state.runs.get("one")
            job = app.state.runs.start(run)
            await until(lambda: listener.last("state") == {"state": "queued", "place": 1, "job": job.id})
            app.state.jobs.start_due()
            await until(lambda: listener.last("state")["state"] == "finished")
            assert listener.steps == [1, 2, 3, 4, 5]
            printed = "".join(value["text"] for kind, _, value in listener.messages if kind == "log")
            assert printed.splitlines()[-1] == "done"
            assert printed.count("step 3\n") == 1

    asyncio.run(follow())


def test_from_another_machine_no_path_of_this_one_is_heard(tmp_path):
    make_run(tmp_path)
    secret = "/srv/secret/place"
    failed = {"event": "render_failed", "step": 1, "message": f'no "{secret}"', "traceback": secret}
    write_events(tmp_path, "one", *started(1), failed)

    async def follow() -> None:
        app = app_of(tmp_path, host="0.0.0.0", token="x" * 20)
        passed = {"authorization": "Bearer " + "x" * 20}
        async with listening(app, "/runs/one/events", passed) as listener:
            await until(lambda: listener.last("state"))
            assert listener.last("events")[-1]["event"] == "render_failed"
            assert secret.encode() not in listener.body
            assert b"traceback" not in listener.body

    asyncio.run(follow())


def test_a_log_begins_with_its_end_and_goes_on_line_by_line(tmp_path):
    path = tmp_path / "log.txt"
    reader = LogReader(path)
    assert reader.read() is None
    path.write_text("".join(f"行 {number}\n" for number in range(1000)) + "half")
    first = reader.read()
    assert first["first"]
    assert first["text"].splitlines() == [f"行 {number}" for number in range(1000 - FIRST_LINES, 1000)]
    assert reader.read() is None
    with path.open("a") as file:
        file.write(" a line\nanother\n")
    assert reader.read() == {"text": "half a line\nanother\n", "first": False}
    path.write_text("anew\n")
    assert reader.read() == {"text": "anew\n", "first": True}


SERVE = """
import sys
from pathlib import Path
from longcat_tune.server.serve import listen, make_server
from longcat_tune.server.settings import Settings
listener = listen("127.0.0.1", 0)
port = listener.getsockname()[1]
settings = Settings(roots=(Path(sys.argv[1]),), port=port, command=tuple(sys.argv[2:]))
sys.stdout.write(f"{port}\\n")
sys.stdout.flush()
make_server(settings).run(sockets=[listener])
"""


class Server:
    """A server in a process of its own."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(home.resolve()), *COMMAND],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.address = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def ask(self, path: str, method: str = "GET") -> str:
        request = Request(self.address + path, method=method, headers={"Origin": self.address})
        with urlopen(request, timeout=LIMIT) as reply:
            return reply.read().decode()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def test_a_server_killed_during_a_run_and_started_again_shows_the_run_its_log_and_its_end(tmp_path):
    make_run(tmp_path)
    first = Server(tmp_path)
    try:
        first.ask("/runs/one/start", "POST")
        wait_until(lambda: trains(tmp_path))
    finally:
        first.kill()
    second = Server(tmp_path)
    try:
        page = second.ask("/runs/one")
        assert 'data-state="running"' in page
        assert re.search(r"^step \d+$", page, re.MULTILINE)
        assert "Run one" in second.ask("/")
        steps = json.loads(second.ask("/runs/one/history.json"))["step"]
        wait_until(lambda: json.loads(second.ask("/runs/one/history.json"))["step"] > steps)
        second.ask("/runs/one/stop", "POST")
        wait_until(lambda: 'data-state="stopped"' in second.ask("/runs/one/head"))
        assert "stopped, which is saved" in second.ask("/runs/one")
        assert json.loads(second.ask("/runs/one/history.json"))["ended"]["how"] == "interrupted"
    finally:
        second.kill()
