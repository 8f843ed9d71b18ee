"""The page where a base model and LoRAs are tried out: the form, its start frame, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import cast

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, RedirectResponse, Response

from longcat_tune.server import uploads
from longcat_tune.server.gallery import NUMBERS
from longcat_tune.server.jobs import JobBoard
from longcat_tune.server.jobs_record import Job
from longcat_tune.server.pages import fragment, page
from longcat_tune.server.preview_form import find_bases, find_loras, first_values, last_lora, values_again
from longcat_tune.server.preview_progress import LOG_LINES, Progress, progress_of
from longcat_tune.server.preview_request import read_form
from longcat_tune.server.preview_store import Preview, PreviewStore
from longcat_tune.server.replies import Refusal
from longcat_tune.server.run_files import file_below, file_reply, told, workspace_of

MOST_SHOWN = 20
"""Previews on the page, unless all are asked for."""

UPLOADS = "/preview/uploads"
"""Takes more than other routes: the app is told."""
BODY_LIMITS: Mapping[str, int] = {UPLOADS: uploads.MOST_BYTES}

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Shown:
    """A preview and how far it is."""

    preview: Preview
    progress: Progress


@router.get("/preview")
def preview_page(
    request: Request,
    run: str | None = None,
    lora: str | None = None,
    again: str | None = None,
    full: bool = False,
) -> Response:
    """Show the form, and the previews so far."""
    workspace, store = workspace_of(request), _store(request)
    bases, loras = find_bases(workspace), [*find_loras(workspace)]
    if again is not None:
        values = values_again(store.get(again))
    else:
        values = first_values(bases, run=run, lora=lora or last_lora(loras, run))
    found = list(islice(store.list(), None if full else MOST_SHOWN + 1))
    shown = found if full else found[:MOST_SHOWN]
    return page(
        request,
        "preview.html",
        bases=bases,
        loras=loras,
        values=values,
        items=[_look(request, one) for one in shown],
        has_more=len(shown) < len(found),
        upload_limit=uploads.MOST_BYTES // 1_000_000,
        number_names=NUMBERS,
    )


@router.post("/preview")
async def submit_preview(request: Request) -> Response:
    """Put a preview into the queue, and show it."""
    form = await request.form(max_files=0, max_fields=100)
    preview = await run_in_threadpool(
        lambda: _store(request).add(read_form(form, workspace_of(request)), _jobs(request))
    )
    return await run_in_threadpool(_item, request, preview)


@router.post(UPLOADS)
async def upload(request: Request) -> Response:
    """Take a start frame: the body is the file."""
    data = await uploads.receive(request.stream(), stated=request.headers.get("content-length"))
    name = await uploads.keep(data, workspace_of(request))
    return JSONResponse({"name": name, "address": f"{UPLOADS}/{name}"}, 201)


@router.get(f"{UPLOADS}/{{name}}")
def show_upload(request: Request, name: str) -> Response:
    """Send a start frame of a form that is being filled in."""
    return file_reply(request, uploads.uploaded(workspace_of(request), name), name=name)


@router.get("/preview/{preview_id}/live")
def preview_live(request: Request, preview_id: str) -> Response:
    """Show how far a preview is; one that has ended takes the place of its whole card."""
    preview = _store(request).get(preview_id)
    shown = _look(request, preview)
    if shown.progress.is_active:
        return fragment(request, "preview_live.html", item=shown)
    reply = _item(request, preview)
    reply.headers.update({"HX-Retarget": f"#preview-{preview.id}", "HX-Reswap": "outerHTML"})
    return reply


@router.get("/preview/{preview_id}/log")
def preview_log(request: Request, preview_id: str) -> Response:
    """Show the last lines that a preview's job printed."""
    job = _job(request, _store(request).get(preview_id))
    return fragment(request, "preview_log.html", log=told(request, job.log_tail(LOG_LINES) if job else ""))


@router.get("/preview/{preview_id}/start")
def preview_start(request: Request, preview_id: str) -> Response:
    """Send the start frame of a preview."""
    store = _store(request)
    return file_reply(request, store.start(store.get(preview_id)), name=preview_id)


@router.api_route("/preview/{preview_id}/files/{path:path}", methods=["GET", "HEAD"])
def preview_file(request: Request, preview_id: str, path: str) -> Response:
    """Send a file that a preview's job left, or the part of it that a player asks for."""
    store = _store(request)
    found = file_below(workspace_of(request), store.results(store.get(preview_id)), path)
    return file_reply(request, found, name=f"{preview_id}-{found.name}")


@router.post("/preview/{preview_id}/cancel")
def cancel_preview(request: Request, preview_id: str) -> Response:
    """End a preview that waits or renders."""
    preview = _store(request).get(preview_id)
    _jobs(request).cancel(preview.job)
    return _item(request, preview)


@router.post("/preview/{preview_id}/delete")
def delete_preview(request: Request, preview_id: str) -> Response:
    """Remove a preview that has ended, and all that was rendered for it."""
    store = _store(request)
    preview = store.get(preview_id)
    job = _job(request, preview)
    if job is not None and job.active:
        raise Refusal(409, "preview.still_active")
    store.delete(preview)
    return Response() if "hx-request" in request.headers else RedirectResponse("/preview", 303)


def _item(request: Request, preview: Preview) -> Response:
    """The card of a preview; without htmx, the page that it is on."""
    if "hx-request" not in request.headers:
        return RedirectResponse(f"/preview#preview-{preview.id}", 303)
    return fragment(request, "preview_item.html", item=_look(request, preview), number_names=NUMBERS)


def _look(request: Request, preview: Preview) -> Shown:
    results = _store(request).results(preview)
    return Shown(preview, progress_of(_job(request, preview), results, told=partial(told, request)))


def _store(request: Request) -> PreviewStore:
    return PreviewStore(workspace_of(request))


def _jobs(request: Request) -> JobBoard:
    return cast(JobBoard, request.app.state.jobs)


def _job(request: Request, preview: Preview) -> Job | None:
    """The job of a preview; None where it is not known any more."""
    try:
        return _jobs(request).get(preview.job)
    except Refusal:
        return None
