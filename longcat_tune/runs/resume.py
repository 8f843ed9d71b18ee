"""What a run goes on from: decided before anything is encoded, put into the parts once they are built."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch

from longcat_tune.checkpoint.lora_file import read_lora
from longcat_tune.checkpoint.optimizer_file import read_optimizer
from longcat_tune.checkpoint.run_state import SavedRun, find_checkpoint, has_checkpoints
from longcat_tune.config.run import RunConfig, changes_meaning
from longcat_tune.config.training import TrainingSection
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.runs.content import content_hashes
from longcat_tune.training.ema import Ema
from longcat_tune.training.interfaces import LoopState
from longcat_tune.types import TrainingSet

logger = logging.getLogger(__name__)

STEPS, EPOCHS = "max_train_steps", "num_train_epochs"
EPOCH_ORDER = "epoch_order"
PROCESSES = "processes"
ACCEPT = (
    "set them back, choose another output_dir for another run, or add --accept_changes to go on with this one"
)
SHAPES_OF_STATE = (
    "lora_rank",
    "lora_rank_pattern",
    "lora_target",
    "use_dora",
    "optimizer",
    "lora_plus_ratio",
)
"""Keys with another value of which a checkpoint's weights or optimizer state do not fit at all."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a run begins.

    Attributes:
        state: how far it has come.
        tracker_run_id: what a tracker knows it by.
        origin: as in RunState.
    """

    state: LoopState = field(default_factory=LoopState)
    tracker_run_id: str | None = None
    origin: str | None = None


def checkpoint_to_resume(config: RunConfig) -> SavedRun | None:
    """Find and verify the checkpoint that a run goes on from; None starts afresh.

    Args:
        config: the run.

    Raises:
        CheckpointError: it is not there, damaged, or holds another adapter.
        ConfigError: a fresh start would mix with an earlier run's checkpoints, or what is learned would
            change on the way.
    """
    training, output_dir = config.training, config.output.output_dir
    wanted = training.resume_from_checkpoint
    saved = None if wanted is None else find_checkpoint(output_dir, wanted)
    if saved is None:
        _require_fresh(output_dir, wanted)
        if wanted is None:
            logger.info("resume_from_checkpoint is none: leave it out to go on after a stop")
        return None
    then, now = saved.state.fingerprint, fingerprint(config, ())
    for key in SHAPES_OF_STATE:
        if then.get(key, now[key]) != now[key]:
            msg = (
                f"{key} ({now[key]}) must stay what it is in {saved.folder} ({then[key]}) to go on from "
                "there; set it back, or choose another output_dir"
            )
            raise CheckpointError(msg)
    changed = _changes_of_meaning(then, now, falls=training.schedule_falls)
    if changed and not training.accept_changes:
        rows = "\n  ".join(_table(then, now, sorted(changed)))
        raise ConfigError(f"{saved.folder} was made with other settings than these:\n  {rows}\n{ACCEPT}")
    return saved


def fingerprint(
    config: RunConfig, training: Sequence[TrainingSet], *, processes: int = 1
) -> dict[str, object]:
    """What a checkpoint remembers of its run: the config, and hashes of the content and of its order.

    Through JSON, as the checkpoint holds it: tuples become lists.

    Args:
        config: the run.
        training: what it trains on.
        processes: that share the batches.
    """
    values: dict[str, object] = json.loads(json.dumps(config.flat()))
    order = {EPOCH_ORDER: _order_hash(config.training, training), PROCESSES: processes}
    return values | content_hashes(training) | order


def resume(
    saved: SavedRun,
    model: LongCatVideoTransformer,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    *,
    now: Mapping[str, object],
    accept_changes: bool,
    cursor_at: Callable[[int], tuple[int, int]],
) -> Resumed:
    """Put a checkpoint into the parts of a run, and tell what has changed since.

    When the clips, the batch size, the seed or the number of processes changed, the saved place means nothing
    in the new order, which is entered where a run of its own would be after as many steps: so start_step and
    end_step stay exact.

    Args:
        saved: from `checkpoint_to_resume`.
        model: gets the LoRA.
        optimizer: gets its state.
        ema: gets the average, if the run keeps one.
        now: the run's `fingerprint`.
        accept_changes: go on although the clips or their order have changed.
        cursor_at: gives the place in the order after so many steps.

    Raises:
        CheckpointError: what it holds does not fit.
        ConfigError: the clips or their order have changed, and that is not accepted.
    """
    # Imported here: peft takes seconds, and `check` only asks whether there is a checkpoint.
    from longcat_tune.model.lora import load_lora_state

    folder, state = saved.folder, saved.state
    changed = _differences(state.fingerprint, now)
    reordered = bool(changed & {EPOCH_ORDER, PROCESSES})
    if reordered and not accept_changes:
        raise ConfigError(
            f"{folder} was made with other clips, in another order, or by another number of processes; "
            f"{ACCEPT}"
        )
    read_optimizer(folder, optimizer)
    load_lora_state(model, read_lora(folder).weights)
    if ema is not None:
        ema.resume(folder)
    if rows := _table(state.fingerprint, now, sorted(changed - {EPOCH_ORDER})):
        logger.info("Changed since %s:\n  %s", folder.name, "\n  ".join(rows))
    logger.info("Resuming from %s", folder)
    epoch, cursor = state.epoch, state.cursor
    if reordered:
        cursor = cursor_at(state.step)
        epoch = cursor[0]
        logger.info(
            "Other batches than before: going on with step %d of the new order, in epoch %d",
            state.step + 1,
            epoch,
        )
    return Resumed(LoopState(state.step, epoch, cursor, state.best), state.tracker_run_id, state.origin)


def _changes_of_meaning(then: Mapping[str, object], now: Mapping[str, object], *, falls: bool) -> set[str]:
    """Changed keys that decide what is learned; of a falling learning rate the run's length is one."""
    changed = _differences(then, now)
    lengths = changed & {STEPS, EPOCHS} if falls else set()
    if STEPS not in lengths and now[STEPS] is not None:
        # Steps win over epochs.
        lengths.discard(EPOCHS)
    return {key for key in changed if changes_meaning(key, then[key], now[key])} | lengths


def _differences(then: Mapping[str, object], now: Mapping[str, object]) -> set[str]:
    """Keys that both know and that have different values."""
    return {key for key in now.keys() & then.keys() if now[key] != then[key]}


def _table(then: Mapping[str, object], now: Mapping[str, object], changed: Sequence[str]) -> list[str]:
    """One line per key: what it was and what it is."""
    width = max(map(len, changed), default=0)
    return [f"{key:<{width}}  {then[key]} -> {now[key]}" for key in changed]


def _order_hash(section: TrainingSection, training: Sequence[TrainingSet]) -> str:
    """Hash what decides which clips come in which batch, and which window, task and target they have."""
    run = [section.train_batch_size, section.gradient_accumulation_steps, section.seed]
    digest = hashlib.blake2b(json.dumps(run).encode(), digest_size=16)
    for one in training:
        tasks = [astuple(task) for task in one.tasks]
        rules = [one.dataset_id, one.uses_per_epoch, one.probability, one.start_step, one.end_step, tasks]
        # Left out where it is not so, that checkpoints older than the key go on.
        rules += [True] if one.keeps_base else []
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
        f"{'' if wanted else ', or set it to latest to go on from them'}"
    )
    raise ConfigError(msg)
