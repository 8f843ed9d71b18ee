"""Folders of runs: made, read and changed; a run is its config and what it is called.

Knows nothing of what runs do, nor of requests.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from longcat_tune.files import explained_disk_errors, write_json_atomically
from longcat_tune.server.replies import Refusal
from longcat_tune.server.run_config import placed, read_written, shown_values
from longcat_tune.server.workspace import NAME_LENGTH, Workspace, slug

CONFIG, ABOUT = "config.json", "run.json"
RESULTS = "results"

RESERVED = frozenset({"new"})
"""Ids that would be addresses of other pages."""
UNNAMED = "unnamed"
LONGEST_NAME = 200
MOST_OF_ONE_NAME = 1000
VERSION_DIGITS = 8

_one_writer = Lock()


def create_run(workspace: Workspace, values: Mapping[str, Any], *, name: str) -> str:
    """Make the folder of a new run.

    Args:
        workspace: where.
        values: of the config, as the form has them.
        name: as a person wrote it; may be empty.

    Returns:
        Its id.

    Raises:
        Refusal: the name is too long or not printable, or a path leads out of the workspace.
        UserError: the disk is full, or cannot be written to.
    """
    name = name.strip()
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise Refusal(400, "new_run.bad_name", most=LONGEST_NAME)
    # Before the folder: what is refused leaves nothing behind.
    placed(values, workspace, workspace.runs)
    folder = _new_folder(workspace, slug(name) if name else "run")
    _write_config(workspace, values, folder)
    write_json_atomically(folder / ABOUT, {"name": name or folder.name, "created": time.time()})
    return folder.name


def change_run(workspace: Workspace, run: str, values: Mapping[str, Any], *, version: str) -> None:
    """Give a run another config.

    Args:
        workspace: where it is.
        run: its id.
        values: of the config, as the form has them.
        version: of the config that was edited.

    Raises:
        Refusal: there is no such run, its config is another one by now, or a path leads out of the workspace.
        UserError: the disk is full, or cannot be written to.
    """
    folder = existing_run(workspace, run)
    with _one_writer:
        if config_version(workspace, run) != version:
            raise Refusal(409, "new_run.config_changed", name=run)
        _write_config(workspace, values, folder)


def config_version(workspace: Workspace, run: str) -> str:
    """A short name of a run's config, by which another one shows.

    Raises:
        Refusal: there is no such run.
    """
    content = (existing_run(workspace, run) / CONFIG).read_bytes()
    return hashlib.sha256(content).hexdigest()[:VERSION_DIGITS]


def existing_run(workspace: Workspace, run: str) -> Path:
    """The folder of a run that has a config.

    Raises:
        Refusal: there is none of that id.
    """
    folder = workspace.run_folder(run)
    if run in RESERVED or not (folder / CONFIG).is_file():
        raise Refusal(404, "new_run.no_run", name=run)
    return folder


def config_of(workspace: Workspace, run: str) -> dict[str, Any]:
    """The config of a run as the form shows it.

    Raises:
        Refusal: there is none of that id.
        ConfigError: its file cannot be read.
    """
    folder = existing_run(workspace, run)
    return shown_values(read_written(folder / CONFIG), workspace, folder)


def name_of(workspace: Workspace, run: str) -> str:
    """What a run is called; its id where nobody gave it a name."""
    try:
        about = json.loads((workspace.run_folder(run) / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return run
    return str(about.get("name") or run) if isinstance(about, dict) else run


def dataset_files(workspace: Workspace) -> list[str]:
    """The dataset files of a workspace, as a config names them."""
    found = sorted(workspace.datasets.glob("*.json"))
    return [f"datasets/{path.name}" for path in found if path.is_file()]


def _write_config(workspace: Workspace, values: Mapping[str, Any], folder: Path) -> None:
    write_json_atomically(folder / CONFIG, placed(values, workspace, folder / RESULTS))


def _new_folder(workspace: Workspace, base: str) -> Path:
    base = "run" if base == UNNAMED else base
    for number in range(1, MOST_OF_ONE_NAME):
        end = "" if number == 1 else f"-{number}"
        name = f"{base[: NAME_LENGTH - len(end)].rstrip('-')}{end}"
        if name in RESERVED:
            continue
        folder = workspace.run_folder(name)
        with explained_disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
        return folder
    raise Refusal(409, "new_run.too_many", name=base)
