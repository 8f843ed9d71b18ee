"""The command `train`: plan, caches, parts, loop; what the loop calls back is put together here."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator

from longcat_tune.checkpoint.lora_file import LORA_FILE, LoraWeights, read_lora, write_lora
from longcat_tune.checkpoint.run_state import (
    RunState,
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from longcat_tune.config.run import RunConfig, require_training_length
from longcat_tune.data.sampler import BucketSampler, Cursor, step_batches
from longcat_tune.errors import ConfigError, InterruptedRunError, UserError
from longcat_tune.files import require_writable, write_json_atomically
from longcat_tune.log import Bar, progress
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora, load_lora_state, lora_alphas, lora_state
from longcat_tune.model.lora_targets import lora_target_modules
from longcat_tune.runs.build import (
    build_optimizer,
    build_transformer,
    compute_context,
    pick_device,
    schedule_name,
    sigma_density,
    uses_autocast,
)
from longcat_tune.runs.cache import CachedRun, fill_caches
from longcat_tune.runs.plan import RunPlan, make_plan
from longcat_tune.runs.render import Renderer, build_renderer, weights_identity
from longcat_tune.runs.report import accounting_lines, plan_report, render_lines
from longcat_tune.runs.requests import plan_requests
from longcat_tune.training.interfaces import LoopHooks, LoopSettings, LoopState
from longcat_tune.training.loop import LoopParts, run_loop
from longcat_tune.training.metrics import EventLog, StepMetrics
from longcat_tune.training.optimizers import build_schedule

logger = logging.getLogger(__name__)


def train(config: RunConfig, *, config_dir: Path) -> None:
    """From clips to a LoRA, going on from the newest checkpoint by default.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.

    Raises:
        ConfigError: the length of the training is not given.
        InterruptedRunError: stopped by a signal, after saving.
        UserError: a clip, a folder, the weights or the device will not do.
    """
    require_training_length(config)
    output_dir = config.output.output_dir
    require_writable(output_dir)
    device = pick_device()
    plan = make_plan(config, config_dir=config_dir)
    plan.require_sound()
    requests = plan_requests(config.validation, plan.render_source)
    report = plan_report(plan, requests)
    for line in (*accounting_lines(report), *render_lines(requests, framerate=config.data.framerate)):
        logger.info("%s", line)
    cached = fill_caches(config, plan, requests, device=device)
    write_json_atomically(output_dir / "config.json", config.flat())
    write_json_atomically(output_dir / "plan.json", report)
    with EventLog(output_dir / "events.jsonl") as events:
        events.write(
            "run_start",
            device=str(device),
            clips=len(cached.samples),
            max_steps=plan.max_steps,
            versions=report["versions"],
        )
        try:
            final = _train(config, plan, cached, device, events)
        except UserError as error:
            if isinstance(error, InterruptedRunError):
                events.write("run_end", how="interrupted")
            else:
                events.write("error", kind=type(error).__name__, message=str(error))
            raise
        events.write("run_end", step=final.step, how="finished")


def _train(
    config: RunConfig, plan: RunPlan, cached: CachedRun, device: torch.device, events: EventLog
) -> LoopState:
    # Imported here: it costs a second, and a mistake in the data should be told before.
    from accelerate import Accelerator

    assert plan.max_steps is not None
    training = config.training
    model = model_with_lora(config, plan.checkpoint.transformer, device=device)
    optimizer = build_optimizer(training, [p for p in model.parameters() if p.requires_grad])
    start = _resume(config, model, optimizer, events)
    sampler = BucketSampler(
        cached.samples,
        cached.empty_text,
        batch_size=training.train_batch_size,
        seed=training.seed,
        caption_dropout=config.data.caption_dropout_probability,
    )
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
    renderer = build_renderer(config, plan.checkpoint, model, device=device)
    groups = step_batches(
        sampler,
        start=Cursor(*start.cursor) if start.cursor else Cursor(0, 0),
        accumulation=training.gradient_accumulation_steps,
        pin_memory=device.type == "cuda",
    )
    with progress("Training", plan.max_steps, done=start.step) as bar, closing(groups):
        callbacks = _Callbacks(config, plan, cached, parts, renderer, events, bar)
        return run_loop(
            parts,
            groups,
            settings=_loop_settings(config, plan.max_steps, renders=bool(cached.requests)),
            hooks=LoopHooks(callbacks.save, callbacks.validate, callbacks.on_step),
            start=start,
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
    )


def _resume(
    config: RunConfig, model: LongCatVideoTransformer, optimizer: torch.optim.Optimizer, events: EventLog
) -> LoopState:
    wanted = config.training.resume_from_checkpoint
    folder = None if wanted is None else find_checkpoint(config.output.output_dir, wanted)
    if folder is None:
        _require_fresh(config.output.output_dir)
        return LoopState()
    saved = load_checkpoint(folder, optimizer)
    load_lora_state(model, read_lora(folder).weights)
    # Through JSON, as the saved one went: tuples become lists.
    now = json.loads(json.dumps(config.flat()))
    for key in sorted(now.keys() & saved.fingerprint.keys()):
        if now[key] != saved.fingerprint[key]:
            logger.info(
                "%s was %s until this checkpoint and is now %s", key, saved.fingerprint[key], now[key]
            )
    logger.info("Resuming from %s", folder)
    events.write("resume", step=saved.step, folder=folder.name)
    return LoopState(saved.step, saved.epoch, saved.cursor)


def _require_fresh(output_dir: Path) -> None:
    """Keep a run that starts afresh from mixing its checkpoints with another's."""
    if latest_checkpoint(output_dir) is not None:
        msg = (
            f"resume_from_checkpoint (none): output_dir ({output_dir}) must hold no checkpoints but has "
            "some of an earlier run; choose another output_dir, or delete its checkpoint-* folders"
        )
        raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class _Callbacks:
    """What the loop calls: save, render, show."""

    config: RunConfig
    plan: RunPlan
    cached: CachedRun
    parts: LoopParts
    renderer: Renderer
    events: EventLog
    bar: Bar

    def save(self, state: LoopState) -> None:
        """Write a checkpoint, and its LoRA as the last one."""
        output = self.config.output
        lora = self._lora(state.step)
        folder = save_checkpoint(
            output.output_dir,
            RunState(state.step, state.epoch, state.cursor, fingerprint=self.config.flat()),
            self.parts.optimizer,
            write_files=lambda part: write_lora(part / LORA_FILE, lora),
            total_limit=output.checkpoints_total_limit,
        )
        write_lora(output.output_dir / LORA_FILE, lora)
        self.events.write("checkpoint", step=state.step, folder=folder.name)

    def validate(self, step: int) -> None:
        """Render all requests with the adapter as it is."""
        identity = weights_identity(str(self.plan.checkpoint.transformer), lora_state(self.renderer.model))
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

    def _lora(self, step: int) -> LoraWeights:
        lora, model = self.config.lora, self.renderer.model
        target = lora.lora_target if isinstance(lora.lora_target, str) else json.dumps(lora.lora_target)
        metadata = {
            "targets": target,
            "base_model": self.config.model.model_flavour,
            "step": str(step),
        }
        return LoraWeights(lora_state(model), lora_alphas(model), metadata)
