"""What a person changes in a data file, as new lists of entries: a folder, an entry's keys, its start frames.

Pure: reads and writes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from longcat_tune.server.datasets_file import DataFile
from longcat_tune.server.workspace import Workspace

Starts = Literal["none", "own", "folder"]
"""Where an image-to-video clip starts: it does not, from its own first frame, from an image in a folder."""

Entry = dict[str, Any]


def folder_text(folder: Path, workspace: Workspace) -> str:
    """A folder as a data file names it: relative to the file inside home, so that both can move together.

    Args:
        folder: inside the workspace.
        workspace: where the data file is.
    """
    if folder.is_relative_to(workspace.home):
        return Path(os.path.relpath(folder, workspace.datasets)).as_posix()
    return str(folder)


def new_entry(folder: Path, workspace: Workspace, *, kind: str, others: Sequence[Mapping[str, Any]]) -> Entry:
    """An entry over a folder, with nothing but what must be said.

    Args:
        folder: inside the workspace.
        workspace: where the data file is.
        kind: video, image or eval.
        others: entries that are there, whose ids are taken.
    """
    entry = {"id": free_id(folder.name or "clips", others)}
    if kind != "video":
        entry["dataset_type"] = kind
    return entry | {"instance_data_dir": folder_text(folder, workspace)}


def free_id(wanted: str, others: Sequence[Mapping[str, Any]]) -> str:
    """An id like this one that no entry has.

    Args:
        wanted: any text.
        others: entries that are there.
    """
    taken = {entry.get("id") for entry in others}
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-.") or "clips"
    numbered = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(taken) + 2))
    return next(one for one in numbered if one not in taken)


def replaced(data: DataFile, identifier: str, entry: Entry) -> list[Entry]:
    """The entries with one of them changed; where its id changes, those that name it follow.

    Args:
        data: the file.
        identifier: id of the entry until now.
        entry: what it becomes.
    """
    renamed = entry.get("id", identifier)
    result = []
    for one in data.entries:
        if one.get("id") == identifier:
            result.append(entry)
        elif identifier != renamed and identifier in _partners(one):
            partners = [renamed if partner == identifier else partner for partner in _partners(one)]
            result.append(one | {"conditioning_data": partners})
        else:
            result.append(one)
    return result


def removed(data: DataFile, identifier: str) -> list[Entry]:
    """The entries without one of them; those that name it start from what else they name.

    Args:
        data: the file.
        identifier: id of the entry.
    """
    result = []
    for one in data.entries:
        if one.get("id") != identifier:
            rest = [partner for partner in _partners(one) if partner != identifier]
            result.append(_with_partners(one, rest) if identifier in _partners(one) else one)
    return result


def paired(data: DataFile, identifier: str, starts: Starts, folder: str | None) -> list[Entry]:
    """The entries with one of them trained from start frames, or not any more.

    Entries of start images that nothing names afterwards are taken out.

    Args:
        data: the file.
        identifier: id of the entry of clips.
        starts: where its clips start.
        folder: of the start images as the file names it; None unless `starts` is `folder`.
    """
    entry = dict(data.entry(identifier))
    before = set(_partners(entry))
    if isinstance(entry.get("video"), dict):
        entry["video"] = {key: value for key, value in entry["video"].items() if key != "is_i2v"}
        if not entry["video"]:
            del entry["video"]
    entry.pop("is_i2v", None)
    if starts != "none":
        entry["is_i2v"] = True
    result = [entry if one.get("id") == identifier else one for one in data.entries]
    partners = []
    if folder is not None:
        partner = _images_in(folder, result)
        if partner is None:
            partner = {"id": free_id(f"{identifier}-starts", result), "dataset_type": "conditioning"}
            partner["instance_data_dir"] = folder
            result.append(partner)
        partners = [partner["id"]]
    result = [_with_partners(one, partners) if one.get("id") == identifier else one for one in result]
    named = {partner for one in result for partner in _partners(one)}
    return [one for one in result if one.get("id") not in before or one.get("id") in named]


def _images_in(folder: str, entries: Sequence[Entry]) -> Entry | None:
    """The entry of start images of a folder, if there is one."""
    for one in entries:
        if one.get("dataset_type") == "conditioning" and one.get("instance_data_dir") == folder:
            return one
    return None


def _partners(entry: Mapping[str, Any]) -> list[Any]:
    partners = entry.get("conditioning_data") or []
    return partners if isinstance(partners, list) else [partners]


def _with_partners(entry: Entry, partners: list[Any]) -> Entry:
    rest = {key: value for key, value in entry.items() if key != "conditioning_data"}
    return rest | {"conditioning_data": partners} if partners else rest
