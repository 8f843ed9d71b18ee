"""What the training loop calls back: a checkpoint with its LoRA files, a step told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longcat_tune.checkpoint.lora_file import LoraWeights, copy_lora_files, write_lora_files
from longcat_tune.checkpoint.run_state import RunState, save_checkpoint
from longcat_tune.config.model import ModelSection
from longcat_tune.config.run import RunConfig
from longcat_tune.log import Bar
from longcat_tune.model.lora import lora_alphas, lora_state
from longcat_tune.runs.gallery import AVERAGED
from longcat_tune.runs.parts import RunParts
from longcat_tune.training.interfaces import LoopState
from longcat_tune.training.metrics import EventLog, EventName, StepMetrics


@dataclass(slots=True)
class Callbacks:
    """Save and show; in the first process of a run only.

    Attributes:
        config: the run.
        parts: what is trained.
        fingerprint: what checkpoints remember of the run.
        tracker_run_id: what checkpoints remember of the tracker.
        events: hears of everything.
        bar: shows it.
        loss_told: as the bar shows it; steps on regularisation data alone leave it as it was.
    """

    config: RunConfig
    parts: RunParts
    fingerprint: dict[str, object]
    tracker_run_id: str | None
    events: EventLog
    bar: Bar
    loss_told: str = field(default="", init=False)

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
                    write_lora_files(part / AVERAGED, self._lora(state.step), formats)

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

    def on_step(self, metrics: StepMetrics) -> None:
        """Log a step, and show it beside the bar."""
        self.events.write("step", **asdict(metrics))
        if metrics.loss is not None:
            self.loss_told = f"loss {metrics.loss:.4f}  "
        self.bar.advance(
            f"{self.loss_told}lr {metrics.learning_rate:.1e}  {metrics.seconds:.2f} s/step  "
            f"{metrics.memory_gib:.1f} GiB"
        )

    def on_event(self, name: EventName, fields: Mapping[str, Any]) -> None:
        """Log what else happens; a skipped step counts as one."""
        self.events.write(name, **fields)
        if name == "step_skipped":
            self.bar.advance("skipped")

    def _lora(self, step: int) -> LoraWeights:
        lora, model = self.config.lora, self.parts.model
        target = lora.lora_target if isinstance(lora.lora_target, str) else json.dumps(lora.lora_target)
        metadata = {
            "targets": target,
            "base_model": base_name(self.config.model),
            "step": str(step),
        }
        return LoraWeights(lora_state(model), lora_alphas(model), metadata)


def base_name(model: ModelSection) -> str:
    """What a LoRA's file calls its base: a hub id, else the flavour.

    A folder's path means nothing elsewhere, and the file may be uploaded.
    """
    for name in (model.pretrained_transformer_model_name_or_path, model.pretrained_model_name_or_path):
        folder = Path(name or "").expanduser()
        # A folder may be gone by the time that a checkpoint is saved, which must not fail for that.
        if name is not None and name.count("/") == 1 and not (folder.is_absolute() or folder.is_dir()):
            return name
    return model.model_flavour
