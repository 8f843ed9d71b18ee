"""The queue and its jobs, with a stand-in for the command line; a second board is a restarted server's."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longcat_tune.server.devices import MACHINE, Device, find_devices, parse_listing
from longcat_tune.server.jobs import JobBoard
from longcat_tune.server.jobs_process import ProcessMark
from longcat_tune.server.jobs_record import Job
from longcat_tune.server.replies import Refusal
from tests.server.stand_in_jobs import (
    events_of,
    make_board,
    make_run,
    trains,
    wait_for,
    wait_until,
)

CARDS = (Device("GPU-a", "GPU 0: A", 0), Device("GPU-b", "GPU 1: B", 1))


def submit(board: JobBoard, home: Path, run: str = "one", device: str | None = None, **values: object) -> Job:
    return board.submit(kind="train", run=run, argv=make_run(home, run, **values), device=device)


def kill_wrapper(job: Job) -> None:
    mark = ProcessMark.read(job.folder / "process.json")
    assert mark is not None
    os.kill(mark.pid, signal.SIGKILL)
    wait_until(lambda: not mark.alive)


def test_a_job_goes_from_the_queue_to_its_end(tmp_path):
    board = make_board(tmp_path)
    job = submit(board, tmp_path, steps=3)
    assert job.state == "queued"
    assert board.start_due() == (job,)
    wait_for(job, "finished")
    assert job.exit_code == 0
    assert job.device == "cpu"
    assert job.log_tail(2) == "step 3\ndone"
    assert board.get(job.id) == job
    assert board.list() == (job,)
    assert board.active() == ()


def test_a_failing_command_is_a_failed_job_with_its_message_in_the_log(tmp_path):
    board = make_board(tmp_path)
    job = submit(board, tmp_path, fails="lora_rank (0) must be at least 1")
    board.start_due()
    wait_for(job, "failed")
    assert job.exit_code == 2
    assert "error: lora_rank (0)" in job.log_tail(5)


def test_stopping_lets_the_command_save_and_the_same_words_go_on(tmp_path):
    board = make_board(tmp_path)
    job = submit(board, tmp_path)
    board.start_due()
    wait_until(lambda: trains(tmp_path))
    board.stop(job.id)
    assert job.state in {"stopping", "stopped"}
    wait_for(job, "stopped")
    saved = events_of(tmp_path)[-2]
    assert saved["event"] == "checkpoint"
    again = submit(board, tmp_path, steps=saved["step"] + 2)
    board.start_due()
    wait_for(again, "finished")
    assert {"event": "resume", "step": saved["step"]}.items() <= events_of(tmp_path)[-5].items()


def test_cancelling_ends_the_command_at_once(tmp_path):
    board = make_board(tmp_path)
    job = submit(board, tmp_path)
    board.start_due()
    wait_until(lambda: trains(tmp_path))
    board.cancel(job.id)
    wait_for(job, "cancelled")
    assert "checkpoint" not in {event["event"] for event in events_of(tmp_path)}


@pytest.mark.parametrize("end", ["stop", "cancel"])
def test_a_waiting_job_that_is_ended_leaves_the_queue_and_never_runs(tmp_path, end):
    board = make_board(tmp_path)
    job = submit(board, tmp_path)
    (board.stop if end == "stop" else board.cancel)(job.id)
    assert job.state == "cancelled"
    assert board.queue() == board.start_due() == ()
    assert not job.log.exists()


def test_what_has_ended_cannot_be_ended_again(tmp_path):
    board = make_board(tmp_path)
    job = submit(board, tmp_path)
    board.cancel(job.id)
    for end in (board.stop, board.cancel):
        with pytest.raises(Refusal, match="has ended") as refusal:
            end(job.id)
        assert refusal.value.status == 409


def test_one_job_runs_on_a_device_and_the_next_follows(tmp_path):
    board = make_board(tmp_path)
    first = submit(board, tmp_path, "one")
    second = submit(board, tmp_path, "two", steps=1)
    assert board.start_due() == (first,)
    assert board.start_due() == ()
    assert board.queue() == (second,)
    wait_until(lambda: trains(tmp_path, "one"))
    board.stop(first.id)
    wait_for(first, "stopped")
    assert board.start_due() == (second,)
    wait_for(second, "finished")


def test_every_card_gets_a_job_that_sees_only_this_card(tmp_path):
    board = make_board(tmp_path, CARDS)
    jobs = [
        board.submit(kind="validate", run="", argv=["validate", str(number)], device=device)
        for number, device in enumerate(["GPU-b", "GPU-b", None])
    ]
    assert board.start_due() == (jobs[0], jobs[2])
    assert [job.device for job in jobs] == ["GPU-b", "GPU-b", "GPU-a"]
    for job, card in zip(jobs[::2], ["GPU-b", "GPU-a"], strict=True):
        wait_for(job, "finished")
        assert job.log_tail(1).endswith(f"on {card}")
    assert board.start_due() == (jobs[1],)
    wait_for(jobs[1], "finished")


def test_an_unknown_device_is_refused_and_one_that_has_gone_ends_the_job(tmp_path):
    with pytest.raises(Refusal, match=r"GPU-x.*GPU-a, GPU-b"):
        make_board(tmp_path, CARDS).submit(kind="validate", run="", argv=["validate"], device="GPU-x")
    job = make_board(tmp_path, CARDS).submit(kind="validate", run="", argv=["validate"], device="GPU-b")
    assert make_board(tmp_path, CARDS[:1]).start_due() == ()
    assert job.state == "failed"
    assert "GPU-b" in job.log_tail(1)


def test_a_run_is_trained_by_one_job_at_a_time(tmp_path):
    board = make_board(tmp_path)
    job = submit(board, tmp_path)
    with pytest.raises(Refusal, match="one") as refusal:
        submit(board, tmp_path)
    assert refusal.value.status == 409
    board.submit(kind="validate", run="one", argv=["validate"])
    board.cancel(job.id)
    submit(board, tmp_path)


def test_the_queue_keeps_its_order_and_can_be_reordered(tmp_path):
    board = make_board(tmp_path)
    a, b, c = (submit(board, tmp_path, run).id for run in ("a", "b", "c"))
    assert [job.id for job in board.queue()] == [a, b, c]
    board.move(c, -1)
    assert [job.id for job in board.queue()] == [a, c, b]
    board.move(a, 5)
    board.move(c, -5)
    assert [job.id for job in make_board(tmp_path).queue()] == [c, b, a]
    d = submit(board, tmp_path, "d").id
    assert [job.id for job in board.queue()] == [c, b, a, d]
    board.cancel(b)
    with pytest.raises(Refusal) as refusal:
        board.move(b, 1)
    assert refusal.value.status == 409


@pytest.mark.parametrize(
    "name", ["", "..", "../../runs", "20260101-000000-0000000g", "20260101-000000-00000000", "a/b", "\0"]
)
def test_an_id_that_is_none_is_not_found(tmp_path, name):
    with pytest.raises(Refusal) as refusal:
        make_board(tmp_path).get(name)
    assert refusal.value.status == 404


def test_another_board_finds_a_running_job_its_log_and_its_end(tmp_path):
    before = make_board(tmp_path)
    job = submit(before, tmp_path)
    before.start_due()
    wait_until(lambda: trains(tmp_path))
    after = make_board(tmp_path)
    found = after.get(job.id)
    assert found.state == "running"
    wait_until(lambda: re.search(r"^step \d+$", found.log_tail(5), re.MULTILINE))
    assert after.start_due() == ()
    after.stop(found.id)
    wait_for(found, "stopped")
    assert make_board(tmp_path).get(job.id).state == "stopped"


def test_a_killed_server_leaves_its_job_running(tmp_path):
    words = make_run(tmp_path)
    serve = (
        "import sys; from pathlib import Path; from tests.server.stand_in_jobs import make_board\n"
        "board = make_board(Path(sys.argv[1]))\n"
        "board.submit(kind='train', run='one', argv=sys.argv[2:])\n"
        "board.start_due(); print('started', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parents[2]
    server = subprocess.Popen(
        [sys.executable, "-c", serve, str(tmp_path), *words],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"started\n"
    # As Ctrl-C in its terminal, and then worse.
    os.killpg(server.pid, signal.SIGINT)
    os.killpg(server.pid, signal.SIGKILL)
    server.communicate()
    after = make_board(tmp_path)
    (job,) = after.list()
    assert job.state == "running"
    wait_until(lambda: trains(tmp_path))
    after.stop(job.id)
    wait_for(job, "stopped")


def test_a_job_that_ended_while_no_server_ran_is_found_ended(tmp_path):
    before = make_board(tmp_path)
    job, waiting = submit(before, tmp_path, steps=2), submit(before, tmp_path, "two", steps=2)
    before.start_due()
    wait_until(lambda: (job.folder / "ended.json").exists())
    after = make_board(tmp_path)
    assert after.get(job.id).state == "finished"
    assert after.start_due() == (waiting,)
    wait_for(waiting, "finished")


def test_a_command_outlives_its_wrapper_and_can_still_be_stopped(tmp_path):
    board = make_board(tmp_path)
    job = submit(board, tmp_path)
    board.start_due()
    wait_until(lambda: trains(tmp_path))
    kill_wrapper(job)
    assert job.state == "running"
    assert board.start_due() == ()
    board.stop(job.id)
    wait_for(job, "lost")
    assert events_of(tmp_path)[-1]["how"] == "interrupted"


def test_a_command_without_wrapper_can_be_cancelled(tmp_path):
    board = make_board(tmp_path)
    job = submit(board, tmp_path, ignores_sigterm=True)
    board.start_due()
    wait_until(lambda: trains(tmp_path))
    kill_wrapper(job)
    board.cancel(job.id)
    wait_for(job, "lost")


def test_a_job_whose_processes_have_gone_is_lost_and_frees_its_device(tmp_path):
    board = make_board(tmp_path)
    job, waiting = submit(board, tmp_path), submit(board, tmp_path, "two", steps=1)
    board.start_due()
    wait_until(lambda: (job.folder / "child.json").exists())
    child = ProcessMark.read(job.folder / "child.json")
    kill_wrapper(job)
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    wait_for(job, "lost")
    assert board.start_due() == (waiting,)
    wait_for(waiting, "finished")


def test_a_process_with_the_number_of_a_lost_job_is_not_taken_for_it(tmp_path):
    board = make_board(tmp_path)
    job = submit(board, tmp_path)
    mine = ProcessMark.of(os.getpid())
    record = {"pid": mine.pid, "create_time": mine.create_time - 3600, "device": "cpu"}
    (job.folder / "started.json").write_text(json.dumps(record))
    assert job.state == "lost"
    with pytest.raises(Refusal):
        board.cancel(job.id)


def test_half_a_job_is_no_job(tmp_path):
    job = submit(make_board(tmp_path), tmp_path)
    wrong = ('{"kind": "dance"}', '{"kind": "train", "argv": 5}', '{"kind": "train", "created": "now"}')
    for text in ("", "{", "[]", *wrong):
        (job.folder / "job.json").write_text(text)
        board = make_board(tmp_path)
        assert board.list() == board.start_due() == ()


def test_the_scheduler_starts_what_was_submitted_and_ends_with_its_block(tmp_path):
    board = make_board(tmp_path)
    job = submit(board, tmp_path, steps=1)

    async def serve() -> int:
        async with board.scheduling():
            await asyncio.to_thread(wait_for, job, "finished")
        return len(asyncio.all_tasks())

    assert asyncio.run(serve()) == 1


def test_jobs_run_in_the_home_folder_and_take_no_module_from_it(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('taken from the workspace')")
    command = (sys.executable, "-c", "import json, os; print(json.__name__, os.getcwd())")
    board = JobBoard(tmp_path / "jobs", command=command, working_folder=tmp_path, devices=lambda: (MACHINE,))
    job = board.submit(kind="validate", run="", argv=[])
    board.start_due()
    wait_for(job, "finished")
    assert job.log_tail(1) == f"json {tmp_path}"


def test_cards_are_listed_by_their_uuid_and_divided_ones_as_their_shares():
    text = (
        "GPU 0: NVIDIA H100 (UUID: GPU-1b2c)\n"
        "GPU 1: NVIDIA A100-SXM4 (UUID: GPU-9f)\n"
        "  MIG 3g.20gb     Device  0: (UUID: MIG-aa)\n"
        "  MIG 1g.5gb      Device  1: (UUID: MIG-bb)\n"
    )
    cards = parse_listing(text)
    assert [card.id for card in cards] == ["GPU-1b2c", "MIG-aa", "MIG-bb"]
    assert cards[1].name == "GPU 1: NVIDIA A100-SXM4 MIG 3g.20gb"
    assert cards[0].environment == {"CUDA_VISIBLE_DEVICES": "GPU-1b2c"}


@pytest.mark.parametrize(
    ("visible", "found"), [(None, ["GPU-a", "GPU-b"]), ("1", ["GPU-b"]), ("GPU-a", ["GPU-a"]), ("", ["cpu"])]
)
def test_cards_hidden_from_the_server_are_hidden_from_its_jobs(visible, found):
    lines = "GPU 0: A (UUID: GPU-a)\nGPU 1: B (UUID: GPU-b)"
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    devices = find_devices(environment, (sys.executable, "-c", f"print({lines!r})"))
    assert [device.id for device in devices] == found


@pytest.mark.parametrize("command", [("no-such-program",), (sys.executable, "-c", "exit(9)")])
def test_without_cards_the_machine_is_the_one_device_and_nothing_is_hidden(command):
    assert find_devices({}, command) == (MACHINE,)
    assert MACHINE.environment == {}
