"""A client of the web UI over an empty workspace, as a page of it would ask; no socket, no subprocess."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from longcat_tune.server.app import create_app
from longcat_tune.server.settings import Settings

ADDRESS = "http://127.0.0.1:8001"
FROM_OUR_PAGE = {"sec-fetch-site": "same-origin", "origin": ADDRESS}
TOKEN = "a-token-of-the-tests"


def make_settings(home: Path, **changes: Any) -> Settings:
    """What a server of this workspace is started with; `command` runs nothing unless a test gives one."""
    home.mkdir(parents=True, exist_ok=True)
    changes.setdefault("roots", (home.resolve(),))
    changes.setdefault("command", (sys.executable, "-c", "raise SystemExit('a test gave no command')"))
    return Settings(**changes)


def client_of(settings: Settings, *, headers: dict[str, str] | None = None) -> TestClient:
    """A client that asks as a page of ours does; use it in a `with` where the lifespan matters."""
    return TestClient(
        create_app(settings),
        base_url=ADDRESS,
        headers=FROM_OUR_PAGE if headers is None else headers,
        follow_redirects=False,
        raise_server_exceptions=True,
    )


def make_client(home: Path, **changes: Any) -> TestClient:
    """`client_of(make_settings(...))`."""
    return client_of(make_settings(home, **changes))
