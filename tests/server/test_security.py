"""Who may ask: names of the server, the same origin, the token, and how much is taken."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from longcat_tune.server import app as app_module
from longcat_tune.server import security
from longcat_tune.server.app import create_app
from tests.server.web import ADDRESS, FROM_OUR_PAGE, TOKEN, client_of, make_client, make_settings

BEARER = {"Authorization": f"Bearer {TOKEN}"}
MEGABYTE = security.MEGABYTE


def remote_client(home, headers: dict[str, str] | None = None) -> TestClient:
    return client_of(make_settings(home, host="0.0.0.0", token=TOKEN), headers=headers)


def test_every_reply_carries_the_headers(tmp_path):
    client = make_client(tmp_path)
    replies = [
        client.get("/static/app.css"),
        client.get("/nowhere"),
        client.post("/language/en"),
        client.post("/language/en", headers={"origin": "http://evil.org"}),
        client.get("/nowhere", headers={"host": "evil.org"}),
    ]
    assert [reply.status_code for reply in replies] == [200, 404, 303, 403, 421]
    for reply in replies:
        assert {name: reply.headers[name] for name in security.HEADERS} == security.HEADERS
    policy = replies[0].headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert replies[0].headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "localhost", "LOCALHOST:9000", "[::1]:8001", "127.0.0.2"])
def test_names_of_this_machine_are_answered(tmp_path, host):
    assert make_client(tmp_path).get("/static/app.css", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.org",
        "localhost.evil.org",
        "127.0.0.1.evil.org",
        "127.0.0.1@evil.org",
        "evil.org#localhost",
        "localhost/evil",
        "192.168.1.5:8001",
        "0.0.0.0",
        "[::]",
        "localhost:x",
        "",
    ],
)
def test_other_names_are_refused(tmp_path, host):
    reply = make_client(tmp_path).get("/static/app.css", headers={"host": host})
    assert reply.status_code == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": ADDRESS, "sec-fetch-site": "same-origin"}, 303),
        ({"origin": ADDRESS}, 303),
        ({"sec-fetch-site": "same-origin"}, 303),
        ({}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://127.0.0.1:8002"}, 403),
        ({"origin": "http://127.0.0.1"}, 403),
        ({"origin": "http://localhost:8001"}, 403),
        ({"origin": "http://evil.org"}, 403),
        ({"origin": "http://127.0.0.1:8001.evil.org"}, 403),
        ({"origin": "ftp://127.0.0.1:8001"}, 403),
        ({"origin": "127.0.0.1:8001"}, 403),
        ({"origin": ADDRESS, "sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://evil.org", "sec-fetch-site": "same-origin"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"authorization": "Bearer x"}, 403),
        ({"authorization": "Bearer "}, 403),
    ],
)
def test_a_change_is_taken_from_our_own_pages_only(tmp_path, headers, status):
    client = client_of(make_settings(tmp_path), headers=headers)
    assert client.post("/language/en").status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_every_method_but_reading_counts_as_a_change(tmp_path, method):
    client = client_of(make_settings(tmp_path), headers={"origin": "http://evil.org"})
    assert client.request(method, "/language/en").status_code == 403


def test_another_site_may_link_here_but_embed_nothing(tmp_path):
    client = client_of(make_settings(tmp_path), headers={})
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    frame = {**link, "sec-fetch-dest": "iframe"}
    script = {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}
    typed = {"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    got = [client.get("/static/app.js", headers=one).status_code for one in (link, typed, {}, frame, script)]
    assert got == [200, 200, 200, 403, 403]


def test_with_a_token_nothing_is_told_without_it(tmp_path):
    client = remote_client(tmp_path, {})
    for path in ("/", "/nowhere", "/?token=", "/?token=wrong", "/nowhere?token=" + TOKEN):
        reply = client.get(path)
        assert reply.status_code == 401
        assert "set-cookie" not in reply.headers
        assert TOKEN not in reply.text
    assert client.get("/static/app.css").status_code == 200
    assert client.get("/static/../app.py").status_code == 401
    assert client.post("/language/en", headers=FROM_OUR_PAGE).status_code == 401


@pytest.mark.parametrize(
    "given", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "токен", f"{TOKEN} {TOKEN}"]
)
def test_a_wrong_token_is_refused_wherever_it_stands(tmp_path, given):
    client = remote_client(tmp_path, {})
    assert client.get("/", params={"token": given}).status_code == 401
    as_header = given.encode()
    assert client.get("/nowhere", headers={"authorization": b"Bearer " + as_header}).status_code == 401
    assert client.get("/nowhere", headers={"authorization": b"Basic " + TOKEN.encode()}).status_code == 401
    assert client.get("/nowhere", headers={"cookie": b"longcat_tune_8001=" + as_header}).status_code == 401


def test_the_token_in_the_address_becomes_a_cookie_and_goes_away(tmp_path):
    client = remote_client(tmp_path, {})
    reply = client.get("/", params={"token": TOKEN})
    assert reply.status_code == 200
    assert '<meta http-equiv="refresh" content="0; url=/">' in reply.text
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/nowhere").status_code == 404
    assert client.post("/language/en").status_code == 403
    assert client.post("/language/en", headers={"origin": ADDRESS}).status_code == 303


def test_a_program_shows_the_token_in_a_header(tmp_path):
    client = remote_client(tmp_path, BEARER)
    assert client.get("/nowhere").status_code == 404
    assert client.post("/language/en").status_code == 303
    assert client.post("/language/en", headers={"origin": "http://evil.org"}).status_code == 403


def test_a_proxy_may_bring_its_own_name_where_there_is_a_token(tmp_path):
    client = remote_client(tmp_path, BEARER)
    proxied = {"host": "abc-8001.proxy.example", "origin": "https://abc-8001.proxy.example"}
    assert client.post("/language/en", headers=proxied).status_code == 303
    assert client.get("/nowhere", headers={"host": "a b"}).status_code == 421


def reading(home, limits: dict[str, int], monkeypatch) -> TestClient:
    """A client of an app with two routes that read all they are sent."""
    monkeypatch.setattr(app_module, "BODY_LIMITS", limits)
    app = create_app(make_settings(home))

    @app.post("/read")
    @app.post("/uploads/{name}")
    async def read(request: Request) -> int:
        return len(await request.body())

    return TestClient(app, base_url=ADDRESS, headers=FROM_OUR_PAGE)


def test_too_large_a_body_is_refused_whether_it_tells_its_length_or_not(tmp_path, monkeypatch):
    client = reading(tmp_path, {"/uploads/{name}": 5 * MEGABYTE}, monkeypatch)
    sizes = {"/read": security.BODY_LIMIT, "/uploads/a": 5 * MEGABYTE}
    for path, limit in sizes.items():
        assert client.post(path, content=b"x" * limit).json() == limit
        assert client.post(path, content=b"x" * (limit + 1)).status_code == 413
        assert client.post(path, content=(b"x" * MEGABYTE for _ in range(limit // MEGABYTE))).json() == limit
        unending = (b"x" * MEGABYTE for _ in range(limit // MEGABYTE + 1))
        assert client.post(path, content=unending).status_code == 413
    assert client.post("/uploads/a/b", content=b"x" * (security.BODY_LIMIT + 1)).status_code == 413


@pytest.mark.parametrize(
    "length", ["-1", "x", "1e3", "99999999999999999999", pytest.param("9" * 5000, id="long"), "٣"]
)
def test_a_length_that_is_none_is_refused(tmp_path, monkeypatch, length):
    client = reading(tmp_path, {}, monkeypatch)
    reply = client.post("/read", content=b"x", headers={"content-length": length.encode()})
    assert reply.status_code == 413
