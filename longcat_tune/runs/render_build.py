"""Config to a run's renderer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch

from longcat_tune.config.run import RunConfig
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.runs.build import CheckpointFolders, compute_context
from longcat_tune.runs.cache import load_job
from longcat_tune.runs.fitting import Fitting
from longcat_tune.runs.paths import existing_path
from longcat_tune.runs.precision import DTYPES
from longcat_tune.runs.refinement import Refiner
from longcat_tune.runs.render import Renderer
from longcat_tune.runs.render_lora import attach_render_lora, render_lora_identity

SHAPING_KEYS = (
    "flow_schedule_shift",
    "framerate",
    "base_model_precision",
    "mixed_precision",
    "attention_implementation",
    "vae_dtype",
)
"""Config keys that change a render and are not part of its request."""


def build_renderer(
    config: RunConfig,
    checkpoint: CheckpointFolders,
    model: LongCatVideoTransformer,
    *,
    config_dir: Path,
    device: torch.device,
) -> Renderer:
    """Put a run's renderer together.

    Args:
        config: the run.
        checkpoint: of the decoder.
        model: with the adapter that is trained, if any; gets those that work in renders only.
        config_dir: where relative paths of the config start.
        device: where the model computes.

    Raises:
        UserError: validation_lora or validation_refinement_lora will not do.
    """
    flat, validation = config.flat(), config.validation
    settings = {key: flat[key] for key in SHAPING_KEYS} | {"vae": str(checkpoint.vae)}
    compute = compute_context(config.model, device)
    read_start = partial(load_job, backend=config.data.video_backend)

    def lender(key: str) -> Callable[[], AbstractContextManager[None]]:
        path = existing_path(Path(flat[key]), key=key, config_dir=config_dir)
        settings[key] = render_lora_identity(path)
        return attach_render_lora(config, model, path, key=key, device=device)

    lend_lora: Callable[[], AbstractContextManager[None]] = nullcontext
    if validation.validation_lora is not None:
        lend_lora = lender("validation_lora")
    refiner: Refiner | None = None
    if validation.validation_refinement_lora is not None:
        shift = config.flow.flow_schedule_shift
        refiner = Refiner(lender("validation_refinement_lora"), read_start, compute, shift, device)

    def load_vae(tiling: bool) -> VideoAutoencoder:
        dtype = DTYPES[config.model.vae_dtype]
        return VideoAutoencoder.load(checkpoint.vae, dtype=dtype, device=device, tiling=tiling)

    return Renderer(
        model=model,
        load_vae=load_vae,
        shift=config.flow.flow_schedule_shift,
        fps=config.data.framerate,
        device=device,
        compute=compute,
        read_start=read_start,
        settings=settings,
        fitting=Fitting(),
        lend_lora=lend_lora,
        refiner=refiner,
        preview_every=validation.validation_preview_steps if validation.validation_preview else None,
    )
