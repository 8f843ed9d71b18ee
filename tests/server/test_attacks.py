"""Attacks on every route there is: nothing outside is read, nothing is written, every one is refused.

The requests go to the app as bytes on a socket would: no client tidies `..` away before they arrive.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import Message

from longcat_tune.server import app as app_module
from longcat_tune.server.app import create_app
from longcat_tune.server.security import SAFE_METHODS
from tests.server.web import TOKEN, make_settings

SECRET = "the-secret-outside"
INNER = "what-only-visitors-with-the-token-see"
OURS = {"host": "127.0.0.1:8001", "origin": "http://127.0.0.1:8001", "sec-fetch-site": "same-origin"}
THERE = {"run": "fox", "name": "snow", "language": "en"}
"""What parameters of an address may name that exists."""
PARAMETER = re.compile(r"\{(\w+)(?::(\w+))?\}")
CHANGES_NOTHING = {"/language/{language}"}
"""Takes no body, and so cannot be told a malformed one."""
MEGABYTE = 1_000_000


@dataclass
class Reply:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def ask(app: FastAPI, method: str, target: str, *, headers: dict[str, str], body: bytes = b"") -> Reply:
    """Send a request with its target as it is written; the reply must end by itself."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8001),
    }
    reply = Reply()
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        reply.body += message.get("body", b"")

    runner().run(asyncio.wait_for(app(scope, receive, send), timeout=120))
    return reply


@cache
def runner() -> asyncio.Runner:
    """One for all requests: to make an event loop takes longer than most replies."""
    return asyncio.Runner()


@pytest.fixture(scope="module", autouse=True)
def _closed_runner():
    yield
    runner().close()
    runner.cache_clear()


def routes() -> list[tuple[str, str, APIRoute]]:
    """Method, path and route of everything the app answers, but the static files."""
    found = [route for router in (app_module.router, *app_module.ROUTERS) for route in router.routes]
    assert all(isinstance(route, APIRoute) for route in found)
    return [(method, route.path, route) for route in found for method in sorted(route.methods)]


ROUTES = routes()
CHANGES = [each for each in ROUTES if each[0] not in SAFE_METHODS]


def names(each: Any) -> str:
    return f"{each[0]} {each[1]}" if isinstance(each, tuple) else str(each)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """One for all tests that must leave it as it is."""
    return make_place(tmp_path_factory.mktemp("place"))


def make_place(tmp_path: Path) -> Path:
    """A workspace with a run and a dataset, a secret beside it, and symlinks that lead there."""
    outside = tmp_path / "outside"
    home = tmp_path / "home"
    (home / "runs" / "fox" / "results").mkdir(parents=True)
    (home / "datasets").mkdir()
    outside.mkdir()
    for name in (
        "secret.txt",
        "secret.mp4",
        "secret.json",
        "secret.safetensors",
        "config.json",
        "events.jsonl",
    ):
        (outside / name).write_text(f'{{"{SECRET}": 1}}\n')
    (home / "runs" / "fox" / "config.json").write_text(f'{{"tracker_run_name": "{INNER}"}}')
    (home / "runs" / "fox" / "run.json").write_text('{"name": "fox", "created": "2026-01-01T00:00:00+00:00"}')
    (home / "datasets" / "snow.json").write_text("[]")
    (home / "link").symlink_to(outside)
    (home / "runs" / "linked").symlink_to(outside)
    (home / "runs" / "fox" / "results" / "link").symlink_to(outside)
    (home / "datasets" / "linked.json").symlink_to(outside / "secret.json")
    return tmp_path


@lru_cache(maxsize=3)
def app_of(place: Path, **changes: Any) -> FastAPI:
    """The same app for all tests of a place: its routes are only made ready when they are first asked for."""
    return create_app(make_settings(place / "home", **changes))


def tree(place: Path) -> dict[str, tuple[int, int]]:
    """Every file, its size and when it was written."""
    paths = sorted(path for path in place.rglob("*") if not path.is_dir())
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


