"""What the training loop calls back: a checkpoint with its LoRA files, renders, a step told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longcat_tune.checkpoint.lora_file import LoraWeights, copy_lora_files, write_lora_files
from longcat_tune.checkpoint.run_state import RunState, save_checkpoint
from longcat_tune.config.run import RunConfig
from longcat_tune.log import Bar
from longcat_tune.model.lora import lora_alphas, lora_state
from longcat_tune.runs.cache_jobs import CachedRun
from longcat_tune.runs.parts import RunParts
from longcat_tune.runs.render import Renderer, weights_identity
from longcat_tune.training.interfaces import LoopState
from longcat_tune.training.metrics import EventLog, EventName, StepMetrics

EMA_RENDERS = "ema"
"""Folder, inside a step's renders, of those made with the averaged weights beside the trained ones."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Save, render, show; in the first process of a run only.

    Attributes:
        config: the run.
        base: identity of the frozen base.
        cached: what is rendered.
        parts: what is trained.
        renderer: makes the renders.
        fingerprint: what checkpoints remember of the run.
        tracker_run_id: what checkpoints remember of the tracker.
        events: hears of everything.
        bar: shows it.
    """

    config: RunConfig
    base: str
    cached: CachedRun
    parts: RunParts
    renderer: Renderer
    fingerprint: dict[str, object]
    tracker_run_id: str | None
    events: EventLog
    bar: Bar

    def save(self, state: LoopState) -> None:
        """Write a checkpoint, and its LoRA as the last one, in every format asked for."""
        output, formats = self.config.output, self.config.lora.lora_format
        lora = self._lora(state.step)
        ema = self.parts.loop.ema

        def write_files(part: Path) -> None:
            write_lora_files(part, lora, formats)
            if ema is not None:
                ema.write(part)
                with ema.swapped_in():
                    write_lora_files(part / EMA_RENDERS, self._lora(state.step), formats)

        run_state = RunState(
            state.step,
            state.epoch,
            state.cursor,
            self.fingerprint,
            state.best,
            self.tracker_run_id,
            self.parts.start.origin,
        )
        folder = save_checkpoint(
            output.output_dir,
            run_state,
            self.parts.loop.optimizer,
            write_files=write_files,
            total_limit=output.checkpoints_total_limit,
        )
        copy_lora_files(folder, output.output_dir, formats)
        self.events.write("checkpoint", step=state.step, folder=folder.name)

    def validate(self, step: int) -> None:
        """Render all requests with the adapter as it is, with its average, or with both."""
        output_dir = self.config.output.output_dir
        folder = output_dir / "validation" / f"step_{step:06d}"
        shown: list[Path] = []
        for place, weights in self._rendered_weights(folder):
            with weights:
                identity = weights_identity(self.base, lora_state(self.parts.model))
                shown += self.renderer.render(self.cached.requests, folder=place, weights=identity)
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
        """Log what else happens; a skipped step counts as one."""
        self.events.write(name, **fields)
        if name == "step_skipped":
            self.bar.advance("skipped")

    def _rendered_weights(self, folder: Path) -> list[tuple[Path, AbstractContextManager[None]]]:
        """Where renders go, and what puts their weights in place."""
        ema, choice = self.parts.loop.ema, self.config.training.ema_validation
        if ema is None or choice == "none":
            return [(folder, nullcontext())]
        if choice == "ema_only":
            return [(folder, ema.swapped_in())]
        return [(folder, nullcontext()), (folder / EMA_RENDERS, ema.swapped_in())]

    def _lora(self, step: int) -> LoraWeights:
        lora, model_keys, model = self.config.lora, self.config.model, self.parts.model
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
