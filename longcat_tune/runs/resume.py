"""What a run goes on from: decided before anything is encoded, put into the parts once they are built."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from longcat_tune.checkpoint.lora_file import read_lora
from longcat_tune.checkpoint.run_state import find_checkpoint, has_checkpoints, load_checkpoint, read_state
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import load_lora_state
from longcat_tune.training.interfaces import LoopState
from longcat_tune.types import TrainingSet

logger = logging.getLogger(__name__)

EPOCH_ORDER = "epoch_order"
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
    saved, now = read_state(folder).fingerprint, fingerprint(config, ())
    for key in SHAPES_OF_ADAPTER:
        if saved.get(key, now[key]) != now[key]:
            msg = (
                f"{key} ({now[key]}) must stay what it is in {folder} ({saved[key]}) to go on from there; "
                "set it back, or choose another output_dir"
            )
            raise CheckpointError(msg)
    return folder


def fingerprint(config: RunConfig, training: Sequence[TrainingSet]) -> dict[str, object]:
    """What a checkpoint remembers of its run: the config, and a hash of what an epoch's order follows from.

    Through JSON, as the checkpoint holds it: tuples become lists.
    """
    uses = [
        [
            one.uses_per_epoch,
            [asdict(task) for task in one.tasks],
            [[clip.clip_id, clip.bucket.name] for clip in one.samples],
        ]
        for one in training
    ]
    order = json.dumps([config.training.train_batch_size, config.training.seed, uses])
    digest = hashlib.blake2b(order.encode(), digest_size=16).hexdigest()
    values: dict[str, object] = json.loads(json.dumps(config.flat()))
    return values | {EPOCH_ORDER: digest}


def resume(
    folder: Path,
    model: LongCatVideoTransformer,
    optimizer: torch.optim.Optimizer,
    *,
    now: Mapping[str, object],
) -> LoopState:
    """Put a checkpoint into the parts of a run, and tell what has changed since.

    When the clips, the batch size or the seed changed, the saved place in the epoch means nothing any more:
    the epoch starts again.

    Args:
        folder: from `checkpoint_to_resume`.
        model: gets the LoRA.
        optimizer: gets its state.
        now: the run's `fingerprint`.

    Raises:
        CheckpointError: a file is damaged or does not fit.
    """
    saved = load_checkpoint(folder, optimizer)
    load_lora_state(model, read_lora(folder).weights)
    then = saved.fingerprint
    changed = {key for key in now.keys() & then.keys() if now[key] != then[key]}
    for key in sorted(changed - {EPOCH_ORDER}):
        logger.info("%s was %s until this checkpoint and is now %s", key, then[key], now[key])
    logger.info("Resuming from %s", folder)
    if EPOCH_ORDER not in changed:
        return LoopState(saved.step, saved.epoch, saved.cursor)
    logger.info("The clips or their order changed since: epoch %d starts again", saved.cursor[0])
    return LoopState(saved.step, saved.epoch, (saved.cursor[0], 0))


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
