"""The pages of a run's renders and LoRA files; the data are read by `gallery_records` and `gallery_loras`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Literal, cast, get_args

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from longcat_tune.server.gallery_loras import FORMATS, LoraFormat, make_format, read_checkpoints
from longcat_tune.server.gallery_records import read_gallery
from longcat_tune.server.pages import fragment, page
from longcat_tune.server.replies import Refusal
from longcat_tune.server.run_files import run_results, told, workspace_of
from longcat_tune.server.run_folders import name_of
from longcat_tune.server.settings import Settings

View = Literal["steps", "requests", "sheets", "files"]

NUMBERS: Mapping[str, str] = {
    "temporal_consistency": "gallery.consistency",
    "sharpness": "gallery.sharpness",
    "first_frame_psnr": "gallery.first_frame",
}
"""What is measured of a render, and its text."""

router = APIRouter()
_one_conversion = asyncio.Lock()
"""Each loads torch, beside a training run."""


@router.get("/runs/{run}/gallery")
def gallery_page(
    request: Request,
    run: str,
    view: View = "steps",
    weights: str | None = None,
    key: str | None = None,
) -> Response:
    """Show a run's renders by step, by request or as contact sheets, or its LoRA files."""
    results = run_results(request, run)
    gallery = read_gallery(results)
    chosen = gallery.named(weights)
    if weights is not None and chosen is None:
        raise Refusal(404, "gallery.no_weights", name=weights[:80])
    requests = gallery.requests
    if key is not None and key not in requests:
        raise Refusal(404, "gallery.no_request", name=key[:80])
    shown_key = key or next(iter(requests), None)
    return page(
        request,
        "gallery.html",
        run=run,
        run_name=name_of(workspace_of(request), run),
        view=view,
        views=get_args(View),
        gallery=gallery,
        chosen=chosen,
        around=gallery.around(chosen),
        rows=[gallery.beside_base(one, chosen) for one in chosen.all_clips] if chosen is not None else [],
        key=shown_key,
        over_time=[*gallery.over_time(shown_key or "")],
        number_names=NUMBERS,
        checkpoints=read_checkpoints(results) if view == "files" else (),
        formats=FORMATS,
        told=partial(told, request),
    )


@router.get("/runs/{run}/gallery/news")
def gallery_news(request: Request, run: str, stamp: str = "") -> Response:
    """Tell an open page when there is more to see than it shows; 204 otherwise."""
    gallery = read_gallery(run_results(request, run))
    if gallery.stamp == stamp:
        return Response(status_code=204)
    return fragment(request, "gallery_news.html", run=run)


@router.post("/runs/{run}/loras/{name}/{form}")
async def make_lora(request: Request, run: str, name: str, form: LoraFormat) -> Response:
    """Write a LoRA in a format that is not there yet, and show the list again."""
    results = await run_in_threadpool(run_results, request, run)
    settings = cast(Settings, request.app.state.settings)
    async with _one_conversion:
        await make_format(settings.command, results, name, form, told=partial(told, request))
    if "hx-request" not in request.headers:
        return RedirectResponse(f"/runs/{run}/gallery?view=files", 303)
    checkpoints = await run_in_threadpool(read_checkpoints, results)
    return fragment(request, "gallery_files.html", run=run, checkpoints=checkpoints, formats=FORMATS)
