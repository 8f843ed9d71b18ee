"""Checks run as subprocesses: the newest wins, none outlives its use, and only what passed is passed."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import psutil
import pytest

from longcat_tune.server.preflight import AT_ONCE, Conditions, Outcome, Preflights, SupersededError
from longcat_tune.server.preflight_report import Length, length_of, memory_rows, shown_problems
from tests.server.stand_in_check import PROBLEMS, REPORT

COMMAND = (sys.executable, str(Path(__file__).with_name("stand_in_check.py")))
LIMIT = 120.0


def text(how: str = "") -> str:
    return json.dumps({"tracker_run_name": how})


def preflights(home: Path, **changes: object) -> Preflights:
    return Preflights(COMMAND, home, home / "drafts", **changes)


def calls(home: Path) -> list[dict]:
    path = home / "calls.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


async def called(home: Path, times: int) -> None:
    async with asyncio.timeout(LIMIT):
        while len(calls(home)) < times:
            await asyncio.sleep(0.02)


def test_a_check_that_finds_nothing_wrong_passes_for_its_content_only(tmp_path) -> None:
    async def story() -> None:
        checks = preflights(tmp_path)
        outcome = await checks.check("one", text(), content="a")
        assert (outcome.passed, outcome.report, outcome.exit_code) == (True, REPORT, 0)
        assert checks.passed("one", "a")
        assert not checks.passed("one", "b")
        assert not checks.passed("two", "a")

    asyncio.run(story())
    assert list((tmp_path / "drafts").iterdir()) == []


def test_problems_and_breakages_do_not_pass_and_take_back_what_passed(tmp_path) -> None:
    async def story() -> None:
        checks = preflights(tmp_path)
        await checks.check("one", text(), content="a")
        refused = await checks.check("one", text("refuses"), content="a")
        assert not refused.passed
        assert refused.report is not None
        assert refused.report["problems"] == PROBLEMS
        assert not checks.passed("one", "a")
        broken = await checks.check("one", text("breaks"), content="a")
        assert broken == Outcome(None, "no good: config.json", 3)

    asyncio.run(story())


def test_the_newest_check_wins_and_the_older_ones_are_gone(tmp_path) -> None:
    async def story() -> None:
        checks = preflights(tmp_path)
        first = asyncio.create_task(checks.check("one", text("waits"), content="a"))
        await called(tmp_path, 1)
        later = [asyncio.create_task(checks.check("one", text("waits"), content=str(n))) for n in range(3)]
        await asyncio.sleep(0)
        last = await checks.check("one", text(), content="z")
        assert last.passed
        ended = await asyncio.gather(first, *later, return_exceptions=True)
        assert [type(one) for one in ended] == [SupersededError] * 4
        assert checks.passed("one", "z")

    asyncio.run(story())
    assert not any(psutil.pid_exists(call["pid"]) for call in calls(tmp_path))


def test_drafts_do_not_end_each_other(tmp_path) -> None:
    async def story() -> None:
        checks = preflights(tmp_path)
        waiting = asyncio.create_task(checks.check("one", text("waits"), content="a"))
        await called(tmp_path, 1)
        assert (await checks.check("two", text(), content="b")).passed
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(story())
    assert not any(psutil.pid_exists(call["pid"]) for call in calls(tmp_path))


def test_only_a_few_run_at_once(tmp_path) -> None:
    async def story() -> None:
        checks = preflights(tmp_path)
        tasks = [
            asyncio.create_task(checks.check(str(n), text("waits"), content="a")) for n in range(AT_ONCE + 3)
        ]
        await called(tmp_path, AT_ONCE)
        # A check has a folder from before its process starts; the others have none yet.
        assert len([*(tmp_path / "drafts").iterdir()]) == AT_ONCE
        for task in tasks[:AT_ONCE]:
            task.cancel()
        await called(tmp_path, AT_ONCE + 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(story())
    assert not any(psutil.pid_exists(call["pid"]) for call in calls(tmp_path))


def test_a_check_that_takes_too_long_is_ended(tmp_path) -> None:
    async def story() -> None:
        outcome = await preflights(tmp_path, time_limit=0.5).check("one", text("waits"), content="a")
        assert outcome == Outcome(None, "", None)

    asyncio.run(story())
    assert not any(psutil.pid_exists(call["pid"]) for call in calls(tmp_path))


def test_the_conditions_reach_the_command(tmp_path) -> None:
    around = Conditions(("--host-memory", "7"), {"CUDA_VISIBLE_DEVICES": "GPU-3"})
    asyncio.run(preflights(tmp_path).check("one", text(), content="a", conditions=around))
    [call] = calls(tmp_path)
    assert call["words"][-2:] == ["--host-memory", "7"]
    assert call["card"] == "GPU-3"


def test_the_time_of_a_step_is_weighed_by_how_often_each_bucket_comes() -> None:
    assert length_of(REPORT) == Length(8, 120, (6 * 1.0 + 2 * 5.0) / 8)
    assert length_of(REPORT).total == 120 * 2.0
    unknown = json.loads(json.dumps(REPORT))
    unknown["memory"]["parts"][1]["seconds"] = None
    assert length_of(unknown).seconds is None
    assert length_of({"problems": []}) == Length(0, None, None)


def test_problems_name_the_field_they_are_about() -> None:
    shown = shown_problems({"problems": PROBLEMS}, lambda text: text.replace("/secret", "…"))
    assert [(one.key, one.subject, one.remedy) for one in shown] == [
        ("", "clips: …/a.mp4", "write …/a.txt"),
        ("lora_rank", "", "change it"),
    ]


def test_memory_is_told_in_gib_of_the_card_where_there_is_one() -> None:
    assert [(row.device, row.host) for row in memory_rows(REPORT)] == [(2.0, 1.0), (1.0, 1.0)]
    without = {"memory": {**REPORT["memory"], "device_free": None}}
    assert [row.device for row in memory_rows(without)] == [None, None]
    assert memory_rows({"problems": []}) == []
