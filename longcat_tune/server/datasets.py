"""The pages of datasets: the list, a new one, one of them with its forms, and the writing of its file.

Knows requests and templates; what a data file is and what its clips are lies in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Form, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from longcat_tune.server.datasets_check import FRAMERATE
from longcat_tune.server.datasets_edit import (
    Entry,
    Starts,
    folder_text,
    new_entry,
    paired,
    removed,
    replaced,
)
from longcat_tune.server.datasets_file import (
    DataFile,
    Judged,
    Problem,
    delete_data_file,
    judge,
    judge_file,
    list_names,
    read_data_file,
    text_of,
    write_data_file,
)
from longcat_tune.server.datasets_folders import look
from longcat_tune.server.datasets_form import entry_of, fields_of, groups_for, texts_of
from longcat_tune.server.datasets_work import DatasetWork
from longcat_tune.server.pages import fragment, page
from longcat_tune.server.replies import Refusal
from longcat_tune.server.workspace import Workspace, slug


@asynccontextmanager
async def _ended(app: FastAPI) -> AsyncIterator[None]:
    """What is made in the background ends with the server."""
    yield
    await app.state.dataset_work.close()


router = APIRouter(lifespan=_ended)

Rate = Annotated[float, Query(gt=0, le=240, allow_inf_nan=False)]
"""Frames per second of the run that a dataset is judged for."""
Text = Annotated[str, Form()]


def work_of(request: Request) -> DatasetWork:
    """What is made in the background for the datasets of this server."""
    work = request.app.state.dataset_work
    assert isinstance(work, DatasetWork)
    return work


@router.get("/datasets")
def all_datasets(request: Request) -> Response:
    """Every dataset, and the form of a new one."""
    workspace = work_of(request).workspace
    files = [read_data_file(workspace, name) for name in list_names(workspace)]
    return page(request, "datasets.html", files=files, place=look(workspace, ""), picker="new")


@router.get("/datasets/-/folders")
def folders(
    request: Request,
    at: Annotated[str, Query(max_length=4096)] = "",
    picker: Annotated[str, Query(pattern=r"^[a-z]{1,20}-?[0-9]{0,4}$")] = "new",
) -> Response:
    """One folder of the workspace, to be chosen or to go on from."""
    place = look(work_of(request).workspace, at)
    return fragment(request, "datasets_folders.html", place=place, picker=picker)


@router.post("/datasets")
def make_dataset(
    request: Request,
    folder: Text = "",
    name: Text = "",
    kind: Annotated[Literal["video", "image"], Form()] = "video",
) -> Response:
    """Write a data file with one entry over a folder."""
    workspace = work_of(request).workspace
    chosen = _chosen(workspace, folder)
    identifier = slug(name or chosen.name)
    entry = new_entry(chosen, workspace, kind=kind, others=())
    _write(workspace, identifier, [entry], version=None)
    return _go(request, f"/datasets/{identifier}")


@router.get("/datasets/{name}")
def one_dataset(request: Request, name: str, rate: Rate = FRAMERATE) -> Response:
    """One dataset: its entries with their clips, forms and findings, and the text of its file."""
    work = work_of(request)
    dataset = work.dataset(name, rate)
    forms = [_form(dataset.data, entry, problems=dataset.judged.problems) for entry in dataset.data.entries]
    return page(
        request,
        "datasets_one.html",
        dataset=dataset,
        data=dataset.data,
        forms=forms,
        problems=_of_whole(dataset.judged, dataset.data),
        place=look(work.workspace, ""),
        rate=f"{rate:g}",
    )


@router.post("/datasets/{name}/entries")
def add_entry(
    request: Request,
    name: str,
    version: Text,
    folder: Text = "",
    kind: Annotated[Literal["video", "image", "eval"], Form()] = "video",
) -> Response:
    """Add an entry over another folder."""
    workspace = work_of(request).workspace
    data = read_data_file(workspace, name)
    entry = new_entry(_chosen(workspace, folder), workspace, kind=kind, others=data.entries)
    _write(workspace, name, [*data.entries, entry], version=version)
    return _go(request, f"/datasets/{name}")


@router.get("/datasets/{name}/entry")
def entry_form(request: Request, name: str, number: Annotated[int, Query(ge=1)]) -> Response:
    """The form of one entry."""
    workspace = work_of(request).workspace
    data = read_data_file(workspace, name)
    problems = judge_file(workspace, name, data.path).problems
    form = _form(data, _numbered(data, number), problems=problems)
    return fragment(request, "datasets_entry.html", data=data, form=form, is_open=False)


@router.get("/datasets/{name}/pair")
def pair_form(request: Request, name: str, number: Annotated[int, Query(ge=1)]) -> Response:
    """What the clips of an entry start from, as a form."""
    workspace = work_of(request).workspace
    data = read_data_file(workspace, name)
    entry = _numbered(data, number)
    form = _form(data, entry, problems=())
    starts = "folder" if entry.get("conditioning_data") else "none"
    if starts == "none" and form["texts"]["is_i2v"] == "true":
        starts = "own"
    place, picker = look(workspace, ""), f"pair-{number}"
    return fragment(
        request, "datasets_pair.html", data=data, form=form, place=place, picker=picker, starts=starts
    )


@router.post("/datasets/{name}/entry")
async def change_entry(request: Request, name: str, entry: str) -> Response:
    """Change keys of an entry; what the schema refuses is told beside its field, and nothing is written."""
    sent = await request.form()
    texts = {key: value for key, value in sent.items() if isinstance(value, str)}
    return await run_in_threadpool(_changed, request, name, entry, texts)


def _changed(request: Request, name: str, entry: str, texts: dict[str, str]) -> Response:
    workspace = work_of(request).workspace
    data = read_data_file(workspace, name)
    before = data.entry(entry)
    # A box that is not ticked is not sent.
    boxes = [one.key for group in groups_for(before.get("dataset_type")) for one in fields_of(group)]
    texts |= {key: "false" for key in boxes if f"box:{key}" in texts and key not in texts}
    changed = entry_of(texts, before)
    entries = replaced(data, entry, changed)
    judged = judge(workspace, name, text_of(entries))
    if judged.problems:
        form = _form(data, before, problems=judged.problems, texts=texts, renamed=str(changed.get("id", "")))
        reply = fragment(request, "datasets_entry.html", status=422, data=data, form=form, is_open=True)
        return _in_place(reply)
    write_data_file(workspace, name, text_of(entries), version=texts.get("version", ""))
    return _go(request, f"/datasets/{name}")


@router.post("/datasets/{name}/entry/remove")
def remove_entry(request: Request, name: str, entry: str, version: Text) -> Response:
    """Take an entry out of the list; its files stay."""
    workspace = work_of(request).workspace
    data = read_data_file(workspace, name)
    data.entry(entry)
    if len(data.entries) == 1:
        raise Refusal(409, "datasets.last_entry", entry=entry, name=name)
    _write(workspace, name, removed(data, entry), version=version)
    return _go(request, f"/datasets/{name}")


@router.post("/datasets/{name}/pair")
def pair(
    request: Request,
    name: str,
    entry: str,
    version: Text,
    starts: Annotated[Starts, Form()],
    folder: Text = "",
) -> Response:
    """Say what the clips of an entry start from; start images are paired with them by name."""
    workspace = work_of(request).workspace
    data = read_data_file(workspace, name)
    images = folder_text(_chosen(workspace, folder), workspace) if starts == "folder" else None
    _write(workspace, name, paired(data, entry, starts, images), version=version)
    return _go(request, f"/datasets/{name}")


@router.post("/datasets/{name}/raw")
def write_text(request: Request, name: str, version: Text, text: Text) -> Response:
    """Write the text of the file as it is, comments and all, if it is sound."""
    workspace = work_of(request).workspace
    data = read_data_file(workspace, name)
    plain = text.replace("\r\n", "\n").rstrip() + "\n"
    judged = judge(workspace, name, plain)
    if judged.problems:
        context = {"data": data, "text": text, "problems": judged.problems, "is_open": True}
        return _in_place(fragment(request, "datasets_raw.html", status=422, **context))
    write_data_file(workspace, name, plain, version=version)
    return _go(request, f"/datasets/{name}")


@router.post("/datasets/{name}/delete")
def delete_dataset(request: Request, name: str, version: Text) -> Response:
    """Delete the data file; the clips and their captions stay."""
    delete_data_file(work_of(request).workspace, name, version=version)
    return _go(request, "/datasets")


def _numbered(data: DataFile, number: int) -> Entry:
    if number > len(data.entries):
        raise Refusal(404, "datasets.no_entry", entry=number, name=data.name)
    return data.entries[number - 1]


def _chosen(workspace: Workspace, folder: str) -> Any:
    if not folder:
        raise Refusal(400, "datasets.no_folder")
    return workspace.inside(folder, kind="folder")


def _write(workspace: Workspace, name: str, entries: Sequence[Entry], *, version: str | None) -> None:
    """Write entries that must be sound.

    Raises:
        Refusal: they are not; says all that is wrong.
    """
    text = text_of(entries)
    judged = judge(workspace, name, text)
    if judged.problems:
        raise Refusal(400, "; ".join(problem.text for problem in judged.problems))
    write_data_file(workspace, name, text, version=version)


def _form(
    data: DataFile,
    entry: Entry,
    *,
    problems: Sequence[Problem],
    texts: dict[str, str] | None = None,
    renamed: str = "",
) -> dict[str, Any]:
    """What the form of one entry is made of.

    Args:
        data: the file.
        entry: as the file has it.
        problems: of the whole file.
        texts: of the fields as they were sent; None: as the file has them.
        renamed: the id that was sent.
    """
    identifier = str(entry.get("id", ""))
    number = data.entries.index(entry) + 1
    names = {identifier, renamed, f"entry {number}"} - {""}
    own = [problem for problem in problems if problem.entry in names]
    shown = texts_of(entry) | (texts or {})
    groups = groups_for(shown.get("dataset_type"))
    fields = [one for group in groups for one in fields_of(group)]
    keys = {one.key for one in fields}
    return {
        "id": identifier,
        "number": number,
        "entry": entry,
        "texts": shown,
        "set_keys": {one.key for one in fields if shown[one.key] and not one.is_plain(shown[one.key])},
        "groups": {group: fields_of(group) for group in groups},
        "errors": {one.key: one.text.removeprefix(f"{one.entry}: ") for one in own if one.key in keys},
        "problems": [problem.text for problem in own if problem.key not in keys],
    }


def _of_whole(judged: Judged, data: DataFile) -> list[str]:
    """Problems that belong to no entry."""
    names = {str(entry.get("id", "")) for entry in data.entries}
    names |= {f"entry {number}" for number in range(1, len(data.entries) + 1)}
    return [problem.text for problem in judged.problems if problem.entry not in names]


def _go(request: Request, address: str) -> Response:
    """Show another page, or the same one anew."""
    if "hx-request" in request.headers:
        return Response(headers={"HX-Redirect": address})
    return RedirectResponse(address, 303)


def _in_place(reply: Response) -> Response:
    """Let a form that was refused come back where it stands, with what is wrong in it."""
    reply.headers.update({"HX-Retarget": "this", "HX-Reswap": "outerHTML"})
    return reply
