"""What `check`, `train` and `cache-latents` do first: the plan, the renders and the weights' folders, whole.

Each part is looked at whatever another one says, so that everything wrong is told at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longcat_tune.checkpoint.run_state import SavedRun
from longcat_tune.config.lora import LoraSection
from longcat_tune.config.model import ModelSection
from longcat_tune.config.run import RunConfig, require_training_length
from longcat_tune.errors import CheckpointError, UserError
from longcat_tune.model.attention import require_attention
from longcat_tune.runs.adapter import AdapterPlan, plan_adapter
from longcat_tune.runs.build import (
    CheckpointFolders,
    find_local_checkpoint,
    pick_device,
    require_transformer,
    sigma_density,
)
from longcat_tune.runs.hub import require_upload
from longcat_tune.runs.launch import require_plain_base
from longcat_tune.runs.machine import Machine, this_machine
from longcat_tune.runs.memory_plan import MemoryPlan, plan_memory, require_fit
from longcat_tune.runs.memory_sizes import run_sizes
from longcat_tune.runs.plan import RunPlan, make_plan
from longcat_tune.runs.precision import base_weights, text_encoder_weights
from longcat_tune.runs.problems import Problem, collected, raise_problems
from longcat_tune.runs.render_lora_check import require_render_loras
from longcat_tune.runs.requests import plan_requests
from longcat_tune.runs.resume import checkpoint_to_resume
from longcat_tune.sampling.requests import RenderRequest
from longcat_tune.training.optimizers import require_optimizer
from longcat_tune.training.trackers import require_tracker


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a run would do, and all that keeps it from doing so.

    Attributes:
        plan: of the clips.
        requests: what is rendered.
        checkpoint: where the weights are; None while they are only named by a hub id, or cannot be found.
        resume_from: where a training run goes on; None: at the beginning.
        adapter: what it trains; None where the weights' folder is not known yet.
        memory: what it needs of the machine; None where it does not train, has no clips, or something is
            wrong already.
        errors: what is wrong beside the plan.
    """

    plan: RunPlan
    requests: tuple[RenderRequest, ...]
    checkpoint: CheckpointFolders | None
    resume_from: SavedRun | None
    adapter: AdapterPlan | None
    memory: MemoryPlan | None
    errors: tuple[UserError, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All of them, those of the clips first."""
        return (*self.plan.problems, *(Problem.of_error(error) for error in self.errors))

    def require_sound(self) -> None:
        """Stop before anything is encoded.

        Raises:
            DataError: lists every problem with its remedy.
            UserError: the only problem, in its own words and with its own exit code.
        """
        if len(self.problems) == len(self.errors) == 1:
            raise self.errors[0]
        raise_problems(self.problems)


def preflight(
    config: RunConfig, *, config_dir: Path, trains: bool, machine: Machine | None = None
) -> Preflight:
    """Look at everything that a run needs, without loading weights, downloading them or encoding anything.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.
        trains: look at what only training needs, too: its length, the LoRA's targets, where it goes on, and
            whether it fits into memory.
        machine: that it shall fit; None: this one.

    Raises:
        ConfigError: the data file is wrong; then nothing else can be looked at.
    """
    plan = make_plan(config, config_dir=config_dir)
    errors: list[UserError] = []
    requests: tuple[RenderRequest, ...] = ()
    with collected(errors):
        requests = plan_requests(config, plan.render_source, config_dir=config_dir)
    checkpoint: CheckpointFolders | None = None
    resume_from: SavedRun | None = None
    adapter: AdapterPlan | None = None
    with collected(errors):
        checkpoint = find_local_checkpoint(config.model)
    if checkpoint is not None:
        errors += _incomplete_encoders(checkpoint)
    with collected(errors):
        transformer = None if checkpoint is None else checkpoint.transformer
        require_render_loras(config, transformer, config_dir=config_dir)
    if machine is None:
        errors += _formats_that_cannot_be(config.model, trains=trains)
    if trains:
        with collected(errors):
            require_training_length(config)
        with collected(errors):
            require_plain_base(config)
        with collected(errors):
            resume_from = checkpoint_to_resume(config)
        with collected(errors):
            require_optimizer(config.training.optimizer)
        if machine is None:
            with collected(errors):
                kernel = config.model.attention_implementation
                require_attention(kernel, device=pick_device(), training=True)
        with collected(errors):
            require_tracker(config.output.report_to)
        with collected(errors):
            require_upload(config)
        with collected(errors):
            sigma_density(config.flow)
        if checkpoint is not None:
            with collected(errors):
                adapter = require_transformer(
                    config.lora, checkpoint.transformer, config_dir=config_dir, starts=resume_from is None
                )
    memory: MemoryPlan | None = None
    if trains and not errors and any(dataset.plan.clips for dataset in plan.training):
        with collected(errors):
            trained = adapter or _released_adapter(config.lora, config_dir=config_dir)
            sizes = run_sizes(config, plan, requests, checkpoint, trained, config_dir=config_dir)
            memory = plan_memory(config, sizes, machine or this_machine())
            require_fit(memory, sizes)
    return Preflight(plan, requests, checkpoint, resume_from, adapter, memory, tuple(errors))


def _released_adapter(lora: LoraSection, *, config_dir: Path) -> AdapterPlan:
    """What is trained of the released model, whose weights are not here yet."""
    # Imported here: most runs have their weights.
    import torch

    from longcat_tune.model.dit import LongCatVideoTransformer

    with torch.device("meta"):
        released = LongCatVideoTransformer()
    return plan_adapter(lora, released, config_dir=config_dir, starts=False)


def _formats_that_cannot_be(model: ModelSection, *, trains: bool) -> list[UserError]:
    """What keeps the weights that will be loaded from being quantized as asked on this machine."""
    errors: list[UserError] = []
    for held in (text_encoder_weights, base_weights) if trains else (text_encoder_weights,):
        with collected(errors):
            held(model, pick_device())
    return errors


def _incomplete_encoders(checkpoint: CheckpointFolders) -> Iterator[CheckpointError]:
    """The first file that each encoder's folder lacks; whoever loads them finds out what else is wrong."""
    for folder in (checkpoint.vae / "vae", checkpoint.text_encoder / "text_encoder"):
        needed = [folder / "config.json"]
        for index in folder.glob("*.safetensors.index.json"):
            try:
                shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                yield CheckpointError(f"{index}: damaged; fetch the checkpoint again")
                continue
            needed += [folder / name for name in sorted(shards)]
        missing = [path for path in needed if not path.is_file()]
        if missing:
            yield CheckpointError(f"{missing[0]}: missing; fetch the checkpoint again")
