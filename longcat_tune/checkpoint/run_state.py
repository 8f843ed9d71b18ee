"""Checkpoint folders of a run: complete or absent, found again, verified, pruned.

Knows optimizers by torch's interface and no other room; what else belongs into a folder, such as LoRA files,
is written by a function it is given. No pickle: tensors in safetensors, everything else in JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from longcat_tune.checkpoint.optimizer_file import write_optimizer
from longcat_tune.errors import CheckpointError, UserError
from longcat_tune.files import explained_disk_errors, flush_to_disk
from longcat_tune.types import BestEvaluation

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.json"
"""Written last; it lists every other file, so that its presence marks the folder as complete."""
SCHEMA = 2
READABLE = (1, 2)
"""Schema 1 lacks best and tracker_run_id."""
FOLDER_NAME = re.compile(r"checkpoint-(\d+)")
UNFINISHED = ".tmp-"
ASIDE = f"{UNFINISHED}aside"


@dataclass(frozen=True, slots=True)
class RunState:
    """How far a run has come.

    Attributes:
        step: completed optimizer steps.
        epoch: of the last one.
        cursor: the sampler's place, as it gave it.
        fingerprint: what the run was configured with; JSON, for comparison on resume.
        best: of the evaluations so far; None: there were none.
        tracker_run_id: what a tracker knows the run by, so that a resumed one goes on in the same place.
        origin: the checkpoint that the run was told by name to go on from, if it was: the same command finds
            by it what has been made since.
    """

    step: int
    epoch: int
    cursor: tuple[int, ...]
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    best: BestEvaluation | None = None
    tracker_run_id: str | None = None
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A checkpoint all of whose files were found as they were written.

    Attributes:
        folder: of the checkpoint.
        state: how far it has come.
    """

    folder: Path
    state: RunState


def save_checkpoint(
    output_dir: Path,
    state: RunState,
    optimizer: Optimizer,
    *,
    write_files: Callable[[Path], None],
    total_limit: int,
) -> Path:
    """Write `checkpoint-000500/` beside its place, flush it to the disk, rename it, and prune old ones.

    Args:
        output_dir: of the run.
        state: named after its step.
        optimizer: any of torch's interface.
        write_files: writes the rest, such as LoRA files, into the folder it is given.
        total_limit: checkpoints to keep, this one included; at least 1. The one of the best evaluation is
            kept in any case.

    Returns:
        The new folder.

    Raises:
        CheckpointError: the disk is full or the folder not writable; earlier checkpoints are intact and
            nothing unfinished is left.
    """
    folder = _folder(output_dir, state.step)
    part = folder.with_name(f"{folder.name}{UNFINISHED}{os.getpid()}")
    try:
        with explained_disk_errors(folder):
            _put_back(output_dir)
            _remove_unfinished(output_dir)
            part.mkdir(parents=True)
            write_files(part)
            write_optimizer(part, optimizer)
            _write_state(part, state)
            _replace(folder, part)
            _prune(output_dir, keep=(folder, _best_folder(output_dir, state)), total_limit=total_limit)
    except UserError as error:
        msg = f"checkpoint of step {state.step} was not saved, earlier ones are intact: {error}"
        raise CheckpointError(msg) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def find_checkpoint(output_dir: Path, wanted: str) -> SavedRun | None:
    """Find and verify what `resume_from_checkpoint` means.

    A checkpoint that is named stands for what this run has made since it went on from there, too: so the same
    command goes on after a stop.

    Args:
        output_dir: of the run.
        wanted: `latest`, a folder's name in output_dir, or a path.

    Returns:
        None: there is nothing to resume from yet.

    Raises:
        CheckpointError: a folder that was asked for is not there or damaged, or the run would leave its
            checkpoints among those of another.
    """
    _put_back(output_dir)
    newest = latest_checkpoint(output_dir)
    if wanted == "latest":
        return newest
    places = [output_dir / wanted, Path(wanted)]
    if newest is not None and newest.state.origin in {_origin(place) for place in places}:
        logger.info("%s was made by going on from %s", newest.folder, wanted)
        return newest
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        there = ", ".join(folder.name for folder in _folders(output_dir)) or "none"
        rule = f"must be latest or a folder; in {output_dir} there are: {there}"
        raise CheckpointError(f"resume_from_checkpoint ({wanted}) {rule}")
    named = newest if newest is not None and newest.folder == folder else read_checkpoint(folder)
    if newest is not None and named is not newest:
        msg = (
            f"resume_from_checkpoint ({wanted}) is not what {newest.folder} was made from, and what this run "
            "saves would lie among the checkpoints of another; choose another output_dir, or move away those "
            f"{'after it' if folder.parent == output_dir else 'in output_dir'}"
        )
        raise CheckpointError(msg)
    return replace(named, state=replace(named.state, origin=_origin(folder)))


