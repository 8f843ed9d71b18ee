"""Short commands of the tool: what they print, how they end, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import psutil

from longcat_tune.server.tool import Finished, run_tool

LIMIT = 120.0
SPAWNS = """
import os, pathlib, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(240)"])
pathlib.Path("half").write_text(f"{os.getpid()} {helper.pid}")
pathlib.Path("half").rename("pids")
time.sleep(240)
"""


def run(code: str, folder: Path, **more: object) -> Finished:
    return asyncio.run(run_tool((sys.executable, "-c", code), folder=folder, **{"time_limit": LIMIT, **more}))


def is_gone(pid: int) -> bool:
    """Killed is not yet ended: wait for it."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_what_a_command_prints_and_how_it_ends_are_told(tmp_path):
    code = (
        "import os, sys; print(os.environ['CARD']); sys.exit('12:00 reading\\nerror: no such clip; add it')"
    )
    finished = run(code, tmp_path, environment={"CARD": "GPU-3"})
    assert (finished.exit_code, finished.printed) == (1, b"GPU-3\n")
    assert finished.error == "no such clip; add it"


def test_no_file_of_the_folder_passes_for_a_module(tmp_path):
    (tmp_path / "colorsys.py").write_text("raise SystemExit('taken for a module')")
    assert run("import colorsys", tmp_path) == Finished(0, b"", "")


def test_a_command_that_is_not_there_is_told(tmp_path):
    finished = asyncio.run(run_tool((str(tmp_path / "gone"),), folder=tmp_path, time_limit=LIMIT))
    assert finished.exit_code == 127
    assert "cannot be started" in finished.error


def test_one_that_takes_too_long_is_ended_with_all_it_started(tmp_path):
    async def story() -> Finished:
        words = (sys.executable, "-c", SPAWNS)
        task = asyncio.create_task(run_tool(words, folder=tmp_path, time_limit=LIMIT))
        async with asyncio.timeout(LIMIT):
            while not (tmp_path / "pids").exists():
                await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return await run_tool(words, folder=tmp_path, time_limit=0.01)

    finished = asyncio.run(story())
    assert finished.exit_code is None
    assert "took longer than 0.01 s" in finished.error
    own, helper = map(int, (tmp_path / "pids").read_text().split())
    assert is_gone(own)
    assert is_gone(helper)
