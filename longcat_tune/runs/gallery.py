"""The folder `validation` as a page: index.html, a contact sheet over its steps, and comparisons.

Looks only at the records that renders leave; so it shows a run, `validate` and both together alike.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from longcat_tune.files import write_atomically
from longcat_tune.runs.render_record import RECORD_NAME, RenderRecord, ShownVideo, read_record
from longcat_tune.sampling.pictures import contact_sheet, frame_grid, strip_cell

PAGE_NAME = "index.html"
CONTACT_SHEET_NAME = "contact_sheet.png"
COMPARISON_NAME = "compare.png"
AVERAGED = "ema"
"""Folder, inside a step's renders, of those made with the averaged weights beside the trained ones."""

BASE_FOLDERS = ("step_000000", "base")
COLUMNS_AT_MOST = 12
NUMBER_NAMES = {
    "temporal_consistency": "consistency",
    "sharpness": "sharpness",
    "first_frame_psnr": "first frame (dB)",
}


@dataclass(frozen=True, slots=True)
class Moment:
    """One set of weights and its renders.

    Attributes:
        name: of its folder in the gallery's.
        folder: of the record: that one, or AVERAGED in it where only averaged weights were rendered.
        label: for people.
        record: of the folder; of the averaged weights' one where only those were rendered.
        averaged: renders of the averaged weights beside them, if any.
    """

    name: str
    folder: Path
    label: str
    record: RenderRecord
    averaged: RenderRecord | None

    @property
    def is_base(self) -> bool:
        """Whether it shows the model as the run found it."""
        return self.name in BASE_FOLDERS


def write_gallery(root: Path, changed: Path | None = None) -> Path | None:
    """Write the page and the contact sheet; None when nothing was rendered yet.

    Args:
        root: the folder `validation`.
        changed: folder in it that was rendered to: gets a comparison with the weights before training.

    Returns:
        The page.

    Raises:
        UserError: the folder cannot be written to.
    """
    moments = find_moments(root)
    if not moments:
        return None
    for moment in moments:
        if changed is not None and root / moment.name == changed:
            _write_comparison(moment, moments, changed / COMPARISON_NAME)
    if sheet := _contact_sheet(moments):
        save_png(sheet, root / CONTACT_SHEET_NAME)
    page = root / PAGE_NAME
    _write_if_new(page, _page(root, moments).encode())
    return page


def find_moments(root: Path) -> list[Moment]:
    """Every rendered set of weights: the base model, the steps in order, then LoRA files by name.

    Renders whose files somebody has deleted are left out.
    """
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        name, label = folder.name, _label(folder.name)
        record, averaged = _shown(folder), _shown(folder / AVERAGED)
        if record is not None:
            found.append(Moment(name, folder, label, record, averaged))
        elif averaged is not None:
            found.append(Moment(name, folder / AVERAGED, f"{label}, averaged", averaged, None))
    return sorted(found, key=lambda moment: _place(moment.name))


def _shown(folder: Path) -> RenderRecord | None:
    """What a folder's record says and is there."""
    record = read_record(folder)
    if record is None:
        return None
    there = record.there(folder)
    return replace(record, videos=there) if there or record.failures else None


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture, complete or not at all; one that is there already is left as it is.

    Raises:
        UserError: the folder cannot be written to.
    """
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    _write_if_new(path, buffer.getvalue())


def read_strip(folder: Path, video: ShownVideo) -> Image.Image:
    """The frames that a render's record names."""
    with Image.open(folder / video.strip) as picture:
        return picture.convert("RGB")


