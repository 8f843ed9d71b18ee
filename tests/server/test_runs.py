"""Runs found on the disk, how they are doing, and their pages; the command line is a stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from longcat_tune.server.replies import Refusal
from longcat_tune.server.runs import RunBook, RunState, problem_in
from longcat_tune.server.runs_pages import router
from longcat_tune.server.workspace import Workspace
from tests.server.stand_in_jobs import COMMAND, make_board, make_run, trains, wait_until
from tests.server.web import make_client

HTMX = {"HX-Request": "true"}


def book_of(home: Path) -> RunBook:
    return RunBook(Workspace([home.resolve()]), make_board(home))


def state_of(book: RunBook, run: str = "one") -> RunState:
    return book.status(book.get(run)).state


def write_events(home: Path, run: str, *events: dict[str, Any]) -> Path:
    path = home / "runs" / run / "results" / "events.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps({"time": 1.0, **event}) + "\n" for event in events)
    return path


def started(steps: int, max_steps: int = 10) -> list[dict[str, Any]]:
    first = {"event": "run_start", "max_steps": max_steps}
    return [first, *({"event": "step", "step": n, "loss": 1 / n} for n in range(1, steps + 1))]


def client_of(home: Path, **changes: Any) -> TestClient:
    return make_client(home, command=COMMAND, **changes)


def wait_for_state(client: TestClient, state: str, run: str = "one") -> None:
    wait_until(lambda: f'data-state="{state}"' in client.get(f"/runs/{run}/head").text)


def test_runs_are_listed_latest_first(tmp_path):
    book = book_of(tmp_path)
    assert book.list() == ()
    for number, name in enumerate(["a", "b", "c"]):
        make_run(tmp_path, name)
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps({"name": name, "created": number}))
    for name in ("No-Name", "empty", ".hidden"):
        (tmp_path / "runs" / name).mkdir()
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "run.json").write_text("{")
    (tmp_path / "runs" / "bare").mkdir()
    (tmp_path / "runs" / "bare" / "run.json").write_text('{"created": "long ago"}')
    assert [run.id for run in book.list()] == ["c", "b", "a", "bare"]
    assert book.get("bare").name == "bare"


def test_a_run_made_by_hand_has_a_config_and_no_record(tmp_path):
    make_run(tmp_path)
    folder = tmp_path / "runs" / "by-hand"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert [run.id for run in book_of(tmp_path).list()] == ["by-hand", "one"]
    assert book_of(tmp_path).get("by-hand").created == (folder / "config.json").stat().st_mtime


@pytest.mark.parametrize("place", ["run", "run.json", "results"])
def test_a_symlink_out_of_the_workspace_is_no_run_and_hides_no_other(tmp_path, place):
    home, outside = tmp_path / "home", tmp_path / "outside"
    make_run(home)
    make_run(outside, "two")
    (outside / "runs" / "two" / "results").mkdir()
    if place == "run":
        (home / "runs" / "two").symlink_to(outside / "runs" / "two")
    else:
        make_run(home, "two")
        (home / "runs" / "two" / "run.json").rename(home / "record.json")
        if place == "results":
            (home / "record.json").rename(home / "runs" / "two" / "run.json")
        (home / "runs" / "two" / place).symlink_to(outside / "runs" / "two" / place)
    book = book_of(home)
    assert [run.id for run in book.list()] == ["one"]
    with pytest.raises(Refusal):
        book.get("two")


@pytest.mark.parametrize(
    ("ending", "state"),
    [("finished", "finished"), ("interrupted", "stopped"), ("failed", "failed"), (None, "lost")],
)
def test_a_run_that_no_job_trained_is_told_by_its_events(tmp_path, ending, state):
    book = book_of(tmp_path)
    make_run(tmp_path)
    assert state_of(book) == "new"
    write_events(tmp_path, "one", *started(3))
    if ending:
        write_events(tmp_path, "one", {"event": "run_end", "how": ending})
    assert state_of(book) == state
    assert book.status(book.get("one")).summary.progress == pytest.approx(0.3)


def test_a_run_is_started_stopped_and_goes_on(tmp_path):
    home = tmp_path.resolve()
    board = make_board(home)
    book = RunBook(Workspace([home]), board)
    make_run(home)
    run = book.get("one")
    job = book.start(run)
    assert book.status(run).place == 1
    assert job.argv == ("train", "--config", str(home / "runs" / "one" / "config.json"))
    board.start_due()
    wait_until(lambda: trains(home))
    assert state_of(book) == "running"
    board.stop(book.active_job(run).id)
    wait_until(lambda: state_of(book) == "stopped")
    first = book.status(run).summary.step
    make_run(home, steps=first + 3)
    assert book.start(run).argv == job.argv
    board.start_due()
    wait_until(lambda: state_of(book) == "finished")
    assert book.status(run).summary.step == first + 3


def test_a_run_taken_out_of_the_queue_is_as_it_was(tmp_path):
    board = make_board(tmp_path)
    book = RunBook(Workspace([tmp_path.resolve()]), board)
    make_run(tmp_path)
    board.cancel(book.start(book.get("one")).id)
    assert state_of(book) == "new"
    write_events(tmp_path, "one", *started(3), {"event": "run_end", "how": "interrupted"})
    board.cancel(book.start(book.get("one")).id)
    assert state_of(book) == "stopped"


def test_what_cannot_start_or_end_is_refused(tmp_path):
    book = book_of(tmp_path)
    make_run(tmp_path)
    run = book.get("one")
    with pytest.raises(Refusal, match="neither waits nor runs"):
        book.active_job(run)
    book.start(run)
    with pytest.raises(Refusal, match="already"):
        book.start(run)
    make_run(tmp_path, "two")
    (tmp_path / "runs" / "two" / "config.json").unlink()
    with pytest.raises(Refusal, match=r"config\.json"):
        book.start(book.get("two"))


def test_what_ended_a_run_is_past_once_it_is_started_again(tmp_path):
    book = book_of(tmp_path)
    make_run(tmp_path)
    error = {"event": "error", "message": "out of memory; lower lora_rank"}
    write_events(tmp_path, "one", *started(1), error, {"event": "run_end", "how": "failed"})
    run = book.get("one")
    assert book.status(run).problems == ("out of memory; lower lora_rank",)
    book.start(run)
    assert book.status(run).problems == ()
    write_events(tmp_path, "one", *started(1), error)
    assert book.status(run).problems == ("out of memory; lower lora_rank",)


def test_why_a_run_failed_is_told_by_its_events_or_else_by_its_log(tmp_path):
    board = make_board(tmp_path)
    book = RunBook(Workspace([tmp_path.resolve()]), board)
    make_run(tmp_path, fails="lora_rank (0) must be at least 1; raise it")
    run = book.get("one")
    book.start(run)
    board.start_due()
    wait_until(lambda: state_of(book) == "failed")
    assert book.status(run).problems == ("lora_rank (0) must be at least 1; raise it",)
    write_events(tmp_path, "one", *started(1), {"event": "error", "message": "the disk is full; free some"})
    assert book.status(run).problems == ("the disk is full; free some",)


def test_the_reason_of_a_failure_is_found_at_the_end_of_a_log():
    assert problem_in("11:00:00 loading\nerror: a is wrong\nerror: b (1) is wrong:\n  raise it\n") == (
        "b (1) is wrong:\n  raise it"
    )
    trace = ["Traceback (most recent call last):", *(f"  line {n}" for n in range(20)), "ValueError: no"]
    assert problem_in("\n".join(trace)).splitlines()[-1] == "ValueError: no"
    assert len(problem_in("\n".join(trace)).splitlines()) < 10
    assert problem_in("") == ""


def test_another_file_of_events_is_another_story(tmp_path):
    book = book_of(tmp_path)
    make_run(tmp_path)
    path = write_events(tmp_path, "one", *started(5))
    assert book.status(book.get("one")).summary.step == 5
    path.unlink()
    assert state_of(book) == "new"
    assert book.history(book.get("one"))[0]["columns"]["step"] == []
    write_events(tmp_path, "one", *started(2, max_steps=99))
    assert book.history(book.get("one"))[0]["columns"]["step"] == [1, 2]


def test_ten_thousand_events_are_told_without_reading_them_again(tmp_path):
    book = book_of(tmp_path)
    make_run(tmp_path)
    path = write_events(tmp_path, "one", *started(10_000, max_steps=20_000))
    history, offset, identity = book.history(book.get("one"))
    assert offset == path.stat().st_size
    assert identity
    assert 1000 <= len(history["columns"]["step"]) <= 2000
    # What was read stays read: a hole in the old part goes unnoticed.
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"x" * 100)
    write_events(tmp_path, "one", {"event": "step", "step": 10_001, "loss": 0.5})
    assert book.history(book.get("one"))[0]["step"] == 10_001


def test_an_empty_workspace_says_what_to_do_first(tmp_path):
    text = client_of(tmp_path).get("/").text
    assert "/datasets" in text
    assert "/runs/new" in text
    assert "No runs yet" in text


def test_the_first_page_shows_each_run_with_state_progress_loss_and_picture(tmp_path):
    make_run(tmp_path)
    make_run(tmp_path, "two")
    picture = "validation/step_000003/grid.png"
    done = {"event": "validation", "step": 3, "files": [picture]}
    write_events(tmp_path, "one", *started(3), done, {"event": "run_end", "how": "interrupted"})
    text = client_of(tmp_path).get("/").text
    assert "Run one" in text
    assert "stopped" in text
    assert "3 of 10" in text
    assert "0.3333" in text
    assert f"/runs/one/files/{picture}" in text
    assert "not started" in text


def test_an_open_page_is_only_told_of_changes(tmp_path):
    make_run(tmp_path)
    client = client_of(tmp_path)
    first = client.get("/overview").text
    seen = first.split("seen=")[1].split('"')[0]
    assert client.get(f"/overview?seen={seen}").status_code == 204
    write_events(tmp_path, "one", *started(1))
    assert client.get(f"/overview?seen={seen}").status_code == 200


def test_a_name_is_shown_as_text(tmp_path):
    make_run(tmp_path)
    (tmp_path / "runs" / "one" / "run.json").write_text(json.dumps({"name": "<b>&", "created": 1}))
    client = client_of(tmp_path)
    for address in ("/", "/runs/one", "/runs/one/head"):
        text = client.get(address).text
        assert "<b>" not in text
        assert "&lt;b&gt;&amp;" in text


def test_buttons_start_stop_resume_and_cancel(tmp_path):
    make_run(tmp_path)
    with client_of(tmp_path) as client:
        assert 'action="/runs/one/start"' in client.get("/runs/one").text
        assert client.post("/runs/one/start").headers["location"] == "/runs/one"
        wait_until(lambda: trains(tmp_path))
        wait_for_state(client, "running")
        page = client.get("/runs/one").text
        assert 'action="/runs/one/stop"' in page
        assert 'action="/runs/one/cancel"' in page
        assert "/runs/one/start" not in page
        assert client.post("/runs/one/start").status_code == 409
        fragment = client.post("/runs/one/stop", headers=HTMX)
        assert fragment.text.lstrip().startswith("<section")
        wait_for_state(client, "stopped")
        client.post("/runs/one/resume", headers=HTMX)
        wait_for_state(client, "running")
        assert client.post("/runs/one/cancel", headers=HTMX).status_code == 200
        wait_for_state(client, "cancelled")
        assert client.post("/runs/one/stop").status_code == 409


def test_waiting_jobs_are_moved_and_removed(tmp_path):
    client = client_of(tmp_path)  # without its lifespan nothing starts
    board = client.app.state.jobs
    for name in ("a", "b"):
        make_run(tmp_path, name)
        client.post(f"/runs/{name}/start")
    a, b = (job.id for job in board.queue())
    assert client.get("/").text.index(f"/jobs/{a}/remove") < client.get("/").text.index(f"/jobs/{b}/remove")
    assert client.post(f"/jobs/{b}/earlier").headers["location"] == "/"
    assert [job.id for job in board.queue()] == [b, a]
    assert 'id="overview"' in client.post(f"/jobs/{b}/later", headers=HTMX).text
    assert [job.id for job in board.queue()] == [a, b]
    client.post(f"/jobs/{a}/remove")
    assert [job.id for job in board.queue()] == [b]
    assert client.post(f"/jobs/{a}/later").status_code == 409
    assert client.post("/jobs/20260101-000000-00000000/remove").status_code == 404
    assert client.post(f"/jobs/{b}/dance").status_code == 422


def test_the_queue_stops_a_training_so_that_it_saves_and_ends_another_job(tmp_path):
    client = client_of(tmp_path)
    board = client.app.state.jobs
    make_run(tmp_path)
    client.post("/runs/one/start")
    (job,) = board.start_due()
    wait_until(lambda: trains(tmp_path))
    assert f"/jobs/{job.id}/remove" not in client.get("/").text
    client.post(f"/jobs/{job.id}/stop")
    wait_until(lambda: job.state == "stopped")
    waiting = board.submit(kind="validate", run="", argv=["validate"])
    assert f"/jobs/{waiting.id}/remove" in client.get("/").text


def test_problems_and_their_remedy_are_on_the_page(tmp_path):
    make_run(tmp_path)
    error = {"event": "error", "message": "out of memory; lower lora_rank"}
    write_events(tmp_path, "one", *started(2), error, {"event": "run_end", "how": "failed"})
    assert "out of memory; lower lora_rank" in client_of(tmp_path).get("/runs/one").text


def test_from_another_machine_no_path_of_this_one_is_seen(tmp_path):
    make_run(tmp_path)
    secret = "/srv/secret/place"
    error = {"event": "error", "message": f"cannot write {secret}/a; free some"}
    failed = {
        "event": "render_failed",
        "step": 2,
        "render": "a",
        "message": f"no {secret}",
        "traceback": secret,
    }
    write_events(tmp_path, "one", *started(2), failed, error, {"event": "run_end", "how": "failed"})
    remote = client_of(tmp_path, host="0.0.0.0", token="x" * 20)
    remote.headers["authorization"] = "Bearer " + "x" * 20
    for address in ("/runs/one", "/runs/one/head", "/runs/one/history.json", "/"):
        reply = remote.get(address)
        assert reply.status_code == 200
        assert secret not in reply.text
        assert str(tmp_path) not in reply.text
    assert "free some" in remote.get("/runs/one").text
    assert secret in client_of(tmp_path).get("/runs/one/history.json").text


@pytest.mark.parametrize(
    "address", ["/runs/none", "/runs/none/head", "/runs/none/history.json", "/runs/none/events"]
)
def test_a_run_that_is_not_there_is_not_found(tmp_path, address):
    assert client_of(tmp_path).get(address).status_code == 404


def test_the_history_tells_where_the_stream_goes_on(tmp_path):
    make_run(tmp_path)
    path = write_events(tmp_path, "one", *started(2))
    value = client_of(tmp_path).get("/runs/one/history.json").json()
    assert value["columns"]["loss"] == [1.0, 0.5]
    assert value["offset"] == path.stat().st_size


def test_pages_are_in_both_languages(tmp_path):
    make_run(tmp_path)
    write_events(tmp_path, "one", *started(2))
    client = client_of(tmp_path)
    for address in ("/", "/runs/one"):
        assert "意外中断" in client.get(address, headers={"Accept-Language": "zh-CN"}).text
        assert "broken off" in client.get(address).text


def test_no_route_here_takes_the_address_of_a_new_run():
    assert all(not route.path.startswith("/runs/new") for route in router.routes)
