"""The process between server and command: what it passes on, and what it leaves in the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from longcat_tune.server.jobs_process import ProcessMark
from tests.server.stand_in_jobs import COMMAND, events_of, make_run, trains, wait_until

SHORT_GRACE = (
    "import sys; from pathlib import Path; from longcat_tune.server.job_runner import Wrapper; "
    "Wrapper(Path(sys.argv[1]), grace=0.2).run(sys.argv[2:])"
)


def run_wrapper(folder: Path, *command: str, code: str | None = None) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    runner = ("-m", "longcat_tune.server.job_runner") if code is None else ("-c", code)
    return subprocess.Popen([sys.executable, *runner, str(folder), *command], start_new_session=True)


def record(folder: Path, name: str) -> dict[str, object]:
    return json.loads((folder / name).read_text())


def test_exit_code_and_everything_printed_are_kept(tmp_path):
    words = "import sys; print('to one'); print('to the other', file=sys.stderr); sys.exit(7)"
    assert run_wrapper(tmp_path / "job", sys.executable, "-c", words).wait() == 0
    assert record(tmp_path / "job", "ended.json")["exit_code"] == 7
    assert sorted((tmp_path / "job" / "log.txt").read_text().splitlines()) == ["to one", "to the other"]


def test_words_reach_the_command_as_they_are(tmp_path):
    words = ["a b", "$(touch made)", "'", "*", "; exit 3"]
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    run_wrapper(tmp_path / "job", sys.executable, "-c", show, *words).wait()
    assert json.loads((tmp_path / "job" / "log.txt").read_text()) == words


def test_a_command_that_is_not_there_ends_the_job_with_a_message(tmp_path):
    run_wrapper(tmp_path / "job", str(tmp_path / "missing")).wait()
    assert record(tmp_path / "job", "ended.json")["exit_code"] == 127
    assert "missing could not be started: No such file" in (tmp_path / "job" / "log.txt").read_text()


def test_both_processes_are_named_while_they_run(tmp_path):
    job = tmp_path / "job"
    wrapper = run_wrapper(job, *COMMAND, *make_run(tmp_path))
    wait_until(lambda: trains(tmp_path))
    mark, child = ProcessMark.read(job / "process.json"), ProcessMark.read(job / "child.json")
    assert mark is not None
    assert mark.pid == wrapper.pid
    assert mark.alive
    assert child is not None
    assert child.alive
    # A group of its own, in the wrapper's session: killing it leaves the wrapper to tell of the end.
    assert os.getpgid(child.pid) == child.pid
    assert os.getsid(child.pid) == wrapper.pid
    os.kill(wrapper.pid, signal.SIGTERM)
    wrapper.wait()
    assert not child.alive


def test_sigint_is_passed_on_once_so_that_the_command_can_save(tmp_path):
    job = tmp_path / "job"
    wrapper = run_wrapper(job, *COMMAND, *make_run(tmp_path))
    wait_until(lambda: trains(tmp_path))
    for _ in range(3):
        os.kill(wrapper.pid, signal.SIGINT)
    wrapper.wait()
    assert record(job, "ended.json")["exit_code"] == 130
    assert [event["event"] for event in events_of(tmp_path)][-2:] == ["checkpoint", "run_end"]


def test_only_the_first_sigint_reaches_the_command(tmp_path):
    job, counts = tmp_path / "job", tmp_path / "counts"
    count = (
        "import signal, sys, time\n"
        f"file = open({str(counts)!r}, 'a', buffering=1)\n"
        "signal.signal(signal.SIGINT, lambda *_: file.write('int\\n'))\n"
        "signal.signal(signal.SIGTERM, lambda *_: (file.write('term\\n'), sys.exit(3)))\n"
        "file.write('ready\\n')\n"
        "while True: time.sleep(0.01)\n"
    )
    wrapper = run_wrapper(job, sys.executable, "-c", count)
    wait_until(lambda: counts.exists() and counts.read_text() == "ready\n")
    os.kill(wrapper.pid, signal.SIGINT)
    wait_until(lambda: counts.read_text() == "ready\nint\n")
    os.kill(wrapper.pid, signal.SIGINT)
    os.kill(wrapper.pid, signal.SIGTERM)
    wrapper.wait()
    assert counts.read_text() == "ready\nint\nterm\n"
    assert record(job, "ended.json")["exit_code"] == 3


def test_a_cancelled_command_that_does_not_listen_is_killed_with_its_helpers(tmp_path):
    job = tmp_path / "job"
    words = make_run(tmp_path, ignores_sigterm=True, spawns=True)
    wrapper = run_wrapper(job, *COMMAND, *words, code=SHORT_GRACE)
    wait_until(lambda: trains(tmp_path))
    helper = ProcessMark.of(int((tmp_path / "runs" / "one" / "results" / "helper.txt").read_text()))
    os.kill(wrapper.pid, signal.SIGTERM)
    wrapper.wait()
    assert record(job, "ended.json")["exit_code"] == -signal.SIGKILL
    wait_until(lambda: not helper.alive)


def test_a_job_runs_once_however_often_it_is_started(tmp_path):
    job = tmp_path / "job"
    job.mkdir()
    wrappers = [run_wrapper(job, sys.executable, "-c", "print('ran')") for _ in range(3)]
    assert [wrapper.wait() for wrapper in wrappers] == [0, 0, 0]
    assert (job / "log.txt").read_text() == "ran\n"


def test_a_job_called_off_before_it_started_runs_nothing(tmp_path):
    job = tmp_path / "job"
    job.mkdir()
    (job / "stop.json").write_text("{}")
    run_wrapper(job, sys.executable, "-c", "print('ran')").wait()
    assert not (job / "log.txt").exists()
    assert record(job, "ended.json")["exit_code"] == 130


def test_a_number_given_to_another_process_is_not_taken_for_the_first(tmp_path):
    mine = ProcessMark.of(os.getpid())
    earlier = ProcessMark(mine.pid, mine.create_time - 60)
    assert mine.alive
    assert not earlier.alive
    assert not earlier.send(signal.SIGCONT)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    mark = ProcessMark.of(ended.pid)
    wait_until(lambda: not mark.alive)  # a zombie from here on
    ended.wait()


def test_half_a_mark_counts_as_none(tmp_path):
    path = tmp_path / "process.json"
    for text in ("", "{", "[]", '{"pid": 1}', '{"pid": "x", "create_time": 1}'):
        path.write_text(text)
        assert ProcessMark.read(path) is None


def test_the_wrapper_imports_no_torch(tmp_path):
    ask = (
        "import sys; import longcat_tune.server.job_runner; "
        "print({'torch', 'numpy', 'fastapi'}.intersection(sys.modules))"
    )
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert asked.stdout == "set()\n"
