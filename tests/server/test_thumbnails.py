"""Thumbnails of folders: a few folders at a time, and a failure is told."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from longcat_tune.server.thumbnails import AT_ONCE, Thumbnails

LIMIT = 120.0
WAITS = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[2])
(folder / "begun").touch()
while not (folder / "go").exists():
    time.sleep(0.02)
"""


async def until(condition) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.02)


def test_a_dataset_of_many_folders_does_not_start_a_process_for_each(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(AT_ONCE + 2)]
    for folder in folders:
        folder.mkdir()

    def begun() -> int:
        return sum((folder / "begun").exists() for folder in folders)

    async def story() -> None:
        made = Thumbnails((sys.executable, "-c", WAITS), tmp_path / "store")
        for folder in folders:
            await made.start(folder, apart=False)
        assert all(made.is_running(folder, apart=False) for folder in folders)
        await until(lambda: begun() == AT_ONCE)
        (folders[0] / "go").touch()
        await until(lambda: begun() == AT_ONCE + 1)
        assert not made.is_running(folders[0], apart=False)
        assert begun() == AT_ONCE + 1
        await made.close()

    asyncio.run(story())


def test_a_store_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")

    async def story() -> str | None:
        made = Thumbnails((sys.executable, "-c", WAITS), tmp_path / "store")
        await made.start(tmp_path, apart=False)
        await until(lambda: not made.is_running(tmp_path, apart=False))
        return made.failure(tmp_path, apart=False)

    assert "a file stands where a folder must be" in str(asyncio.run(story()))