def wicked(place: Path) -> list[str]:
    """Values that ask for the secret, encoded as they stand in an address."""
    secret = str(place / "outside" / "secret.txt")
    plain = [
        "..",
        "../../outside/secret.txt",
        "../../../outside/secret.txt",
        "../../../../outside/secret.json",
        "results/link/secret.mp4",
        "link/secret.txt",
        "linked",
        "linked/secret.json",
        secret,
        f"/{secret}",
        "../" * 12 + "etc/passwd",
        "/etc/passwd",
        "/proc/self/environ",
        "a\0b",
        "secret.txt\0.mp4",
        "a\nb",
        "..\\..\\outside\\secret.txt",
        "....//....//outside/secret.txt",
        "x" * 5000,
        "<script>alert(1)</script>",
        "{7*7}",
        "-rf",
        "~root",
    ]
    raw = [
        "%2e%2e%2f%2e%2e%2foutside%2fsecret.txt",
        "%252e%252e%252foutside",
        "..%00/",
        "%c0%ae%c0%ae/",
        "%ff%fe",
    ]
    encoded = [quote(text, safe=safe) for safe in ("", "/.") for text in plain]
    return list(dict.fromkeys([*encoded, *raw]))


def fill(path: str, values: dict[str, str]) -> str:
    return PARAMETER.sub(lambda found: values[found[1]], path)


def attacks_on(route: APIRoute, place: Path) -> Iterator[str]:
    """Targets with one parameter of the path or query wicked, and the others of something that is there."""
    in_path = [name for name, _ in PARAMETER.findall(route.path)]
    benign = {name: THERE.get(name, "x") for name in in_path}
    for name in in_path:
        for value in wicked(place):
            yield fill(route.path, {**benign, name: value})
    for parameter in route.dependant.query_params:
        for value in wicked(place):
            yield f"{fill(route.path, benign)}?{parameter.alias}={value}"


def assert_nothing_told(reply: Reply, target: str) -> None:
    assert reply.status < 500, target
    assert SECRET.encode() not in reply.body, target
    assert b"root:" not in reply.body, target
    assert b"<script>alert" not in reply.body, target
    assert "default-src 'none'" in reply.headers["content-security-policy"], target


@pytest.mark.parametrize("each", ROUTES, ids=names)
def test_no_parameter_leads_out_of_the_workspace(place, each):
    method, _, route = each
    app = app_of(place)
    before = tree(place)
    for target in attacks_on(route, place):
        reply = ask(app, method, target, headers=OURS)
        assert_nothing_told(reply, target)
        # An address may fall on another route: /runs/.. is no run, and // no host.
        if "?" not in target and method == "GET":
            assert reply.status >= 400 or reply.status in {303, 307, 308}, target
        assert reply.headers.get("location", "/").startswith(("/", "http://127.0.0.1:8001/")), target
        assert not reply.headers.get("location", "/").startswith("//"), target
    assert tree(place) == before


@pytest.mark.parametrize("each", CHANGES, ids=names)
def test_no_field_of_a_form_leads_out_of_the_workspace(tmp_path, each):
    method, path, route = each
    place = make_place(tmp_path)
    app = app_of(place)
    before = tree(place / "outside")
    beside = sorted(place.iterdir())
    target = fill(path, {name: THERE.get(name, "x") for name, _ in PARAMETER.findall(path)})
    fields = [parameter.alias for parameter in route.dependant.body_params] or ["path", "name", "file"]
    for value in wicked(place):
        form = "&".join(f"{name}={value}" for name in fields).encode()
        text = json.dumps(dict.fromkeys(fields, unquote(value))).encode()
        for kind, body in (("application/x-www-form-urlencoded", form), ("application/json", text)):
            headers = {**OURS, "content-type": kind, "content-length": str(len(body))}
            assert_nothing_told(ask(app, method, target, headers=headers, body=body), value)
    assert tree(place / "outside") == before
    assert sorted(place.iterdir()) == beside


