"""What a run goes on from: decided before anything is encoded, put into the parts once they are built."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

import torch

from longcat_tune.checkpoint.lora_file import read_lora
from longcat_tune.checkpoint.run_state import find_checkpoint, has_checkpoints, load_checkpoint, read_state
from longcat_tune.config.run import RunConfig
from longcat_tune.config.training import TrainingSection
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.model.dit import LongCatVideoTransformer
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
    """What a checkpoint remembers of its run: the config, and a hash of what the order follows from.

    Through JSON, as the checkpoint holds it: tuples become lists.
    """
    values: dict[str, object] = json.loads(json.dumps(config.flat()))
    return values | {EPOCH_ORDER: _order_hash(config.training, training)}


def resume(
    folder: Path,
    model: LongCatVideoTransformer,
    optimizer: torch.optim.Optimizer,
    *,
    now: Mapping[str, object],
    cursor_at: Callable[[int], tuple[int, int]],
) -> LoopState:
    """Put a checkpoint into the parts of a run, and tell what has changed since.

    When the clips, the batch size or the seed changed, the saved place means nothing in the new order, which
    is entered where a run of its own would be after as many steps: so start_step and end_step stay exact.

    Args:
        folder: from `checkpoint_to_resume`.
        model: gets the LoRA.
        optimizer: gets its state.
        now: the run's `fingerprint`.
        cursor_at: gives the place in the order after so many steps.

    Raises:
        CheckpointError: a file is damaged or does not fit.
    """
    # Imported here: peft takes seconds, and `check` only asks whether there is a checkpoint.
    from longcat_tune.model.lora import load_lora_state

    saved = load_checkpoint(folder, optimizer)
    load_lora_state(model, read_lora(folder).weights)
    then = saved.fingerprint
    changed = {key for key in now.keys() & then.keys() if now[key] != then[key]}
    for key in sorted(changed - {EPOCH_ORDER}):
        logger.info("%s was %s until this checkpoint and is now %s", key, then[key], now[key])
    logger.info("Resuming from %s", folder)
    if EPOCH_ORDER not in changed:
        return LoopState(saved.step, saved.epoch, saved.cursor, saved.best)
    cursor = cursor_at(saved.step)
    logger.info(
        "The clips or their order changed since: going on with step %d of the new order, in epoch %d",
        saved.step + 1,
        cursor[0],
    )
    return LoopState(saved.step, cursor[0], cursor, saved.best)


def _order_hash(section: TrainingSection, training: Sequence[TrainingSet]) -> str:
    """Hash what decides which clips come in which batch, and which window and task they come with."""
    run = [section.train_batch_size, section.gradient_accumulation_steps, section.seed]
    digest = hashlib.blake2b(json.dumps(run).encode(), digest_size=16)
    for one in training:
        tasks = [astuple(task) for task in one.tasks]
        rules = [one.dataset_id, one.uses_per_epoch, one.probability, one.start_step, one.end_step, tasks]
        digest.update(json.dumps([*rules, len(one.samples)]).encode())
        # Not JSON, which takes a second for 100,000 clips; no name holds a zero, so neighbours stay apart.
        clips = "\0".join(
            f"{clip.clip_id}\0{clip.bucket.name}\0{len(clip.latents_paths)}" for clip in one.samples
        )
        digest.update(clips.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


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
