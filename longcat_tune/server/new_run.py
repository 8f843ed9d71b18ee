"""Routes of a run's config: the form of a new run and of one that exists, its checks, saving and starting.

What is wrong with a config is the schema's and `check`'s to say; here it is only carried.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import PurePosixPath
from secrets import token_hex
from typing import Any, Literal, cast

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from longcat_tune.server.jobs import JobBoard
from longcat_tune.server.pages import fragment, language_of, page
from longcat_tune.server.preflight import Preflights, SupersededError
from longcat_tune.server.preflight_device import card_mib, conditions
from longcat_tune.server.preflight_report import length_of, memory_peak, memory_rows, shown_problems
from longcat_tune.server.presets import (
    FLAVOUR,
    PRESETS,
    STARTS,
    fitting_presets,
    preset_for,
    with_flavour,
    with_preset,
)
from longcat_tune.server.replies import Refusal
from longcat_tune.server.run_config import Finding, Judged, judge, path_problems, placed, text_of_values
from longcat_tune.server.run_files import told, workspace_of
from longcat_tune.server.run_folders import (
    RESULTS,
    VERSION_DIGITS,
    change_run,
    config_of,
    config_version,
    create_run,
    dataset_files,
    existing_run,
    name_of,
)
from longcat_tune.server.runs_pages import book_of, jobs_of
from longcat_tune.server.schema_form import (
    CHOSEN_FIRST,
    changed_values,
    fields_of_values,
    form_field,
    form_sections,
    values_of_fields,
)
from longcat_tune.server.workspace import NAME, Workspace

DATA = "data_backend_config"
DRAFT = Field(pattern=r"^[0-9a-f]{16}$")
RUN = Field(default=None, max_length=60)
MOST_FIELDS = 200

router = APIRouter()


class Edit(BaseModel):
    """What was changed on the page, and where.

    Attributes:
        source: of the change.
        fields: text of every field by key.
        text: of the config.
        choice: the preset or the flavour that was chosen.
    """

    model_config = ConfigDict(extra="forbid")
    source: Literal["form", "text", "preset", "flavour"]
    fields: dict[str, str] = Field(default={}, max_length=MOST_FIELDS)
    text: str
    choice: str = ""


class Draft(BaseModel):
    """A config that is being written.

    Attributes:
        draft: which page it is on; its second half is the version of the config that the page began with.
        text: of the config.
    """

    model_config = ConfigDict(extra="forbid")
    draft: str = DRAFT
    text: str


class Checking(Draft):
    """A config that shall be checked.

    Attributes:
        run: id of the run that it belongs to; None: of a new one.
    """

    run: str | None = RUN


class Saving(Draft):
    """A config that shall be kept.

    Attributes:
        name: of a new run.
        start: whether to train.
    """

    name: str = ""
    start: bool = False


@router.get("/runs/new")
def new_run(request: Request, dataset: str = "", like: str = "") -> Response:
    """The form of a new run.

    Args:
        request: asks for the page.
        dataset: name of the dataset file to begin with.
        like: id of a run whose config is copied.
    """
    workspace = workspace_of(request)
    datasets = dataset_files(workspace)
    values = config_of(workspace, like) if like else _start_of(jobs_of(request))
    chosen = f"datasets/{dataset}.json"
    if chosen in datasets:
        values[DATA] = chosen
    elif len(datasets) == 1:
        values.setdefault(DATA, datasets[0])
    return _form_page(request, values, run=None)


@router.get("/runs/{run}/config")
def edit_run(request: Request, run: str, saved: str = "") -> Response:
    """The form of a run that exists.

    Args:
        request: asks for the page.
        run: its id.
        saved: not empty where it has just been saved.
    """
    values = config_of(workspace_of(request), run)
    locked = bool(jobs_of(request).active(run))
    return _form_page(request, values, run=run, locked=locked, saved=bool(saved))


@router.post("/runs/new/edit")
def edit(request: Request, change: Edit) -> dict[str, Any]:
    """Bring form and text together again after either was changed, and say what is wrong."""
    language = language_of(request)
    before = judge(change.text, language)
    if change.source != "text" and before.values is None:
        # The form knows only its own keys; the rest of the text would be lost.
        return _edited(before, workspace_problems=())
    text = change.text
    if change.source != "text":
        values = _changed(change, before.values or {})
        text = text_of_values({**values, **before.others})
    now = judge(text, language)
    found = path_problems(now.values or {}, workspace_of(request), language)
    reply = _edited(now, workspace_problems=found)
    return reply | ({} if change.source == "text" else {"text": text})


@router.post("/runs/new/check")
async def check(request: Request, draft: Checking) -> dict[str, Any]:
    """Let `check` look at a config; the reply holds what it found as a part of the page.

    Raises:
        Refusal: a path leads out of the workspace.
    """
    values = await run_in_threadpool(_sound_values, request, draft)
    workspace = workspace_of(request)
    config = await run_in_threadpool(_placed_text, workspace, draft.run, values)
    around = await run_in_threadpool(conditions, jobs_of(request))
    preflights = preflights_of(request)
    content = await run_in_threadpool(_content, request, draft.run, values)
    try:
        outcome = await preflights.check(draft.draft, config, content=content, conditions=around)
    except SupersededError:
        return {"superseded": True, "passed": False, "html": ""}
    clean = partial(told, request)
    html = fragment(
        request,
        "new_run_check.html",
        outcome=outcome,
        said=clean(outcome.said),
        report=outcome.report or {},
        problems=shown_problems(outcome.report or {}, clean),
        memory=memory_rows(outcome.report or {}),
        peak=memory_peak(outcome.report or {}),
        length=length_of(outcome.report or {}),
        busy=around.busy,
        limit=preflights.time_limit,
        clean=clean,
        dataset_page=_dataset_page(values),
    )
    return {"superseded": False, "passed": outcome.passed, "html": bytes(html.body).decode()}


@router.post("/runs/new")
def save_new(request: Request, saving: Saving) -> dict[str, str]:
    """Make a run, and start it if asked.

    Raises:
        Refusal: something is wrong with the config, or it shall start and was not checked as it is.
    """
    values = _sound_values(request, saving)
    _require_checked(request, saving, values, run=None)
    run = create_run(workspace_of(request), values, name=saving.name)
    return _saved(request, saving, run)


@router.post("/runs/{run}/config")
def save_changes(request: Request, run: str, saving: Saving) -> dict[str, str]:
    """Change the config of a run that is not running, and start it if asked.

    Raises:
        Refusal: it runs, something is wrong with the config, it was changed elsewhere meanwhile, or it shall
            start and was not checked as it is.
    """
    workspace = workspace_of(request)
    existing_run(workspace, run)
    if jobs_of(request).active(run):
        raise Refusal(409, "new_run.running", name=run)
    values = _sound_values(request, saving)
    _require_checked(request, saving, values, run=run)
    change_run(workspace, run, values, version=saving.draft[-VERSION_DIGITS:])
    return _saved(request, saving, run)


def preflights_of(request: Request) -> Preflights:
    """The checks that run now."""
    return cast(Preflights, request.app.state.preflights)


def _start_of(jobs: JobBoard) -> dict[str, Any]:
    """A config for the machine: of the released model where there is a card, else of the miniature."""
    device = jobs.devices[0]
    if device.number is None:
        return with_flavour({}, "tiny")
    return with_preset(with_flavour({}, "final"), preset_for(card_mib(device)))


def _form_page(
    request: Request,
    values: Mapping[str, Any],
    *,
    run: str | None,
    locked: bool = False,
    saved: bool = False,
) -> Response:
    workspace, values = workspace_of(request), changed_values(values)
    return page(
        request,
        "new_run.html",
        run=run,
        run_name="" if run is None else name_of(workspace, run),
        locked=locked,
        saved=saved,
        draft=token_hex(4) + (token_hex(4) if run is None else config_version(workspace, run)),
        text=text_of_values(values),
        fields=fields_of_values(values),
        first={key: form_field(key) for key in CHOSEN_FIRST},
        sections=form_sections(),
        unset=("null", '""'),
        flavours=list(STARTS),
        presets=PRESETS.values(),
        fitting=fitting_presets(values),
        datasets=dataset_files(workspace),
    )


def _changed(change: Edit, values: Mapping[str, Any]) -> dict[str, Any]:
    """The config after a change on the form.

    Raises:
        Refusal: there is no such preset or flavour.
    """
    if change.source == "form":
        return values_of_fields(change.fields)
    if change.source == "preset":
        if change.choice and change.choice not in PRESETS:
            raise Refusal(422, "new_run.no_preset", name=change.choice[:20], names=", ".join(PRESETS))
        return with_preset(values, change.choice)
    if change.choice not in STARTS:
        raise Refusal(422, "new_run.no_flavour", name=change.choice[:20], names=", ".join(STARTS))
    return with_flavour(values, change.choice)


def _edited(judged: Judged, workspace_problems: list[Finding] | tuple[()]) -> dict[str, Any]:
    """What the page needs to know after a change."""
    values = judged.values
    problems = [{"key": one.key, "text": one.text} for one in (*judged.problems, *workspace_problems)]
    return {
        "readable": values is not None,
        "fields": {} if values is None else fields_of_values(values),
        "presets": [] if values is None else fitting_presets(values),
        "flavour": "" if values is None else str(values.get(FLAVOUR, "final")),
        "problems": problems,
        "notices": list(judged.notices),
    }


def _sound_values(request: Request, draft: Draft) -> dict[str, Any]:
    """The values of a config that the schema accepts.

    Raises:
        Refusal: it does not, or a path leads out of the workspace.
    """
    language = language_of(request)
    judged = judge(draft.text, language)
    problems = list(judged.problems)
    if not problems and judged.values is not None:
        problems += path_problems(judged.values, workspace_of(request), language)
    if problems or judged.values is None:
        raise Refusal(422, "; ".join(one.text for one in problems))
    return judged.values


def _placed_text(workspace: Workspace, run: str | None, values: Mapping[str, Any]) -> str:
    """The config as it would be written.

    Raises:
        Refusal: there is no such run, or a path leads out of the workspace.
    """
    folder = workspace.state / "drafts" if run is None else existing_run(workspace, run)
    return text_of_values(placed(values, workspace, folder / RESULTS))


def _content(request: Request, run: str | None, values: Mapping[str, Any]) -> str:
    """Stands for a config and its list of datasets, so that a change of either is seen."""
    workspace = workspace_of(request)
    changed: tuple[int, ...] = ()
    if isinstance(values.get(DATA), str):
        path = workspace.inside(values[DATA], must_exist=False)
        changed = (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else ()
    whole = json.dumps([run, values, changed], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _dataset_page(values: Mapping[str, Any]) -> str:
    """Where the chosen dataset is mended."""
    path = PurePosixPath(str(values.get(DATA, "")))
    ours = path.parent == PurePosixPath("datasets") and NAME.fullmatch(path.stem) is not None
    return f"/datasets/{path.stem}" if ours else "/datasets"


def _require_checked(request: Request, saving: Saving, values: Mapping[str, Any], *, run: str | None) -> None:
    if saving.start:
        content = _content(request, run, values)
        if not preflights_of(request).passed(saving.draft, content):
            raise Refusal(409, "new_run.not_checked")


def _saved(request: Request, saving: Saving, run: str) -> dict[str, str]:
    """Start the run if asked, and say where its page is."""
    if saving.start:
        book = book_of(request)
        book.start(book.get(run))
        return {"location": f"/runs/{run}"}
    return {"location": f"/runs/{run}/config?saved=1"}
