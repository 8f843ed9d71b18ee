"""The console shows our records and keeps quiet about other libraries' details."""

from __future__ import annotations

import subprocess
import sys
import time
from io import StringIO

from rich.console import Console

from longcat_tune.log import progress

# Ctrl-C while torch is still being imported: what torch logs at exit then finds no level of its own set.
STOPPED_EARLY = """
import logging
from longcat_tune import log
log.set_up()
logging.getLogger("torch._subclasses.fake_tensor").info("FakeTensor cache stats:")
logging.getLogger("longcat_tune.runs").info("ours")
"""


def test_torch_tells_no_statistics_when_it_is_stopped_early() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_EARLY], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stderr.split()[1:] == ["ours"]


def test_progress_without_a_terminal_tells_rate_and_remaining_time(monkeypatch, caplog) -> None:
    clock = iter([0.0, 5.0, 10.5, 40.0]).__next__
    monkeypatch.setattr("longcat_tune.log.time.monotonic", clock)
    with caplog.at_level("INFO"), progress("Encoding clips", 150, done=10) as bar:
        bar.advance("64x64@9", by=10)
        bar.advance("64x64@9", by=11)
        bar.advance("64x64@17", by=119)
    assert caplog.messages == [
        "Encoding clips 31/150, 2/s, 0:01:00 left 64x64@9",
        "Encoding clips 150/150, 3.5/s 64x64@17",
    ]


def test_a_bar_on_a_terminal_shows_count_rate_and_remaining_time(monkeypatch) -> None:
    shown = StringIO()
    monkeypatch.setattr("longcat_tune.log.console", Console(file=shown, force_terminal=True, width=120))
    with progress("Encoding clips", 4, done=1) as bar:
        time.sleep(0.11)
        bar.advance("64x64@9")
        time.sleep(0.11)
        bar.advance("64x64@9")
    text = shown.getvalue()
    assert "3/4" in text
    assert "/s" in text
    assert "64x64@9" in text


def test_work_that_mostly_takes_no_time_leaves_no_line_unless_it_takes_long(monkeypatch, caplog) -> None:
    for clock, expected in (
        ([0.0, 1.0, 2.0], []),
        ([0.0, 11.0, 12.0], ["Looking 1/2, 0.0909/s, 0:00:11 left "]),
    ):
        caplog.clear()
        monkeypatch.setattr("longcat_tune.log.time.monotonic", iter(clock).__next__)
        with caplog.at_level("INFO"), progress("Looking", 2, only_long=True) as bar:
            bar.advance()
            bar.advance()
        assert caplog.messages == expected