@pytest.mark.parametrize("path", ["/static/{}", "/{}", "/runs/{}", "/runs/fox/files/{}", "/datasets/{}"])
def test_no_address_leads_out_of_the_workspace(place, path):
    app = app_of(place)
    before = tree(place)
    for value in wicked(place):
        reply = ask(app, "GET", path.format(value), headers=OURS)
        assert_nothing_told(reply, value)
        assert b"create_app" not in reply.body, value
    for source in ("../app.py", "..%2fapp.py", "vendor/../../app.py", "%2e%2e/app.py", "/app.py", ".."):
        reply = ask(app, "GET", f"/static/{source}", headers=OURS)
        assert reply.status == 404, source
    assert tree(place) == before


@pytest.mark.parametrize("each", ROUTES, ids=names)
def test_without_the_token_every_route_is_closed(place, each):
    method, path, _ = each
    app = app_of(place, host="0.0.0.0", token=TOKEN)
    before = tree(place)
    target = PARAMETER.sub("fox", path)
    wrong = [{}, {"authorization": "Bearer wrong"}, {"cookie": "longcat_tune_8001=wrong"}]
    for extra in wrong:
        reply = ask(app, method, target, headers={**OURS, **extra})
        assert (reply.status, "set-cookie" in reply.headers) == (401, False)
        assert INNER.encode() not in reply.body
    assert ask(app, method, f"{target}?token=wrong", headers=OURS).status == 401
    assert tree(place) == before


@pytest.mark.parametrize("each", CHANGES, ids=names)
def test_no_other_site_changes_anything(place, each):
    method, path, _ = each
    app = app_of(place)
    before = tree(place)
    target = PARAMETER.sub("fox", path)
    theirs = [
        {"origin": "http://evil.org"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8002"},
        {"origin": OURS["origin"], "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {},
    ]
    kinds = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"]
    for headers in theirs:
        for kind in kinds:
            asked = {"host": OURS["host"], "content-type": kind, **headers}
            assert ask(app, method, target, headers=asked, body=b"a=b").status == 403
    assert tree(place) == before


@pytest.mark.parametrize("each", ROUTES, ids=names)
def test_no_other_name_of_the_server_is_answered(place, each):
    method, path, _ = each
    app = app_of(place)
    target = PARAMETER.sub("fox", path)
    for host in ("evil.org", "evil.org:8001", "localhost.evil.org", "192.168.0.7", ""):
        headers = {**OURS, "host": host, "origin": f"http://{host}"}
        assert ask(app, method, target, headers=headers).status == 421


@pytest.mark.parametrize("each", CHANGES, ids=names)
def test_too_much_or_malformed_is_refused(place, each):
    method, path, _ = each
    app = app_of(place)
    before = tree(place)
    target = fill(path, dict.fromkeys((name for name, _ in PARAMETER.findall(path)), "nothing-there"))
    limit = max([2 * MEGABYTE, *app_module.BODY_LIMITS.values()])
    for length in (str(limit + 1), "-1", "many", "9" * 30):
        reply = ask(app, method, target, headers={**OURS, "content-length": length}, body=b"{}")
        assert reply.status == 413, length
    if path in CHANGES_NOTHING:
        return
    bodies = [
        b"{",
        b"[" * 10_000,
        b'{"a": ' * 10_000,
        b"null",
        b"\xff\xfe\x00",
        b'"' + b"x" * 1000,
        b"NaN",
        b"--x\r\n\r\n",
    ]
    kinds = [
        "application/json",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "text/plain",
        "a/b; c",
    ]
    kinds.append("application/x-www-form-urlencoded")
    for body in bodies:
        for kind in kinds:
            headers = {**OURS, "content-type": kind, "content-length": str(len(body))}
            reply = ask(app, method, target, headers=headers, body=body)
            assert 400 <= reply.status < 500, (body[:20], kind, reply.body[-300:])
    assert tree(place) == before
