"""Tests of pages are skipped where no browser can show them, and run where one can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser import browser, find_chromium, require_h264


def script(path: Path, *, status: int) -> None:
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)


def test_a_script_that_stands_for_an_uninstalled_browser_is_passed_over(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    script(tmp_path / "chromium", status=1)
    assert find_chromium() is None
    with pytest.raises(pytest.skip.Exception, match="needs Chromium"), browser(tmp_path / "profile"):
        pass
    script(tmp_path / "google-chrome", status=0)
    assert find_chromium() == str(tmp_path / "google-chrome")


@pytest.mark.parametrize("plays", [True, False])
def test_a_browser_that_plays_no_h264_skips_the_test(plays: bool) -> None:
    class Page:
        def evaluate(self, _expression: str) -> Any:
            return plays

    if plays:
        require_h264(Page())
    else:
        with pytest.raises(pytest.skip.Exception, match=r"H\.264"):
            require_h264(Page())