def read_checkpoint(folder: Path) -> SavedRun:
    """Verify a checkpoint and read how far it has come.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        return _verified(folder)
    except _DamagedError as problem:
        msg = (
            f"checkpoint {folder} cannot be used: {problem}; choose another one, or resume_from_checkpoint: "
            "latest for the newest complete one"
        )
        raise CheckpointError(msg) from problem


def has_checkpoints(output_dir: Path) -> bool:
    """Whether there is any checkpoint folder, whole or damaged."""
    _put_back(output_dir)
    return bool(_folders(output_dir))


def latest_checkpoint(output_dir: Path) -> SavedRun | None:
    """Find the complete checkpoint with the most steps; damaged ones are named in a warning and skipped."""
    for folder in reversed(_folders(output_dir)):
        try:
            return _verified(folder)
        except _DamagedError as problem:
            logger.warning("checkpoint %s is skipped: %s", folder, problem)
    return None


def _folders(output_dir: Path) -> list[Path]:
    """All finished checkpoint folders by step, whole or damaged."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if FOLDER_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


class _DamagedError(Exception):
    """What is wrong with a checkpoint, naming the file."""


def _verified(folder: Path) -> SavedRun:
    """Read a checkpoint all of whose files must be as they were written."""
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        schema, files, stored = content["schema"], content["files"], content["state"]
    except OSError as error:
        raise _DamagedError(f"{STATE_FILE} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{STATE_FILE} is damaged") from error
    if schema not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise _DamagedError(f"{STATE_FILE} has schema {schema}, but this version reads {readable}")
    for name, written in files.items():
        if not (folder / name).is_file():
            raise _DamagedError(f"{name} is missing")
        if _measure(folder / name) != written:
            raise _DamagedError(f"{name} is damaged")
    best = stored.get("best")
    state = RunState(
        stored["step"],
        stored["epoch"],
        tuple(stored["cursor"]),
        stored["fingerprint"],
        None if best is None else BestEvaluation(**best),
        stored.get("tracker_run_id"),
        stored.get("origin"),
    )
    return SavedRun(folder, state)


def _origin(folder: Path) -> str:
    """What names a checkpoint in those that are made from it."""
    return str(folder.resolve())


def _write_state(part: Path, state: RunState) -> None:
    """List all files with size and hash, and put them on the disk before the list."""
    files = sorted(path for path in part.rglob("*") if path.is_file())
    content = {
        "schema": SCHEMA,
        "state": asdict(state),
        "files": {path.relative_to(part).as_posix(): _measure(path) for path in files},
    }
    (part / STATE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for path in [*part.rglob("*"), part]:
        flush_to_disk(path)


def _measure(path: Path) -> dict[str, int | str]:
    """Size and SHA-256: after a power cut a file may have its size and still hold zeros."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _replace(folder: Path, part: Path) -> None:
    """Rename the finished folder into place; one of the same step that was there before makes way."""
    aside = folder.with_name(f"{folder.name}{ASIDE}")
    if folder.exists():
        folder.rename(aside)
    part.rename(folder)
    flush_to_disk(folder.parent)
    if aside.exists():
        _remove(aside)


def _put_back(output_dir: Path) -> None:
    """Put back what was set aside by a process that was killed before the new folder was in its place."""
    for aside in output_dir.glob(f"checkpoint-*{ASIDE}"):
        folder = aside.with_name(aside.name.removesuffix(ASIDE))
        if not folder.exists():
            # Another process of the same run may be quicker.
            with suppress(FileNotFoundError):
                aside.rename(folder)


def _folder(output_dir: Path, step: int) -> Path:
    return output_dir / f"checkpoint-{step:06d}"


def _best_folder(output_dir: Path, state: RunState) -> Path | None:
    return None if state.best is None else _folder(output_dir, state.best.step)


def _prune(output_dir: Path, *, keep: Collection[Path | None], total_limit: int) -> None:
    """Remove the oldest until no more are left than asked; those to keep count, and are never removed."""
    folders = _folders(output_dir)
    removable = [folder for folder in folders if folder not in keep]
    for folder in removable[: max(0, len(folders) - total_limit)]:
        logger.info("removing %s: checkpoints_total_limit is %d", folder, total_limit)
        _remove(folder)


def _remove(folder: Path) -> None:
    """Delete a checkpoint; renamed first, so that a half-deleted one is never taken for a damaged one."""
    doomed = folder.with_name(f"{folder.name}{UNFINISHED}old")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _remove_unfinished(output_dir: Path) -> None:
    for path in output_dir.glob(f"checkpoint-*{UNFINISHED}*"):
        logger.info("removing %s, left by a run that was killed", path)
        shutil.rmtree(path)
