"""Files that a run or a preview left, for the browser: videos, pictures, LoRA files, records; nothing else.

Every path is resolved, symlinks included, and must be below the results that the address names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from longcat_tune.server.gallery_loras import EXPORTS
from longcat_tune.server.replies import Refusal
from longcat_tune.server.workspace import Workspace, checked_name

MEDIA_TYPES: Mapping[str, str] = {
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".safetensors": "application/octet-stream",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".txt": "text/plain; charset=utf-8",
}
"""What is served, by the end of its name; no type among them that a browser would run."""

SAVED_AS_FILE = (".safetensors", ".jsonl")

router = APIRouter()


@router.api_route("/runs/{run}/files/{path:path}", methods=["GET", "HEAD"])
def run_file(request: Request, run: str, path: str) -> Response:
    """Send a file of a run, or the part of it that a player asks for."""
    results = run_results(request, run)
    found = file_below(workspace_of(request), results, path)
    places = (part for part in found.relative_to(results).parts if part != EXPORTS)
    return file_reply(request, found, name="-".join((run, *places)))


def workspace_of(request: Request) -> Workspace:
    """The folders that requests may see."""
    return cast(Workspace, request.app.state.workspace)


def told(request: Request, text: str) -> str:
    """What a visitor may read of a text of the tool: from another machine, no path of this one."""
    return workspace_of(request).without_paths(text) if request.app.state.settings.remote else text


def run_results(request: Request, run: str) -> Path:
    """The folder that a run writes to, resolved; it need not exist yet.

    Raises:
        Refusal: there is no such run.
    """
    workspace = workspace_of(request)
    if not workspace.run_folder(run).is_dir():
        raise Refusal(404, "gallery.no_run", name=run)
    return workspace.inside(f"./runs/{checked_name(run)}/results", kind="folder", must_exist=False)


def file_below(workspace: Workspace, results: Path, path: str) -> Path:
    """The file that an address names below a folder of results, resolved.

    Args:
        workspace: all that may be seen.
        results: resolved, inside the workspace.
        path: of the address, decoded.

    Raises:
        Refusal: it is not there, not below the folder, or of no kind that is served.
    """
    found = workspace.inside(f"{workspace.shown(results)}/{path}", kind="file")
    if (
        not found.is_relative_to(results)
        or found.suffix not in MEDIA_TYPES
        or Path(path).suffix != found.suffix
    ):
        raise Refusal(404, "gallery.not_served", kinds=" ".join(MEDIA_TYPES))
    return found


def file_reply(request: Request, path: Path, *, name: str) -> Response:
    """Send a file with its type; 304 where the browser has it, 206 where a part is asked for.

    Args:
        request: with the browser's wishes in its headers.
        path: from `file_below`.
        name: under which a file that is not for showing is saved.
    """
    reply = FileResponse(
        path,
        media_type=MEDIA_TYPES[path.suffix],
        stat_result=path.stat(),
        filename=name if path.suffix in SAVED_AS_FILE else None,
        # The name of a video stays when its content changes: the browser has to ask.
        headers={"cache-control": "private, no-cache"},
    )
    if request.headers.get("if-none-match") == reply.headers["etag"]:
        kept = {key: reply.headers[key] for key in ("etag", "last-modified", "cache-control")}
        return Response(status_code=304, headers=kept)
    return reply
