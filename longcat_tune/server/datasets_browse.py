"""The clips of datasets: thumbnails, what becomes of each, captions edited in place, clips that play.

Knows requests and templates; starts what is made in the background, and shows what has been made.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query
from fastapi import Path as PathParameter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.server.datasets import Rate, work_of
from longcat_tune.server.datasets_captions import CaptionChangedError, save_caption
from longcat_tune.server.datasets_check import FRAMERATE
from longcat_tune.server.datasets_clips import Card
from longcat_tune.server.datasets_work import Dataset, DatasetWork, caption_of, is_apart
from longcat_tune.server.pages import fragment
from longcat_tune.server.replies import Refusal
from longcat_tune.server.thumbnails import NAME_DIGITS, Pictured

router = APIRouter()

Show = Literal["all", "used", "refused", "idle"]

ON_A_PAGE = 36
PLAYED = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime"}
"""Endings of files that browsers may play; what they then say is shown."""
KEPT_BY_BROWSER = "private, max-age=604800, immutable"
"""Of pictures whose address changes with their clip."""


@dataclass(frozen=True, slots=True)
class Look:
    """What of a dataset's clips is shown.

    Attributes:
        entry: id.
        show: which of them.
        search: part of a name or caption.
        number: of the page, from 1.
    """

    entry: str
    show: Show
    search: str
    number: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture and the folder of its thumbnail.

    Attributes:
        picture: as the index tells of it.
        place: name of the folder.
    """

    picture: Pictured
    place: str


@router.post("/datasets/{name}/work")
async def start_work(request: Request, name: str, rate: Rate = FRAMERATE, again: bool = False) -> Response:
    """Make the thumbnails and the check, where something changed since; then tell how far they are."""
    work = work_of(request)
    dataset = await asyncio.to_thread(work.dataset, name, rate)
    for entry in dataset.judged.entries:
        if entry.id in dataset.folders and entry.dataset_type != "text_embeds":
            await work.thumbnails.start(dataset.folders[entry.id], apart=is_apart(entry))
    await _start_check(work, dataset, rate, again=again)
    # In a thread, as of all pages: the report of thousands of clips is long.
    return await asyncio.to_thread(_state, request, work, dataset, rate)


@router.get("/datasets/{name}/state")
def state(request: Request, name: str, rate: Rate = FRAMERATE) -> Response:
    """How far the check is; asked for again and again until it has ended."""
    work = work_of(request)
    reply = _state(request, work, work.dataset(name, rate), rate)
    if not work.checks.is_running(name):
        reply.headers["HX-Trigger"] = "checked"
    return reply


@router.get("/datasets/{name}/findings")
def findings(request: Request, name: str, entry: str, rate: Rate = FRAMERATE) -> Response:
    """What the check says of one entry as a whole: counts, buckets, faults and notices."""
    dataset = work_of(request).dataset(name, rate)
    dataset.entry(entry)
    return fragment(request, "datasets_findings.html", dataset=dataset, entry=entry, rate=f"{rate:g}")