def _write_if_new(path: Path, content: bytes) -> None:
    """A command that finds all done changes no file."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, lambda part: part.write_bytes(content))


def _place(name: str) -> tuple[int, str]:
    if name == "base":
        return 0, name
    return (1, name) if name.startswith("step_") else (2, name)


def _label(name: str) -> str:
    if name == "base":
        return "base model"
    match = re.fullmatch(r"step_(\d+)", name)
    if match is None:
        return name
    step = int(match[1])
    return f"step {step}" if step else "step 0, before training"


def _partner(video: ShownVideo, moments: Sequence[Moment]) -> tuple[Moment, ShownVideo] | None:
    """The same request rendered before training."""
    for moment in moments:
        for other in moment.record.videos:
            if moment.is_base and other.key == video.key:
                return moment, other
    return None


def _write_comparison(moment: Moment, moments: Sequence[Moment], path: Path) -> None:
    """Strips of the base or the start, LoRA and its average below each other, request by request."""
    rows: list[tuple[str, Image.Image]] = []
    averages = {video.key: video for video in moment.averaged.videos} if moment.averaged else {}
    for video in moment.record.videos:
        partner = None if moment.is_base else _partner(video, moments)
        average = averages.get(video.key)
        if partner is None and average is None:
            continue
        if partner is not None:
            rows.append((f"{partner[0].label}: {video.name}", read_strip(partner[0].folder, partner[1])))
        rows.append((f"{moment.label}: {video.name}", read_strip(moment.folder, video)))
        if average is not None:
            label = f"{moment.label}, averaged weights: {video.name}"
            rows.append((label, read_strip(moment.folder / AVERAGED, average)))
    if rows:
        save_png(frame_grid(rows), path)


def _contact_sheet(moments: Sequence[Moment]) -> Image.Image | None:
    shown = [moments[index] for index in _spread(len(moments))]
    videos = {video.key: video for moment in shown for video in moment.record.videos}
    if not videos:
        return None
    rows = []
    for key, named in videos.items():
        cells = [_late_frame(moment, key) for moment in shown]
        rows.append((f"{named.name} {named.width}x{named.height}", cells))
    return contact_sheet([moment.label for moment in shown], rows)


def _spread(count: int) -> list[int]:
    """Which of so many moments are shown: the first, the last and some in between."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, COLUMNS_AT_MOST)).round()})


def _late_frame(moment: Moment, key: str) -> Image.Image | None:
    """One frame of a render, from its later half: the first ones may be given."""
    for video in moment.record.videos:
        if video.key == key:
            return strip_cell(read_strip(moment.folder, video), video.cells, (video.cells - 1) * 3 // 4)
    return None


def _page(root: Path, moments: Sequence[Moment]) -> str:
    template = files("longcat_tune").joinpath("assets", "gallery.html").read_text(encoding="utf-8")
    # ASCII: names of folders that are not UTF-8 could not be written otherwise.
    content = json.dumps(_page_data(root, moments))
    # Within a script element only "<" could end the data early.
    return template.replace("{{data}}", content.replace("<", "\\u003c"))


def _page_data(root: Path, moments: Sequence[Moment]) -> dict[str, Any]:
    """What the page shows: moments, and per request its videos at each of them."""
    requests: dict[str, dict[str, Any]] = {}
    for moment in moments:
        for kind, folder, record in (
            ("live", moment.folder, moment.record),
            ("averaged", moment.folder / AVERAGED, moment.averaged),
        ):
            for video in record.videos if record is not None else ():
                request = requests.setdefault(video.key, _request_data(video))
                at = request["at"].setdefault(_id(root, moment), {})
                at[kind] = _video_data(root, folder, video)
    return {
        "run": root.resolve().parent.name,
        "moments": [
            {
                "id": _id(root, moment),
                "label": moment.label,
                "base": moment.is_base,
                "failures": [
                    {"name": failure.name, "reason": failure.reason}
                    for record in (moment.record, moment.averaged)
                    for failure in (record.failures if record is not None else ())
                ],
            }
            for moment in moments
        ],
        "requests": list(requests.values()),
        "record": RECORD_NAME,
    }


def _request_data(video: ShownVideo) -> dict[str, Any]:
    return {
        "key": video.key,
        "name": video.name,
        "prompt": video.prompt,
        "details": list(video.details),
        "width": video.width,
        "height": video.height,
        "at": {},
    }


def _video_data(root: Path, folder: Path, video: ShownVideo) -> dict[str, Any]:
    return {
        "src": _address(root, folder / video.file),
        "strip": _address(root, folder / video.strip),
        "cells": video.cells,
        "frames": video.num_frames,
        "fps": video.fps,
        "seconds": round(video.seconds, 1),
        "numbers": {NUMBER_NAMES[name]: round(value, 3) for name, value in video.numbers.items()},
    }


def _address(root: Path, file: Path) -> str:
    """A file for a page in the root. By its bytes: JavaScript cannot encode a name that is not UTF-8."""
    return quote(os.fsencode(file.relative_to(root).as_posix()))


def _id(root: Path, moment: Moment) -> str:
    return moment.folder.relative_to(root).as_posix()
