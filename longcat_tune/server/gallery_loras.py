"""The LoRA files of a run: which checkpoints there are, in which formats, and how a missing one is made.

A format that is not there is written by `longcat-tune lora convert`, beside the checkpoints and never into
one: a run goes on from those. Knows the names of docs/lora_formats.md, and nothing of what is in the files.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from longcat_tune.server.replies import Refusal
from longcat_tune.server.tool import run_tool

LoraFormat = Literal["peft", "official", "comfyui", "diffsynth"]
FORMATS: tuple[LoraFormat, ...] = get_args(LoraFormat)

FILE_NAMES: Mapping[LoraFormat, str] = {
    "peft": "pytorch_lora_weights.safetensors",
    "official": "lora.official.safetensors",
    "comfyui": "lora.comfyui.safetensors",
    "diffsynth": "lora.diffsynth.safetensors",
}

LAST = "last"
"""Name of the files that lie in the results themselves: those of a finished run."""

EXPORTS = "exports"
"""Folder, in the results, of what was converted."""

SECONDS = 900.0
"""Most that a conversion may take; a LoRA of rank 128 on the released model takes about one minute."""


@dataclass(frozen=True, slots=True)
class LoraFile:
    """One file to download.

    Attributes:
        path: relative to the results.
        size: in bytes.
    """

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One state of the LoRA.

    Attributes:
        name: of its folder, or LAST.
        step: finished steps; None for LAST.
        files: those that are there, by format.
        can_convert: whether there is one to make the others from.
    """

    name: str
    step: int | None
    files: Mapping[LoraFormat, LoraFile]
    can_convert: bool


def read_checkpoints(results: Path) -> tuple[Checkpoint, ...]:
    """Every state of a run's LoRA that has a file, the last one first.

    Args:
        results: of the run, resolved.
    """
    exported = (results / EXPORTS).glob("*") if (results / EXPORTS).is_dir() else ()
    names = {LAST, *(path.name for path in exported), *(path.name for path in results.glob("checkpoint-*"))}
    found = []
    for name in names:
        if _step(name) is not None or name == LAST:
            with suppress(FileNotFoundError):  # a run removes its old ones
                found.append(_checkpoint(results, name))
    order = sorted((one for one in found if one.files), key=lambda one: (one.step is None, one.step or 0))
    return tuple(reversed(order))


def _step(name: str) -> int | None:
    # Others are folders that a save has not finished or is about to remove.
    match = re.fullmatch(r"checkpoint-(\d{1,12})", name)
    return int(match[1]) if match is not None else None


def _checkpoint(results: Path, name: str) -> Checkpoint:
    saved = dict(_saved(results, name))
    files = dict(saved)
    newest = max((path.stat().st_mtime_ns for path in saved.values()), default=0)
    for form in FORMATS:
        path = _export(results, name, form)
        # A run that went on has replaced its last file: what was made from the former one is no more of use.
        if form not in files and _is_own(path, results) and path.stat().st_mtime_ns >= newest:
            files[form] = path
    return Checkpoint(
        name=name,
        step=_step(name),
        files={form: _file(files[form], results) for form in FORMATS if form in files},
        can_convert=bool(saved),
    )


def _saved(results: Path, name: str) -> Iterator[tuple[LoraFormat, Path]]:
    """What the run wrote itself."""
    folder = results if name == LAST else results / name
    for form, file_name in FILE_NAMES.items():
        if _is_own(folder / file_name, results):
            yield form, folder / file_name


def _is_own(path: Path, results: Path) -> bool:
    """Whether it is a file that no link leads out of the results."""
    return path.is_file() and path.resolve().is_relative_to(results)


def _export(results: Path, name: str, form: LoraFormat) -> Path:
    return results / EXPORTS / name / FILE_NAMES[form]


def _file(path: Path, results: Path) -> LoraFile:
    return LoraFile(path.relative_to(results).as_posix(), path.stat().st_size)


async def make_format(
    command: Sequence[str], results: Path, name: str, form: LoraFormat, *, told: Callable[[str], str]
) -> None:
    """Write a checkpoint's LoRA in another format, unless it is there.

    Args:
        command: how the tool is run.
        results: of the run, resolved.
        name: of the checkpoint.
        form: the format.
        told: what a visitor may read of a text of the tool.

    Raises:
        Refusal: there is nothing to convert, or the tool refused; its words are the text.
    """
    found = await asyncio.to_thread(read_checkpoints, results)
    checkpoint = next((one for one in found if one.name == name), None)
    if checkpoint is None or not checkpoint.can_convert:
        raise Refusal(404, "gallery.no_checkpoint", name=name[:80])
    if form in checkpoint.files:
        return
    target = _export(results, name, form)
    if not target.parent.resolve().is_relative_to(results):
        raise Refusal(403, "app.outside_workspace", name=EXPORTS)
    # One that is older than the checkpoint.
    target.unlink(missing_ok=True)
    source = next(path for _, path in _saved(results, name))
    words = [*command, "lora", "convert", str(source), str(target), "--to", form]
    finished = await run_tool(words, folder=results, time_limit=SECONDS)
    # It is complete or absent: what it writes is renamed at the end.
    if finished.exit_code is None:
        raise Refusal(408, "gallery.convert_timeout", seconds=int(SECONDS))
    if finished.exit_code != 0:
        raise Refusal(409, told(finished.error))
