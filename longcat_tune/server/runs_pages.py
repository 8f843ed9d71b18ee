"""The pages of all runs and of one, the buttons on them, and what their curves are drawn from."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Form, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, RedirectResponse, Response

from longcat_tune.server.events import EventsReader
from longcat_tune.server.events_stream import RunStream, RunWatch, Streams, redacted
from longcat_tune.server.jobs import JobBoard
from longcat_tune.server.pages import fragment, page
from longcat_tune.server.run_files import told
from longcat_tune.server.runs import Run, RunBook

FIRST_LINES = 100
"""Of the log, before the stream brings more."""
LARGEST_OFFSET = 2**62
LONGEST_IDENTITY = 64

Offset = Annotated[int, Query(ge=0, le=LARGEST_OFFSET)]
LastEventId = Annotated[int | None, Header(ge=0, le=LARGEST_OFFSET)]

router = APIRouter()


@router.get("/")
def home(request: Request) -> Response:
    """Show all runs, and the queue."""
    return page(request, "home.html", **_overview(request))


@router.get("/overview")
def overview(request: Request, seen: str = "") -> Response:
    """Tell an open page what has changed; 204 while nothing has."""
    shown = _overview(request)
    if shown["stamp"] == seen:
        return Response(status_code=204)
    return fragment(request, "home_list.html", **shown)


@router.post("/jobs/{job}/{action}")
def change_queue(
    request: Request, job: str, action: Literal["earlier", "later", "stop", "remove"]
) -> Response:
    """Move a job in the queue, let it save and end, or end it at once."""
    jobs = jobs_of(request)
    if action == "remove":
        jobs.cancel(job)
    elif action == "stop":
        jobs.stop(job)
    else:
        jobs.move(job, -1 if action == "earlier" else 1)
    if "hx-request" in request.headers:
        return fragment(request, "home_list.html", **_overview(request))
    return RedirectResponse("/", 303)


@router.get("/runs/{run}")
def run_page(request: Request, run: str) -> Response:
    """Show a run as it is, and then as it goes on."""
    found = book_of(request).get(run)
    shown = _head(request, found)
    job = shown["told"].job
    log = "" if job is None else told(request, job.log_tail(FIRST_LINES))
    return page(request, "run.html", log=log, **shown)


@router.get("/runs/{run}/head")
def run_head(request: Request, run: str) -> Response:
    """Show state, problems and buttons of a run again."""
    return fragment(request, "run_head.html", **_head(request, book_of(request).get(run)))


@router.post("/runs/{run}/{action}")
def change_run(
    request: Request,
    run: str,
    action: Literal["start", "resume", "stop", "cancel"],
    device: Annotated[str, Form()] = "",
) -> Response:
    """Start or end a run; one that was stopped goes on where it was saved."""
    book, jobs = book_of(request), jobs_of(request)
    found = book.get(run)
    if action == "stop":
        jobs.stop(book.active_job(found).id)
    elif action == "cancel":
        jobs.cancel(book.active_job(found).id)
    else:
        book.start(found, device or None)
    if "hx-request" in request.headers:
        return fragment(request, "run_head.html", **_head(request, found))
    return RedirectResponse(f"/runs/{found.id}", 303)


@router.get("/runs/{run}/history.json")
def run_history(request: Request, run: str) -> Response:
    """Tell what a run has come to, and where its stream of events goes on."""
    history, offset, identity = book_of(request).history(book_of(request).get(run))
    value = redacted(history, partial(told, request)) | {"offset": offset, "identity": identity}
    return JSONResponse(value)


@router.get("/runs/{run}/events")
async def run_events(
    request: Request,
    run: str,
    after: Offset = 0,
    identity: Annotated[str, Query(max_length=LONGEST_IDENTITY)] = "",
    last_event_id: LastEventId = None,
) -> Response:
    """Tell what happens to a run from a place in its events on, for as long as somebody listens."""
    book = book_of(request)
    found = await run_in_threadpool(book.get, run)
    place = after if last_event_id is None else last_event_id
    reader = EventsReader(found.events, offset=place, identity=identity)
    watch = RunWatch(book, found, reader, partial(told, request))
    streams = cast(Streams, request.app.state.streams)
    # Nothing may come between taking the place and the reply, which gives it back.
    streams.take()
    return RunStream(watch, streams)


def book_of(request: Request) -> RunBook:
    """The runs."""
    return cast(RunBook, request.app.state.runs)


def jobs_of(request: Request) -> JobBoard:
    """The jobs."""
    return cast(JobBoard, request.app.state.jobs)


def _overview(request: Request) -> dict[str, Any]:
    statuses, jobs = book_of(request).statuses(), jobs_of(request)
    queue = jobs.queue()
    running = tuple((job, job.state) for job in jobs.active() if job not in queue)
    names = {status.run.id: status.run.name for status in statuses}
    devices = {one.id: one.name for one in jobs.devices} if running else {}
    stamp = sha256(repr((statuses, queue, running)).encode()).hexdigest()[:16]
    return {
        "statuses": statuses,
        "queue": queue,
        "running": running,
        "names": names,
        "devices": devices,
        "stamp": stamp,
    }


def _head(request: Request, run: Run) -> dict[str, Any]:
    status = book_of(request).status(run)
    redact = partial(told, request)
    return {
        "run": run,
        "told": status,
        "problems": [redact(text) for text in status.problems],
        "devices": jobs_of(request).devices if status.can_start else (),
    }