@router.get("/datasets/{name}/clips")
def clips(
    request: Request,
    name: str,
    entry: str,
    show: Show = "all",
    search: Annotated[str, Query(max_length=200)] = "",
    number: Annotated[int, Query(ge=1, le=100_000)] = 1,
    rate: Rate = FRAMERATE,
) -> Response:
    """One page of an entry's clips."""
    work = work_of(request)
    dataset = work.dataset(name, rate)
    found, folder = dataset.entry(entry)
    apart = is_apart(found)
    index = work.index(found, folder)
    every = work.cards(dataset, entry)
    wanted = [card for card in every if _is_wanted(card, show, search)]
    last = max(1, -(-len(wanted) // ON_A_PAGE))
    number = min(number, last)
    shown = wanted[(number - 1) * ON_A_PAGE : number * ON_A_PAGE]
    made = sum(card.picture.thumbnail is not None or card.picture.reason is not None for card in every)
    running = work.thumbnails.is_running(folder, apart=apart)
    failure = work.thumbnails.failure(folder, apart=apart)
    starts = _start_images(work, dataset, found)
    return fragment(
        request,
        "datasets_clips.html",
        dataset=dataset,
        entry=found,
        cards=[(card, caption_of(found, card.picture), starts.get(card.start)) for card in shown],
        place=work.thumbnails.place(folder, apart=apart).name,
        counts={one: sum(card.state == one for card in every) for one in ("used", "refused", "idle")},
        look=Look(entry, show, search, number),
        last=last,
        total=len(every),
        matching=len(wanted),
        made=made,
        pending=running or (index is None and failure is None),
        failure=failure,
        rate=f"{rate:g}",
        played=PLAYED,
    )


@router.get("/datasets/-/thumbnails/{place}/{picture}")
def thumbnail(
    request: Request,
    place: Annotated[str, PathParameter(pattern=f"^[0-9a-f]{{{NAME_DIGITS}}}$")],
    picture: Annotated[str, PathParameter(pattern=r"^[0-9a-f]{32}\.jpg$")],
) -> Response:
    """The small picture of a clip."""
    file = work_of(request).thumbnails.store / place / picture
    if not file.is_file():
        raise Refusal(404, "datasets.no_thumbnail")
    return FileResponse(file, media_type="image/jpeg", headers={"Cache-Control": KEPT_BY_BROWSER})


@router.get("/datasets/{name}/play")
def play(request: Request, name: str, entry: str, clip: str) -> Response:
    """The clip itself, for the browser to play; parts of it where it asks for parts."""
    work = work_of(request)
    picture = work.picture(work.dataset(name, FRAMERATE), entry, clip)
    kind = PLAYED.get(picture.file.suffix.lower())
    if kind is None or picture.kind != "video":
        raise Refusal(415, "datasets.not_played", clip=picture.name)
    return FileResponse(picture.file, media_type=kind)


@router.get("/datasets/{name}/caption")
def caption(request: Request, name: str, entry: str, clip: str, rate: Rate = FRAMERATE) -> Response:
    """The caption of a clip as its file has it now."""
    work = work_of(request)
    dataset = work.dataset(name, rate)
    found, _ = dataset.entry(entry)
    return _caption(request, dataset, found, work.picture(dataset, entry, clip), rate)


@router.post("/datasets/{name}/caption")
async def write_caption(
    request: Request,
    name: str,
    entry: str,
    clip: str,
    version: Annotated[str, Form(max_length=64)],
    text: Annotated[str, Form()] = "",
    rate: Rate = FRAMERATE,
) -> Response:
    """Write the caption of a clip beside it; where the file is another one by now, both are shown instead."""
    work = work_of(request)
    dataset = await asyncio.to_thread(work.dataset, name, rate)
    found, _ = dataset.entry(entry)
    picture = await asyncio.to_thread(work.picture, dataset, entry, clip)
    view = await asyncio.to_thread(caption_of, found, picture)
    if view.source != "textfile":
        raise Refusal(409, "datasets.caption_not_read", entry=entry, source=view.source or "null")
    try:
        await asyncio.to_thread(save_caption, work.workspace, view.file, text, version=version)
    except CaptionChangedError as error:
        now = {"mine": text, "theirs": error.now}
        reply = await asyncio.to_thread(
            _caption, request, dataset, found, picture, rate, status=409, conflict=now
        )
        reply.headers.update({"HX-Retarget": "this", "HX-Reswap": "outerHTML"})
        return reply
    await _start_check(work, dataset, rate, again=False)
    reply = await asyncio.to_thread(_caption, request, dataset, found, picture, rate, saved=True)
    reply.headers["HX-Trigger"] = "checking"
    return reply


async def _start_check(work: DatasetWork, dataset: Dataset, rate: float, *, again: bool) -> None:
    """Check where something changed since the last time, or in any case."""
    if not dataset.judged.entries:
        return
    content = await asyncio.to_thread(work.checks.content, dataset.data, dataset.judged.entries, rate)
    name = dataset.data.name
    if again or not await asyncio.to_thread(work.checks.is_of, name, rate, content):
        work.checks.start(name, rate, content)


def _state(request: Request, work: DatasetWork, dataset: Dataset, rate: float) -> Response:
    running = work.checks.is_running(dataset.data.name)
    return fragment(request, "datasets_state.html", dataset=dataset, running=running, rate=f"{rate:g}")


def _caption(
    request: Request,
    dataset: Dataset,
    entry: DatasetEntry,
    picture: Pictured,
    rate: float,
    *,
    status: int = 200,
    saved: bool = False,
    conflict: dict[str, Any] | None = None,
) -> Response:
    context = {"data": dataset.data, "entry": entry, "picture": picture, "view": caption_of(entry, picture)}
    more = {"rate": f"{rate:g}", "saved": saved, "conflict": conflict, "captions": ()}
    return fragment(request, "datasets_caption.html", status=status, **context, **more)


def _is_wanted(card: Card, show: Show, search: str) -> bool:
    if show != "all" and card.state != show:
        return False
    texts = (card.picture.name, *card.captions)
    return not search or any(search.casefold() in text.casefold() for text in texts)


def _start_images(work: DatasetWork, dataset: Dataset, entry: DatasetEntry) -> dict[str, Shown]:
    """The start images of an entry by their files."""
    found = {}
    for identifier in entry.conditioning_data:
        if identifier in dataset.folders:
            partner, folder = dataset.entry(identifier)
            index = work.index(partner, folder)
            place = work.thumbnails.place(folder, apart=is_apart(partner)).name
            for picture in index.clips if index is not None else ():
                found[str(picture.file)] = Shown(picture, place)
    return found
