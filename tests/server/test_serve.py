"""The command: what it refuses to start with, what it tells, and that Ctrl-C ends it whatever is open."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from longcat_tune.cli import main
from longcat_tune.errors import ConfigError, UserError
from longcat_tune.server import serve as serve_module
from longcat_tune.server.serve import address, listen, require_packages, resolve_roots, serve
from longcat_tune.server.settings import Settings

PATIENCE = 120.0
"""Seconds after which something counts as hung, on however busy a machine."""

WITH_STREAMS = """
import asyncio, sys
from pathlib import Path
from sse_starlette import EventSourceResponse
from starlette.responses import StreamingResponse
from longcat_tune import log
from longcat_tune.server import app as app_module, serve as serve_module

log.set_up()

async def ticks(line):
    while True:
        yield line
        await asyncio.sleep(3600)

@app_module.router.get("/events")
async def events():
    return EventSourceResponse(ticks({"data": "tick"}))

@app_module.router.get("/endless")
async def endless():
    return StreamingResponse(ticks("tick"))

serve_module.serve([Path(sys.argv[1])], host="127.0.0.1", port=0, open_browser=False)
print("torch" in sys.modules, "numpy" in sys.modules)
"""


@contextmanager
def running(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run Python with these words, which must start a server; gives the process and the address it tells."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, *words], stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        assert told.startswith("longcat-tune server: "), told or process.communicate()
        yield process, told.removeprefix("longcat-tune server: ").strip()
    finally:
        process.kill()
        process.communicate()


def connection_to(url: str) -> http.client.HTTPConnection:
    [port] = re.findall(r":(\d+)/", url)
    return http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE)


def status_of(url: str, path: str) -> int:
    connection = connection_to(url)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def test_ctrl_c_ends_it_while_streams_are_open(tmp_path):
    with running("-c", WITH_STREAMS, str(tmp_path / "home")) as (process, url):
        streams = [connection_to(url) for _ in range(4)]
        replies = []
        for stream, path in zip(streams, ("/events", "/events", "/endless", "/endless"), strict=True):
            stream.request("GET", path)
            replies.append(stream.getresponse())
            assert replies[-1].read(4)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert time.monotonic() - began < PATIENCE / 2  # the streams' next word would come in an hour
    assert "the server has ended; jobs go on" in errors
    assert "Traceback" not in errors
    assert output.splitlines()[-1] == "False False"


def test_sigterm_ends_it_too(tmp_path):
    with running("-m", "longcat_tune", "server", "--port", "0", "--workspace", str(tmp_path)) as (
        process,
        url,
    ):
        assert status_of(url, "/nowhere") == 404
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode in {0, -signal.SIGTERM}
    assert "Traceback" not in errors


def test_a_server_for_others_tells_a_token_once(tmp_path):
    words = ("-m", "longcat_tune", "server", "--host", "0.0.0.0", "--port", "0", "--workspace", str(tmp_path))
    with running(*words) as (process, url):
        [token] = re.findall(r"/\?token=(\S+)$", url)
        assert len(token) >= 32
        assert status_of(url, "/nowhere") == status_of(url, "/?token=wrong") == 401
        assert status_of(url, f"/?token={token}") == 200
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    assert token not in output + errors


def test_without_the_extra_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(serve_module, "find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(UserError, match=r"needs jinja2, .*pip install 'longcat-tune\[web\]'"):
        serve([tmp_path], host="127.0.0.1", port=0, open_browser=False)
    monkeypatch.undo()
    require_packages()


def test_the_first_folder_is_made_and_others_must_exist(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "clips")
    home = tmp_path / "new" / "home"
    roots = resolve_roots([home, tmp_path / "clips", tmp_path / "link", home])
    assert roots == (home.resolve(), (tmp_path / "clips").resolve())
    assert list(home.iterdir()) == []
    with pytest.raises(ConfigError, match=r"--workspace \(.*missing\) is not a folder"):
        resolve_roots([home, tmp_path / "missing"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder must be"):
        resolve_roots([tmp_path / "file"])


def test_a_port_in_use_and_an_unknown_host_are_told():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1, port {port} .*another --port"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match=r"cannot listen on no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://localhost:8001/"),
        ("::1", "http://localhost:8001/"),
        ("127.0.0.2", "http://127.0.0.2:8001/"),
        ("192.168.1.5", "http://192.168.1.5:8001/?token=secret"),
        ("fd00::1", "http://[fd00::1]:8001/?token=secret"),
        ("gpu.lab", "http://gpu.lab:8001/?token=secret"),
        ("0.0.0.0", f"http://{socket.gethostname()}:8001/?token=secret"),
    ],
)
def test_the_address_opens_it(tmp_path, host, shown):
    token = "secret" if "token" in shown else None
    assert address(Settings(roots=(tmp_path,), host=host, token=token)) == shown


def test_the_command_hands_over_its_options(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("longcat_tune.log.set_up", lambda **_: None)
    monkeypatch.setattr(serve_module, "serve", lambda *args, **options: calls.append((*args, options)))
    assert main(["server"]) == 0
    words = ["--host", "0.0.0.0", "--port", "80", "--workspace", "a", "--workspace", "b", "--open"]
    assert main(["server", *words]) == 0
    assert calls == [
        ((), {"host": "127.0.0.1", "port": 8001, "open_browser": False}),
        ([Path("a"), Path("b")], {"host": "0.0.0.0", "port": 80, "open_browser": True}),
    ]
    assert main(["server", "--port", "70000"]) == 2
