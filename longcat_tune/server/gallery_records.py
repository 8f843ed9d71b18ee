"""What a run rendered, from the records beside its videos: sets of weights, and renders by request.

Reads the documented renders.json only; knows neither the code that writes it nor the page that shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

FOLDER = "validation"
"""Of a run's results, or of a preview's."""

RECORD_NAME = "renders.json"
AVERAGED = "ema"
"""Folder, inside a step's renders, of those made with averaged weights."""

CONTACT_SHEET = "contact_sheet.png"
STEP_SHEETS = ("grid.png", "compare.png")

WeightsKind = Literal["base", "start", "step", "lora"]


@dataclass(frozen=True, slots=True)
class _Video:
    """One entry of a record, as it is on disk; see docs/renders.md."""

    key: str
    name: str
    prompt: str
    file: str
    strip: str
    width: int
    height: int
    num_frames: int
    fps: float
    details: tuple[str, ...]
    numbers: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A render that could not be made.

    Attributes:
        name: of its request.
        reason: in one line, as the tool told it.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Record:
    videos: tuple[_Video, ...]
    failures: tuple[Failure, ...]


_RECORDS = TypeAdapter(_Record)


@dataclass(frozen=True, slots=True)
class Clip:
    """One finished render.

    Attributes:
        key: renders of one key differ in their weights only.
        name: of its request.
        prompt: what it was to show.
        video: the mp4, relative to the results.
        strip: a picture of a few frames across, relative to the results.
        version: changes when the file does; for addresses that browsers may remember.
        width: in pixels.
        height: in pixels.
        frames: in the mp4.
        fps: of the mp4.
        details: of the request, in the tool's words.
        numbers: measured of it, by name.
        seconds: that it took.
    """

    key: str
    name: str
    prompt: str
    video: str
    strip: str
    version: str
    width: int
    height: int
    frames: int
    fps: float
    details: tuple[str, ...]
    numbers: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Weights:
    """One set of weights and what was rendered with it.

    Attributes:
        name: of its folder.
        kind: base model, the run before its first step, a step, or LoRA files.
        step: finished steps; None where the kind has none.
        clips: by key.
        averaged: the same with averaged weights, by key.
        failures: renders that could not be made.
        sheets: pictures of all its renders together, relative to the results.
    """

    name: str
    kind: WeightsKind
    step: int | None
    clips: Mapping[str, Clip]
    averaged: Mapping[str, Clip]
    failures: tuple[Failure, ...]
    sheets: tuple[str, ...]

    @property
    def is_base(self) -> bool:
        """Whether it shows the model as the run found it."""
        return self.kind in {"base", "start"}

    @property
    def all_clips(self) -> Mapping[str, Clip]:
        """By key; the averaged ones where only those were rendered."""
        return {**self.averaged, **self.clips}


@dataclass(frozen=True, slots=True)
class Shown:
    """A render beside others of its request.

    Attributes:
        weights: that it was rendered with.
        averaged: whether those were averaged.
        clip: the render.
    """

    weights: Weights
    averaged: bool
    clip: Clip


@dataclass(frozen=True, slots=True)
class Gallery:
    """All renders of a run or a preview.

    Attributes:
        weights: the base model, the steps in order, then LoRA files by name.
        contact_sheet: one picture over the steps, relative to the results, if there is one.
    """

    weights: tuple[Weights, ...]
    contact_sheet: str | None

    @property
    def requests(self) -> Mapping[str, Clip]:
        """One render of every request by key, to tell of the request: the newest."""
        return {key: clip for one in self.weights for key, clip in one.all_clips.items()}

    def named(self, name: str | None) -> Weights | None:
        """The weights of a name; without one the last step, else the last of all."""
        if name is not None:
            return next((one for one in self.weights if one.name == name), None)
        steps = [one for one in self.weights if one.kind == "step"]
        return (steps or [*self.weights])[-1] if self.weights else None

    def over_time(self, key: str) -> Iterator[Shown]:
        """Every render of a request, in the order of the weights."""
        for one in self.weights:
            for clips, averaged in ((one.clips, False), (one.averaged, True)):
                if key in clips:
                    yield Shown(one, averaged, clips[key])

    def beside_base(self, key: str, chosen: Weights) -> tuple[Shown, ...]:
        """A request's render before training, if there is one, and those with some weights."""
        renders = [*self.over_time(key)]
        before = [one for one in renders if one.weights.is_base and one.weights != chosen]
        return (*before[:1], *(one for one in renders if one.weights == chosen))

    def around(self, chosen: Weights | None) -> tuple[Weights | None, Weights | None]:
        """What comes before and after some weights."""
        if chosen is None:
            return None, None
        framed = (None, *self.weights, None)
        at = framed.index(chosen)
        return framed[at - 1], framed[at + 1]

    @property
    def stamp(self) -> str:
        """Changes when there is something new to see."""
        clips = [clip for one in self.weights for clip in (*one.clips.values(), *one.averaged.values())]
        failures = sum(len(one.failures) for one in self.weights)
        return f"{len(clips)}.{failures}.{max((clip.version for clip in clips), default='')}"


