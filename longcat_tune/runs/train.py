"""The command `train`: preflight, caches, parts, loop; in one process or in several that train as one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longcat_tune.config.run import RunConfig
from longcat_tune.data.batches import load_batch, step_batches
from longcat_tune.data.epochs import Cursor
from longcat_tune.data.sampler import BucketSampler
from longcat_tune.errors import InterruptedRunError, UserError
from longcat_tune.files import require_writable, write_json_atomically
from longcat_tune.log import progress
from longcat_tune.runs.adapter import AdapterPlan
from longcat_tune.runs.build import CheckpointFolders, find_checkpoint, require_transformer
from longcat_tune.runs.cache import fill_caches
from longcat_tune.runs.cache_jobs import CachedRun
from longcat_tune.runs.callbacks import Callbacks
from longcat_tune.runs.evaluate import evaluate_every, evaluation_lines, held_out
from longcat_tune.runs.hub import upload_lora
from longcat_tune.runs.launch import build_accelerator, require_launch, require_shardable, shards_base
from longcat_tune.runs.memory_plan import MemoryPlan
from longcat_tune.runs.memory_report import measured_peaks, memory_lines, memory_report, peak_lines
from longcat_tune.runs.parts import build_parts
from longcat_tune.runs.plan import RunPlan
from longcat_tune.runs.preflight import Preflight, preflight
from longcat_tune.runs.render_build import build_renderer
from longcat_tune.runs.render_lora_check import require_render_loras
from longcat_tune.runs.report import plan_report
from longcat_tune.runs.report_text import dataset_lines, notice_lines, render_lines, step_lines
from longcat_tune.runs.resume import Resumed, fingerprint
from longcat_tune.runs.step_renders import StepRenders
from longcat_tune.training.interfaces import LoopHooks, LoopSettings
from longcat_tune.training.loop import run_loop
from longcat_tune.training.metrics import EventLog
from longcat_tune.training.trackers import TrackedRun, tracking

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def train(config: RunConfig, *, config_dir: Path) -> None:
    """From clips to a LoRA, going on from the newest checkpoint by default.

    Started by torchrun or accelerate launch, every process plans for itself, fills its share of the caches
    and takes its share of the batches; only the first writes the run's folder.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.

    Raises:
        InterruptedRunError: stopped by a signal, after saving.
        UserError: a clip, a folder, the weights or the device will not do.
    """
    require_launch()
    output_dir = config.output.output_dir
    require_writable(output_dir)
    flight = preflight(config, config_dir=config_dir, trains=True)
    flight.require_sound()
    assert flight.memory is not None
    run = _Run(
        # With what memory_plan auto has chosen.
        config=flight.memory.config,
        config_dir=config_dir,
        flight=flight,
        checkpoint=flight.checkpoint or find_checkpoint(config.model),
        accelerator=build_accelerator(),
    )
    run.train()
    if run.accelerator.is_main_process:
        upload_lora(config)


@dataclass(frozen=True, slots=True)
class _Run:
    """What is settled before anything is encoded."""

    config: RunConfig
    config_dir: Path
    flight: Preflight
    checkpoint: CheckpointFolders
    accelerator: Accelerator

    @property
    def plan(self) -> RunPlan:
        """Of the clips."""
        return self.flight.plan

    @property
    def memory(self) -> MemoryPlan:
        """What the run needs of this machine."""
        assert self.flight.memory is not None
        return self.flight.memory

    @property
    def output_dir(self) -> Path:
        """Of the run."""
        return self.config.output.output_dir

    def train(self) -> None:
        """Fill the caches, then train."""
        config, requests = self.config, self.flight.requests
        report = plan_report(self.plan, requests, self.checkpoint, config.training)
        report["memory"] = memory_report(self.memory)
        for line in (
            *dataset_lines(report),
            *step_lines(report),
            *render_lines(requests, framerate=config.data.framerate),
            *evaluation_lines(self.plan, config),
            *notice_lines(report),
            *memory_lines(report["memory"]),
        ):
            logger.info("%s", line)
        # Where the weights come from the hub, the preflight could not look at them.
        adapter = self.flight.adapter or require_transformer(
            config.lora,
            self.checkpoint.transformer,
            config_dir=self.config_dir,
            starts=self.flight.resume_from is None,
        )
        if self.flight.checkpoint is None:
            require_render_loras(config, self.checkpoint.transformer, config_dir=self.config_dir)
        if shards_base(self.accelerator):
            require_shardable(
                renders=self._settings(renders=bool(requests)).validate_last,
                dora=adapter.dora,
                keeps_base=any(dataset.keeps_base for dataset in self.plan.training),
            )
        cached = fill_caches(config, self.plan, self.checkpoint, requests, device=self.accelerator.device)
        self.accelerator.wait_for_everyone()
        with self._recorded(report, cached) as events:
            self._train(adapter, cached, events)

    @contextmanager
    def _recorded(self, report: dict[str, Any], cached: CachedRun) -> Iterator[EventLog]:
        """The record that a run leaves of itself; only the first process leaves one."""
        first = self.accelerator.is_main_process
        if first:
            self._write_config()
            write_json_atomically(self.output_dir / "plan.json", report)
        with EventLog(self.output_dir / "events.jsonl" if first else None) as events:
            events.write(
                "run_start",
                device=str(self.accelerator.device),
                processes=self.accelerator.num_processes,
                clips=cached.num_clips,
                max_steps=self.plan.max_steps,
                versions=report["versions"],
            )
            how = "failed"
            try:
                yield events
                how = "finished"
            except InterruptedRunError:
                how = "interrupted"
                raise
            except UserError as error:
                events.write("error", kind=type(error).__name__, message=str(error))
                raise
            finally:
                peaks = measured_peaks(self.memory, self.accelerator.device)
                for line in peak_lines(peaks):
                    logger.info("%s", line)
                # Also after a bug or Ctrl-C outside the loop: whoever follows the file must see the end.
                events.write("run_end", how=how, **peaks)

    def _write_config(self) -> None:
        """Keep what was asked, unless that would replace the file in which the user asks it."""
        path = self.output_dir / "config.json"
        if path.is_file() and path.parent.resolve() == self.config_dir.resolve():
            logger.info("%s is left as it is: output_dir is the folder of this run's config", path)
            return
        write_json_atomically(path, self.config.flat())

    def _train(self, adapter: AdapterPlan, cached: CachedRun, events: EventLog) -> None:
        config, device, max_steps = self.config, self.accelerator.device, self.plan.max_steps
        assert max_steps is not None
        sampler = self._sampler(cached)
        processes = self.accelerator.num_processes
        identity = fingerprint(config, cached.training, processes=processes)
        parts = build_parts(
            config,
            self.checkpoint.transformer,
            adapter,
            sampler,
            self.accelerator,
            max_steps=max_steps,
            resume_from=self.flight.resume_from,
            fingerprint=identity,
        )
        start = parts.start.state
        if self.flight.resume_from is not None:
            events.write("resume", step=start.step, folder=self.flight.resume_from.folder.name)
        if start.step >= max_steps:
            logger.info("All %d steps are done already; raise max_train_steps to train on", max_steps)
        reports_to = config.output.report_to if self.accelerator.is_main_process else "none"
        groups = step_batches(
            sampler,
            start=Cursor(*start.cursor) if start.cursor else Cursor(0, 0),
            pin_memory=device.type == "cuda",
        )
        with (
            tracking(reports_to, self._tracked(parts.start)) as tracker,
            events.heard_by(tracker.hear),
            progress("Training", max_steps, done=start.step) as bar,
            closing(groups),
        ):
            callbacks = Callbacks(
                config=config,
                parts=parts,
                fingerprint=identity,
                tracker_run_id=tracker.run_id,
                events=events,
                bar=bar,
            )
            renders = StepRenders(
                config=config,
                base=str(self.checkpoint.transformer),
                requests=cached.requests,
                parts=parts,
                renderer=build_renderer(
                    config, self.checkpoint, parts.model, config_dir=self.config_dir, device=device
                ),
                events=events,
            )
            if start.step < max_steps and self.accelerator.is_main_process:
                renders.probe(start.step)
            run_loop(
                parts.loop,
                groups,
                settings=self._settings(renders=bool(cached.requests)),
                hooks=LoopHooks(callbacks.save, renders.validate, callbacks.on_step, callbacks.on_event),
                start=start,
                largest=load_batch(sampler.largest()),
                held_out=held_out(cached, config.flow, parts.loop.processes),
            )

    def _sampler(self, cached: CachedRun) -> BucketSampler:
        training = self.config.training
        return BucketSampler(
            cached.training,
            cached.empty_text,
            batch_size=training.train_batch_size,
            seed=training.seed,
            caption_dropout=self.config.data.caption_dropout_probability,
            accumulation=training.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def _tracked(self, start: Resumed) -> TrackedRun:
        output = self.config.output
        return TrackedRun(
            output_dir=self.output_dir,
            project=output.tracker_project_name or "longcat-tune",
            name=output.tracker_run_name or self.output_dir.resolve().name,
            config=self.config.flat(),
            run_id=start.tracker_run_id,
            first_step=start.state.step + 1,
        )

    def _settings(self, *, renders: bool) -> LoopSettings:
        training, validation = self.config.training, self.config.validation
        assert self.plan.max_steps is not None
        return LoopSettings(
            max_steps=self.plan.max_steps,
            seed=training.seed,
            max_grad_norm=training.max_grad_norm,
            grad_clip_method=training.grad_clip_method,
            save_every=self.config.output.checkpoint_step_interval,
            validate_every=(validation.validation_step_interval or None) if renders else None,
            validate_every_epochs=validation.validation_epoch_interval if renders else None,
            validate_first=validation.validation_on_startup and renders,
            evaluate_every=evaluate_every(self.config),
        )
