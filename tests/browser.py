"""A headless Chromium over its debugging pipe, for pages that must work; needs no driver and no network.

Tests are skipped where there is none that runs, or one that plays no H.264.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120.0
"""Seconds without a word after which the browser counts as dead."""
PLAYS_H264 = """document.createElement("video").canPlayType('video/mp4; codecs="avc1.42E01E"') !== ''"""


class Page:
    """One open page."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._unread = b""
        self._number = 0
        self._session: str | None = None

    def open_blank(self) -> None:
        """Open the one page there is."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def open(self, path: Path) -> None:
        """Open a file in it and wait until it has loaded."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        loaded = "document.readyState === 'complete'"
        self.evaluate(f"new Promise((done) => {loaded} ? done() : addEventListener('load', done))")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression; of a promise, what it comes to."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def call(self, method: str, **params: Any) -> Any:
        """Send a command of the DevTools protocol and wait for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None and not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], PATIENCE)
            assert ready, "the browser says nothing"
            received = os.read(self._from, 1 << 20)
            assert received, "the browser has gone"
            self._unread += received
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


def find_chromium() -> str | None:
    """The first that runs: some systems have a script of that name that only says how to install it."""
    for path in filter(None, map(shutil.which, NAMES)):
        asked = subprocess.run([path, "--version"], capture_output=True, timeout=PATIENCE, check=False)
        if asked.returncode == 0:
            return path
    return None


def require_h264(page: Page) -> None:
    """Skip the test where the browser was built without it."""
    if not page.evaluate(PLAYS_H264):
        pytest.skip("needs a browser that plays H.264")


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Run a browser with a profile folder of its own while the block runs; without one, skip the test."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("needs Chromium")
    read_by_it, to_browser = os.pipe()
    from_browser, written_by_it = os.pipe()
    options = "--headless=new --no-sandbox --disable-gpu --no-first-run --window-size=1280,900"
    # Not sh: dash knows file descriptors of one digit only.
    command = (
        f'exec "$0" {options} --remote-debugging-pipe --user-data-dir="$1" 3<&{read_by_it} 4>&{written_by_it}'
    )
    process = subprocess.Popen(
        ["bash", "-c", command, chromium, str(profile)],
        pass_fds=(read_by_it, written_by_it),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_by_it)
    os.close(written_by_it)
    try:
        page = Page(to_browser, from_browser)
        page.open_blank()
        require_h264(page)
        yield page
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
