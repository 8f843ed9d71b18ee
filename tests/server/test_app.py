"""The app as a whole: what a failure looks like, in which language, and with which headers."""

from __future__ import annotations

from longcat_tune.server.app import create_app
from tests.server.web import ADDRESS, FROM_OUR_PAGE, make_client, make_settings


def failing(home, error: Exception, **changes):
    """A client of an app in which /fail raises."""
    from starlette.testclient import TestClient

    app = create_app(make_settings(home, **changes))

    @app.get("/fail")
    async def fail() -> None:
        raise error

    return TestClient(
        app, base_url=ADDRESS, headers=FROM_OUR_PAGE, follow_redirects=False, raise_server_exceptions=False
    )


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