def read_gallery(results: Path) -> Gallery:
    """Look at everything that was rendered below a folder of results; nothing there is an empty gallery.

    Args:
        results: of a run or a preview, resolved.
    """
    root = results / FOLDER
    if not _is_below(root, results):
        return Gallery((), None)
    found = [one for folder in root.iterdir() if (one := _weights(folder, results)) is not None]
    sheet = root / CONTACT_SHEET
    contact_sheet = sheet.relative_to(results).as_posix() if sheet.is_file() else None
    return Gallery(tuple(sorted(found, key=_place)), contact_sheet)


def _is_below(folder: Path, results: Path) -> bool:
    """Whether it is a folder that no link leads out of the results."""
    return folder.is_dir() and folder.resolve().is_relative_to(results)


def _weights(folder: Path, results: Path) -> Weights | None:
    # A name that is no text has no address either.
    if not folder.name.isprintable() or not _is_below(folder, results):
        return None
    clips, failures = _read(folder, results)
    averaged, more = _read(folder / AVERAGED, results)
    if not (clips or averaged or failures or more):
        return None
    kind, step = _kind(folder.name)
    sheets = [folder / name for name in STEP_SHEETS]
    shown = tuple(sheet.relative_to(results).as_posix() for sheet in sheets if sheet.is_file())
    return Weights(folder.name, kind, step, clips, averaged, (*failures, *more), shown)


def _kind(name: str) -> tuple[WeightsKind, int | None]:
    if name == "base":
        return "base", None
    match = re.fullmatch(r"step_(\d{1,12})", name)
    if match is None:
        return "lora", None
    return ("step" if int(match[1]) else "start"), int(match[1])


def _place(weights: Weights) -> tuple[int, int, str]:
    if weights.kind == "base":
        return 0, 0, weights.name
    return (2, 0, weights.name) if weights.step is None else (1, weights.step, weights.name)


def _read(folder: Path, results: Path) -> tuple[dict[str, Clip], tuple[Failure, ...]]:
    """What a folder's record names and is there; nothing where the record is missing or no record."""
    try:
        if not _is_below(folder, results):
            return {}, ()
        record = _RECORDS.validate_json((folder / RECORD_NAME).read_bytes())
    except (OSError, ValidationError):
        # A run writes its record last: without one the folder is being rendered to.
        return {}, ()
    clips = [_clip(video, folder, results) for video in record.videos]
    return {clip.key: clip for clip in clips if clip is not None}, record.failures


def _clip(video: _Video, folder: Path, results: Path) -> Clip | None:
    # By name alone: a record that somebody wrote must not reach other folders.
    file, strip = folder / Path(video.file).name, folder / Path(video.strip).name
    if not file.is_file() or not strip.is_file():
        return None
    return Clip(
        key=video.key,
        name=video.name,
        prompt=video.prompt,
        video=file.relative_to(results).as_posix(),
        strip=strip.relative_to(results).as_posix(),
        version=f"{file.stat().st_mtime_ns:x}",
        width=video.width,
        height=video.height,
        frames=video.num_frames,
        fps=video.fps,
        details=video.details,
        numbers=video.numbers,
        seconds=video.seconds,
    )
