"""What a training run is made of, put together once: base, adapter, optimizer, average, loop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter

from longcat_tune.checkpoint.run_state import SavedRun
from longcat_tune.config.run import RunConfig
from longcat_tune.data.sampler import BucketSampler
from longcat_tune.flow.weighting import weighting
from longcat_tune.memory.boundaries import Boundaries
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import lora_disabled
from longcat_tune.runs.adapter import AdapterPlan, build_adapter
from longcat_tune.runs.build import (
    build_optimizer,
    build_schedule,
    compute_context,
    huber_c,
    loop_weights,
    sigma_density,
    uses_autocast,
)
from longcat_tune.runs.launch import shards_base
from longcat_tune.runs.resume import Resumed, resume
from longcat_tune.runs.transformer import base_weight, build_base
from longcat_tune.training.ema import Ema
from longcat_tune.training.parts import LoopParts

if TYPE_CHECKING:
    from accelerate import Accelerator

UP = ".lora_B."
"""In the names of the matrices that start as zero, which LoRA+ trains faster."""


@dataclass(frozen=True, slots=True)
class RunParts:
    """What a run trains with and where it begins.

    Attributes:
        model: the base with the adapter.
        loop: what a step is made with.
        start: where the run goes on, or begins.
    """

    model: LongCatVideoTransformer
    loop: LoopParts
    start: Resumed


def build_parts(
    config: RunConfig,
    folder: Path,
    adapter: AdapterPlan,
    sampler: BucketSampler,
    accelerator: Accelerator,
    *,
    max_steps: int,
    resume_from: SavedRun | None,
    fingerprint: dict[str, object],
) -> RunParts:
    """Load the base, add the adapter, and put a checkpoint into them if the run goes on from one.

    Args:
        config: the run.
        folder: the transformer's.
        adapter: what is trained.
        sampler: the order of batches, which a run whose clips changed enters anew.
        accelerator: of this process.
        max_steps: of the whole run.
        resume_from: from `checkpoint_to_resume`.
        fingerprint: of the run as it is now.

    Raises:
        UserError: the base, the checkpoint or the device will not do.
    """
    training, device, sharded = config.training, accelerator.device, shards_base(accelerator)
    model = model_with_adapter(config, folder, adapter, device=device, sharded=sharded)
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    ups = {id(weight) for name, weight in named if UP in name}

    def is_up(weight: Parameter) -> bool:
        return id(weight) in ups

    optimizer = build_optimizer(training, [weight for _, weight in named], is_up=is_up)
    ema = Ema(named, training.ema_decay) if training.use_ema else None
    start = Resumed()
    if resume_from is not None:
        start = resume(
            resume_from,
            model,
            optimizer,
            ema,
            now=fingerprint,
            accept_changes=training.accept_changes,
            cursor_at=sampler.plan.cursor_at,
        )
    density = sigma_density(config.flow)
    loop = LoopParts(
        model=model,
        optimizer=optimizer,
        schedule=build_schedule(training, optimizer, max_steps=max_steps, completed_steps=start.state.step),
        accelerator=accelerator,
        draw_sigma=density.sample,
        compute=compute_context(config.model, device),
        huber_c=huber_c(config.flow),
        as_base=partial(lora_disabled, model),
        weigh=weighting(config.flow.flow_loss_weighting, density),
        weights=loop_weights(training, optimizer),
        ema=ema,
        lockstep=sharded,
    )
    return RunParts(model, loop, start)


def model_with_adapter(
    config: RunConfig, folder: Path, adapter: AdapterPlan, *, device: torch.device, sharded: bool = False
) -> LongCatVideoTransformer:
    """Load the frozen base and add the adapter that is trained.

    Args:
        config: the run.
        folder: the transformer's.
        adapter: what to add.
        device: where both go.
        sharded: whether each process of the run is to hold a share of the blocks only.
    """
    training = config.training
    model = build_base(config, folder, device=device, trains=True, sharded=sharded).model
    build_adapter(
        model,
        adapter,
        seed=training.seed,
        autocast=uses_autocast(config.model),
        base_weight=base_weight,
    )
    if training.gradient_checkpointing:
        boundaries = Boundaries(device) if training.gradient_checkpointing_offload else None
        enable_recompute(
            model.blocks, interval=training.gradient_checkpointing_interval, boundaries=boundaries
        )
    return model
