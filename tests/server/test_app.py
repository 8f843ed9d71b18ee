"""The app as a whole: what a failure looks like, in which language, and what is not told."""

from __future__ import annotations

import re

import pytest
from fastapi import Body
from starlette.testclient import TestClient

from longcat_tune.errors import UserError
from longcat_tune.server import security
from longcat_tune.server.app import create_app
from longcat_tune.server.pages import NAVIGATION
from longcat_tune.server.replies import Refusal
from tests.server.web import ADDRESS, FROM_OUR_PAGE, TOKEN, make_client, make_settings


def failing(home, error: Exception, **changes) -> TestClient:
    """A client of an app in which /fail raises."""
    app = create_app(make_settings(home, **changes))

    @app.get("/fail")
    async def fail() -> None:
        raise error

    return TestClient(app, base_url=ADDRESS, headers=FROM_OUR_PAGE, raise_server_exceptions=False)


def test_an_unknown_page_is_told_as_a_page_a_fragment_or_json(tmp_path):
    client = make_client(tmp_path)
    as_page = client.get("/nowhere")
    as_fragment = client.get("/nowhere", headers={"HX-Request": "true"})
    as_json = client.get("/nowhere", headers={"Accept": "application/json"})
    assert [one.status_code for one in (as_page, as_fragment, as_json)] == [404] * 3
    text = as_json.json()["error"]
    assert text.startswith("There is no such page")
    assert text in as_page.text
    assert text in as_fragment.text
    assert "<html" in as_page.text
    assert "<html" not in as_fragment.text


def test_a_refusal_is_escaped(tmp_path):
    client = failing(tmp_path, Refusal(404, "app.no_such_file", name="<script>alert(1)</script>"))
    for headers in ({}, {"HX-Request": "true"}):
        reply = client.get("/fail", headers=headers)
        assert reply.status_code == 404
        assert "<script>alert" not in reply.text
        assert "&lt;script&gt;alert" in reply.text


def test_an_error_of_the_tool_is_told(tmp_path):
    reply = failing(tmp_path, UserError("lora_rank (0) must be at least 1")).get("/fail")
    assert reply.status_code == 400
    assert "lora_rank (0) must be at least 1" in reply.text


def test_a_remote_visitor_is_told_no_path(tmp_path):
    error = UserError(f"cannot write {tmp_path}/a.txt near /home/alice/b.txt")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    here = failing(tmp_path, error).get("/fail")
    remote = failing(tmp_path, error, host="0.0.0.0", token=TOKEN).get("/fail", headers=headers)
    assert str(tmp_path) in here.text
    assert remote.status_code == 400
    assert "cannot write a.txt near …" in remote.text


def test_a_bug_tells_the_visitor_nothing_of_itself(tmp_path):
    reply = failing(tmp_path, RuntimeError("a secret thing")).get("/fail")
    assert reply.status_code == 500
    assert "a secret thing" not in reply.text
    assert "The server made a mistake" in reply.text
    assert reply.headers["content-security-policy"] == security.HEADERS["Content-Security-Policy"]


def test_a_body_of_another_kind_is_malformed_and_a_wrong_method_refused(tmp_path):
    app = create_app(make_settings(tmp_path))

    @app.post("/number")
    async def number(value: int = Body(embed=True)) -> int:
        return value

    client = TestClient(app, base_url=ADDRESS, headers={**FROM_OUR_PAGE, "Accept": "application/json"})
    assert client.post("/number", json={"value": 3}).json() == 3
    for body in ("{", "[]", '{"value": "x"}', "", "\xff"):
        reply = client.post("/number", content=body, headers={"Content-Type": "application/json"})
        assert 400 <= reply.status_code < 500
        assert reply.json()["error"].startswith("The request is malformed: ")
    wrong = client.get("/number")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "GET" in wrong.json()["error"]


def test_the_language_is_the_browsers_until_one_is_chosen(tmp_path):
    client = make_client(tmp_path)
    assert (
        "返回训练列表" in client.get("/nowhere", headers={"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"}).text
    )
    assert "Back to the runs" in client.get("/nowhere", headers={"Accept-Language": "fr,de;q=0.5"}).text
    chosen = client.post("/language/zh?back=/datasets%3Fa%3D1")
    assert (chosen.status_code, chosen.headers["location"]) == (303, "/datasets?a=1")
    again = client.get("/nowhere", headers={"Accept-Language": "en"}).text
    assert "返回训练列表" in again
    assert '<html lang="zh-Hans">' in again


@pytest.mark.parametrize(
    "back", ["//evil.org", "https://evil.org/", "/\\evil.org", "\\\\evil.org", "evil", "javascript:1", ""]
)
def test_a_language_leads_to_no_other_site(tmp_path, back):
    reply = make_client(tmp_path).post("/language/en", params={"back": back})
    assert (reply.status_code, reply.headers["location"]) == (303, "/")


def test_an_unknown_language_is_refused(tmp_path):
    reply = make_client(tmp_path).post("/language/xx")
    assert reply.status_code == 404
    assert "set-cookie" not in reply.headers


def test_scripts_and_styles_have_their_types_and_are_asked_for_again(tmp_path):
    client = make_client(tmp_path)
    types = {
        "app.js": "text/javascript",
        "app.css": "text/css",
        "icon.svg": "image/svg+xml",
        "vendor/htmx.min.js": "text/javascript",
        "vendor/uplot.js": "text/javascript",
        "vendor/uplot.css": "text/css",
    }
    for name, kind in types.items():
        reply = client.get(f"/static/{name}")
        assert reply.status_code == 200
        assert reply.headers["content-type"].split(";")[0] == kind
        again = client.get(f"/static/{name}", headers={"If-None-Match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_a_page_has_a_way_past_its_navigation_and_says_where_it_is(tmp_path):
    text = make_client(tmp_path).get("/runs/new/nowhere").text
    assert re.search(r'<a class="skip" href="#main">', text)
    assert re.findall(r'<a href="([^"]+)"(?: aria-current="page")?>', text) == list(NAVIGATION)
    assert re.findall(r'<a href="([^"]+)" aria-current="page">', text) == ["/runs/new"]
    assert re.search(r'<main id="main" tabindex="-1">', text)


def test_nothing_describes_the_routes_to_strangers(tmp_path):
    client = make_client(tmp_path)
    assert [client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404] * 3
