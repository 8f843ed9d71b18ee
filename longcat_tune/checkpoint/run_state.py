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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from longcat_tune.checkpoint.optimizer_file import read_optimizer, write_optimizer
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
    """

    step: int
    epoch: int
    cursor: tuple[int, ...]
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    best: BestEvaluation | None = None
    tracker_run_id: str | None = None


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


def find_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """Find what `resume_from_checkpoint` means.

    Args:
        output_dir: of the run.
        wanted: `latest`, a folder's name in output_dir, or a path.

    Returns:
        None: there is nothing to resume from yet.

    Raises:
        CheckpointError: a folder that was asked for is not there.
    """
    _put_back(output_dir)
    if wanted == "latest":
        return latest_checkpoint(output_dir)
    for folder in (output_dir / wanted, Path(wanted)):
        if folder.is_dir():
            return folder
    there = ", ".join(folder.name for folder in _folders(output_dir)) or "none"
    msg = f"resume_from_checkpoint ({wanted}) must be latest or a folder; in {output_dir} there are: {there}"
    raise CheckpointError(msg)


def load_checkpoint(folder: Path, optimizer: Optimizer) -> RunState:
    """Put a checkpoint's state into an optimizer over the same parameters.

    Learning rate and other settings that the run configures stay the optimizer's own; see `read_optimizer`.

    Raises:
        CheckpointError: a file is missing or damaged, or the optimizer does not fit.
    """
    state = read_state(folder)
    read_optimizer(folder, optimizer)
    return state


def read_state(folder: Path) -> RunState:
    """Verify a checkpoint and read how far it has come.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if problem := _problem(folder):
        msg = (
            f"checkpoint {folder} cannot be used: {problem}; choose another one, or resume_from_checkpoint: "
            "latest for the newest complete one"
        )
        raise CheckpointError(msg)
    stored = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["state"]
    best = stored.get("best")
    return RunState(
        stored["step"],
        stored["epoch"],
        tuple(stored["cursor"]),
        stored["fingerprint"],
        None if best is None else BestEvaluation(**best),
        stored.get("tracker_run_id"),
    )


def has_checkpoints(output_dir: Path) -> bool:
    """Whether there is any checkpoint folder, whole or damaged."""
    _put_back(output_dir)
    return bool(_folders(output_dir))


def latest_checkpoint(output_dir: Path) -> Path | None:
    """Find the complete checkpoint with the most steps; damaged ones are named in a warning and skipped."""
    for folder in reversed(_folders(output_dir)):
        problem = _problem(folder)
        if problem is None:
            return folder
        logger.warning("checkpoint %s is skipped: %s", folder, problem)
    return None


def _folders(output_dir: Path) -> list[Path]:
    """All finished checkpoint folders by step, whole or damaged."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if FOLDER_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None when all files are as they were written."""
    try:
        stored = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        schema, files = stored["schema"], stored["files"]
    except OSError:
        return f"{STATE_FILE} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{STATE_FILE} is damaged"
    if schema not in READABLE:
        return f"{STATE_FILE} has schema {schema}, but this version reads {' and '.join(map(str, READABLE))}"
    for name, written in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _measure(folder / name) != written:
            return f"{name} is damaged"
    return None


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
