"""The command `train`: plan, caches, parts, loop; what the loop calls back is put together here."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from longcat_tune.checkpoint.lora_file import LORA_FILE, LoraWeights, write_lora
from longcat_tune.checkpoint.run_state import RunState, save_checkpoint
from longcat_tune.config.run import RunConfig
from longcat_tune.data.batches import step_batches
from longcat_tune.data.epochs import Cursor
from longcat_tune.data.sampler import BucketSampler
from longcat_tune.errors import InterruptedRunError, UserError
from longcat_tune.files import require_writable, write_json_atomically
from longcat_tune.log import Bar, progress
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora, lora_alphas, lora_state
from longcat_tune.model.lora_targets import lora_target_modules
from longcat_tune.runs.build import (
    CheckpointFolders,
    build_optimizer,
    build_transformer,
    compute_context,
    find_checkpoint,
    pick_device,
    require_one_process,
    require_transformer,
    schedule_name,
    sigma_density,
    uses_autocast,
)
from longcat_tune.runs.cache import fill_caches
from longcat_tune.runs.cache_jobs import CachedRun
from longcat_tune.runs.evaluate import evaluate_every, evaluation_lines, held_out
from longcat_tune.runs.plan import RunPlan
from longcat_tune.runs.preflight import preflight
from longcat_tune.runs.render import Renderer, build_renderer, weights_identity
from longcat_tune.runs.report import plan_report
from longcat_tune.runs.report_text import dataset_lines, notice_lines, render_lines, step_lines
from longcat_tune.runs.resume import checkpoint_to_resume, fingerprint, resume
from longcat_tune.training.interfaces import LoopHooks, LoopSettings, LoopState
from longcat_tune.training.loop import LoopParts, run_loop
from longcat_tune.training.metrics import EventLog, EventName, StepMetrics
from longcat_tune.training.optimizers import build_schedule

logger = logging.getLogger(__name__)


def train(config: RunConfig, *, config_dir: Path) -> None:
    """From clips to a LoRA, going on from the newest checkpoint by default.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.

    Raises:
        InterruptedRunError: stopped by a signal, after saving.
        UserError: a clip, a folder, the weights or the device will not do.
    """
    require_one_process()
    output_dir = config.output.output_dir
    require_writable(output_dir)
    flight = preflight(config, config_dir=config_dir, trains=True)
    flight.require_sound()
    plan, requests = flight.plan, flight.requests
    resume_from = checkpoint_to_resume(config)
    checkpoint = flight.checkpoint or _download(config)
    report = plan_report(plan, requests, checkpoint, config.training)
    for line in (
        *dataset_lines(report),
        *step_lines(report),
        *render_lines(requests, framerate=config.data.framerate),
        *evaluation_lines(plan, config),
        *notice_lines(report),
    ):
        logger.info("%s", line)
    device = pick_device()
    cached = fill_caches(config, plan, checkpoint, requests, device=device)
    _write_config(config, config_dir=config_dir)
    write_json_atomically(output_dir / "plan.json", report)
    with EventLog(output_dir / "events.jsonl") as events:
        events.write(
            "run_start",
            device=str(device),
            clips=cached.num_clips,
            max_steps=plan.max_steps,
            versions=report["versions"],
        )
        how = "failed"
        try:
            _train(config, plan, checkpoint, cached, events, resume_from=resume_from, device=device)
            how = "finished"
        except InterruptedRunError:
            how = "interrupted"
            raise
        except UserError as error:
            events.write("error", kind=type(error).__name__, message=str(error))
            raise
        finally:
            # Also after a bug or Ctrl-C outside the loop: whoever follows the file must see the end.
            events.write("run_end", how=how)


def _download(config: RunConfig) -> CheckpointFolders:
    """Fetch the weights, whose names could not be looked at before."""
    checkpoint = find_checkpoint(config.model)
    require_transformer(config.lora, checkpoint.transformer)
    return checkpoint


def _write_config(config: RunConfig, *, config_dir: Path) -> None:
    """Keep what was asked, unless that would replace the file in which the user asks it."""
    path = config.output.output_dir / "config.json"
    if path.is_file() and path.parent.resolve() == config_dir.resolve():
        logger.info("%s is left as it is: output_dir is the folder of this run's config", path)
        return
    write_json_atomically(path, config.flat())


def _train(
    config: RunConfig,
    plan: RunPlan,
    checkpoint: CheckpointFolders,
    cached: CachedRun,
    events: EventLog,
    *,
    resume_from: Path | None,
    device: torch.device,
) -> None:
    # Imported here: it costs a second, and a mistake in the data should be told before.
    from accelerate import Accelerator

    assert plan.max_steps is not None
    training = config.training
    model = model_with_lora(config, checkpoint.transformer, device=device)
    optimizer = build_optimizer(training, [p for p in model.parameters() if p.requires_grad])
    sampler = BucketSampler(
        cached.training,
        cached.empty_text,
        batch_size=training.train_batch_size,
        seed=training.seed,
        caption_dropout=config.data.caption_dropout_probability,
        accumulation=training.gradient_accumulation_steps,
    )
    identity = fingerprint(config, cached.training)
    start = LoopState()
    if resume_from is not None:
        start = resume(resume_from, model, optimizer, now=identity, cursor_at=sampler.plan.cursor_at)
        events.write("resume", step=start.step, folder=resume_from.name)
    if start.step >= plan.max_steps:
        logger.info("All %d steps are done already; raise max_train_steps to train on", plan.max_steps)
    parts = LoopParts(
        model=model,
        optimizer=optimizer,
        schedule=build_schedule(
            schedule_name(training),
            optimizer,
            warmup_steps=training.lr_warmup_steps,
            completed_steps=start.step,
        ),
        accelerator=Accelerator(cpu=device.type == "cpu"),
        draw_sigma=sigma_density(config.flow).sample,
        compute=compute_context(config.model, device),
    )
    renderer = build_renderer(config, checkpoint, model, device=device)
    groups = step_batches(
        sampler,
        start=Cursor(*start.cursor) if start.cursor else Cursor(0, 0),
        pin_memory=device.type == "cuda",
    )
    with progress("Training", plan.max_steps, done=start.step) as bar, closing(groups):
        callbacks = _Callbacks(config, checkpoint, cached, parts, renderer, identity, events, bar)
        run_loop(
            parts,
            groups,
            settings=_loop_settings(config, plan.max_steps, renders=bool(cached.requests)),
            hooks=LoopHooks(callbacks.save, callbacks.validate, callbacks.on_step, callbacks.on_event),
            start=start,
            held_out=held_out(cached, config.flow, parts.processes),
        )


def model_with_lora(config: RunConfig, folder: Path, *, device: torch.device) -> LongCatVideoTransformer:
    """Load the frozen base and add the adapter that is trained.

    Args:
        config: the run.
        folder: the transformer's.
        device: where both go.
    """
    model = build_transformer(config.model, folder, device=device)
    add_lora(
        model,
        targets=lora_target_modules(model, config.lora.lora_target),
        rank=config.lora.lora_rank,
        alpha=config.lora.lora_alpha,
        generator=Generator().manual_seed(config.training.seed),
        dropout=config.lora.lora_dropout,
        autocast=uses_autocast(config.model),
    )
    if config.training.gradient_checkpointing:
        enable_recompute(model.blocks, interval=config.training.gradient_checkpointing_interval)
    return model


def _loop_settings(config: RunConfig, max_steps: int, *, renders: bool) -> LoopSettings:
    training, validation = config.training, config.validation
    return LoopSettings(
        max_steps=max_steps,
        seed=training.seed,
        max_grad_norm=training.max_grad_norm,
        grad_clip_method=training.grad_clip_method,
        save_every=config.output.checkpoint_step_interval,
        validate_every=(validation.validation_step_interval or None) if renders else None,
        validate_every_epochs=validation.validation_epoch_interval if renders else None,
        validate_first=validation.validation_on_startup and renders,
        evaluate_every=evaluate_every(config),
    )


@dataclass(frozen=True, slots=True)
class _Callbacks:
    """What the loop calls: save, render, show."""

    config: RunConfig
    checkpoint: CheckpointFolders
    cached: CachedRun
    parts: LoopParts
    renderer: Renderer
    fingerprint: dict[str, object]
    events: EventLog
    bar: Bar

    def save(self, state: LoopState) -> None:
        """Write a checkpoint, and its LoRA as the last one."""
        output = self.config.output
        lora = self._lora(state.step)
        folder = save_checkpoint(
            output.output_dir,
            RunState(state.step, state.epoch, state.cursor, self.fingerprint, state.best),
            self.parts.optimizer,
            write_files=lambda part: write_lora(part / LORA_FILE, lora),
            total_limit=output.checkpoints_total_limit,
        )
        write_lora(output.output_dir / LORA_FILE, lora)
        self.events.write("checkpoint", step=state.step, folder=folder.name)

    def validate(self, step: int) -> None:
        """Render all requests with the adapter as it is."""
        identity = weights_identity(str(self.checkpoint.transformer), lora_state(self.renderer.model))
        output_dir = self.config.output.output_dir
        shown = self.renderer.render(
            self.cached.requests,
            folder=output_dir / "validation" / f"step_{step:06d}",
            weights=identity,
        )
        files = [path.relative_to(output_dir).as_posix() for path in shown]
        self.events.write("validation", step=step, files=files)

    def on_step(self, metrics: StepMetrics) -> None:
        """Log a step, and show it beside the bar."""
        self.events.write("step", **asdict(metrics))
        self.bar.advance(
            f"loss {metrics.loss:.4f}  lr {metrics.learning_rate:.1e}  {metrics.seconds:.2f} s/step  "
            f"{metrics.memory_gib:.1f} GiB"
        )

    def on_event(self, name: EventName, fields: Mapping[str, Any]) -> None:
        """Log what else happens."""
        self.events.write(name, **fields)

    def _lora(self, step: int) -> LoraWeights:
        lora, model_keys, model = self.config.lora, self.config.model, self.renderer.model
        target = lora.lora_target if isinstance(lora.lora_target, str) else json.dumps(lora.lora_target)
        metadata = {
            "targets": target,
            "base_model": (
                model_keys.pretrained_transformer_model_name_or_path
                or model_keys.pretrained_model_name_or_path
                or model_keys.model_flavour
            ),
            "step": str(step),
        }
        return LoraWeights(lora_state(model), lora_alphas(model), metadata)
