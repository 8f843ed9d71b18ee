"""Puts the web UI together: the guard in front, every feature's routes, and what a failure looks like."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from longcat_tune.errors import UserError
from longcat_tune.server import (
    datasets,
    datasets_browse,
    gallery,
    new_run,
    preview,
    run_files,
    runs_pages,
    security,
)
from longcat_tune.server.datasets_work import DatasetWork
from longcat_tune.server.events_stream import Streams
from longcat_tune.server.jobs import JobBoard
from longcat_tune.server.pages import LANGUAGE_COOKIE, page, refusal_reply
from longcat_tune.server.preflight import Preflights
from longcat_tune.server.replies import Refusal
from longcat_tune.server.runs import RunBook
from longcat_tune.server.settings import Settings
from longcat_tune.server.texts import LANGUAGES
from longcat_tune.server.workspace import Workspace

STATIC = Path(__file__).parent / "static"
YEAR = 365 * 24 * 3600

ROUTERS: tuple[APIRouter, ...] = (
    new_run.router,
    gallery.router,
    run_files.router,
    preview.router,
    runs_pages.router,
    datasets_browse.router,
    datasets.router,
)
"""Of every feature; /runs/new comes before /runs/{run}."""
BODY_LIMITS: Mapping[str, int] = preview.BODY_LIMITS
"""Routes that take more than `security.BODY_LIMIT` bytes."""

router = APIRouter()


def create_app(settings: Settings) -> FastAPI:
    """The web UI of one workspace.

    Args:
        settings: what the server was started with.
    """
    # Some systems list scripts as plain text, which the browser then refuses to run.
    mimetypes.add_type("text/javascript", ".js")
    workspace = Workspace(settings.roots)
    jobs = JobBoard(workspace.state / "jobs", command=settings.command, working_folder=workspace.home)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lambda _: jobs.scheduling())
    app.state.settings = settings
    app.state.workspace = workspace
    app.state.jobs = jobs
    app.state.dataset_work = DatasetWork.of(settings, workspace)
    app.state.runs = RunBook(workspace, jobs)
    app.state.streams = Streams()
    app.state.preflights = Preflights(settings.command, workspace.home, workspace.state / "drafts")
    app.add_middleware(security.Guard, settings=settings, body_limits=BODY_LIMITS)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(UserError, _failed)
    app.add_exception_handler(Exception, _broken)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for each in (router, *ROUTERS):
        app.include_router(each)
    return app


@router.post("/language/{language}")
async def choose_language(request: Request, language: str) -> Response:
    """Remember the language, and go back to the page where it was chosen."""
    if language not in LANGUAGES:
        raise Refusal(404, "app.unknown_language", name=language[:80])
    back = request.query_params.get("back", "/")
    parts = urlsplit(back)
    # Nowhere but to a page of ours: browsers take //host and \\host for other sites.
    ours = not parts.scheme and not parts.netloc and back.startswith("/") and "\\" not in back
    reply = RedirectResponse(back if ours else "/", 303)
    reply.set_cookie(LANGUAGE_COOKIE, language, YEAR, httponly=True, samesite="strict")
    return reply


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refusal):
        return refusal_reply(request, error)
    if error.status_code == 405:
        refusal = Refusal(405, "app.wrong_method", method=request.method)
    elif error.status_code == 404:
        refusal = Refusal(404, "app.no_page")
    else:
        refusal = Refusal(error.status_code, "app.malformed", problem=error.detail)
    refusal.headers = error.headers
    return refusal_reply(request, refusal)


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return refusal_reply(request, Refusal(422, "app.malformed", problem="; ".join(problems)))


async def _failed(request: Request, error: Exception) -> Response:
    return refusal_reply(request, Refusal(400, run_files.told(request, str(error))))


async def _broken(request: Request, _error: Exception) -> Response:
    """A bug: its traceback goes to the console; this reply passes outside the guard."""
    reply = page(request, "app_error.html", status=500, text=None, code=500)
    reply.headers.update(security.HEADERS)
    return reply
