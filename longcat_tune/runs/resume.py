"""What a run goes on from: decided before anything is encoded, put into the parts once they are built."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

from longcat_tune.checkpoint.lora_file import read_lora
from longcat_tune.checkpoint.run_state import find_checkpoint, has_checkpoints, load_checkpoint, read_state
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import load_lora_state
from longcat_tune.training.interfaces import LoopState

logger = logging.getLogger(__name__)

SHAPES_OF_ADAPTER = ("lora_rank", "lora_target")


def checkpoint_to_resume(config: RunConfig) -> Path | None:
    """Find the checkpoint that a run goes on from; None starts afresh.

    Args:
        config: the run.

    Raises:
        CheckpointError: it is not there, damaged, or holds another adapter.
        ConfigError: a fresh start would mix with an earlier run's checkpoints.
    """
    wanted = config.training.resume_from_checkpoint
    output_dir = config.output.output_dir
    folder = None if wanted is None else find_checkpoint(output_dir, wanted)
    if folder is None:
        _require_fresh(output_dir, wanted)
        return None
    saved, now = read_state(folder).fingerprint, _as_saved(config)
    for key in SHAPES_OF_ADAPTER:
        if saved.get(key, now[key]) != now[key]:
            msg = (
                f"{key} ({now[key]}) must stay what it is in {folder} ({saved[key]}) to go on from there; "
                "set it back, or choose another output_dir"
            )
            raise CheckpointError(msg)
    return folder


def resume(
    folder: Path, config: RunConfig, model: LongCatVideoTransformer, optimizer: torch.optim.Optimizer
) -> LoopState:
    """Put a checkpoint into the parts of a run, and tell which keys have changed since.

    Args:
        folder: from `checkpoint_to_resume`.
        config: the run.
        model: gets the LoRA.
        optimizer: gets its state.

    Raises:
        CheckpointError: a file is damaged or does not fit.
    """
    saved = load_checkpoint(folder, optimizer)
    load_lora_state(model, read_lora(folder).weights)
    now = _as_saved(config)
    for key in sorted(now.keys() & saved.fingerprint.keys()):
        if now[key] != saved.fingerprint[key]:
            logger.info(
                "%s was %s until this checkpoint and is now %s", key, saved.fingerprint[key], now[key]
            )
    logger.info("Resuming from %s", folder)
    return LoopState(saved.step, saved.epoch, saved.cursor)


def _as_saved(config: RunConfig) -> dict[str, object]:
    """The config as a checkpoint holds it; through JSON tuples become lists."""
    values: dict[str, object] = json.loads(json.dumps(config.flat()))
    return values


def _require_fresh(output_dir: Path, wanted: str | None) -> None:
    """Keep a run that starts afresh from mixing its checkpoints with another's."""
    if not has_checkpoints(output_dir):
        return
    have = "has some of an earlier run" if wanted is None else "has only damaged ones"
    msg = (
        f"resume_from_checkpoint ({wanted or 'none'}): output_dir ({output_dir}) must hold no checkpoints "
        f"for a fresh start but {have}; choose another output_dir, or delete its checkpoint-* folders"
    )
    raise ConfigError(msg)
