"""What a run measures its loss on, and when: held-out clips of the plan, read from its caches.

How they are measured is training's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from longcat_tune.config.flow import FlowSection
from longcat_tune.config.run import RunConfig
from longcat_tune.data.batches import load_batch
from longcat_tune.data.sampler import BatchPlan
from longcat_tune.runs.cache_jobs import CachedRun
from longcat_tune.runs.plan import RunPlan
from longcat_tune.training.evaluation import NUM_SIGMAS, HeldOut, HeldOutClip, eval_sigmas, identity_of
from longcat_tune.training.processes import Processes
from longcat_tune.types import CachedSample


@dataclass(frozen=True, slots=True)
class _Use:
    """A clip for one task.

    Attributes:
        name: of its file, within the dataset.
        sample: with one window and one caption.
        num_cond_latents: the task.
    """

    name: str
    sample: CachedSample
    num_cond_latents: int

    def read(self) -> HeldOutClip:
        sample = self.sample
        plan = BatchPlan((sample,), sample.latents_paths, sample.text_paths, self.num_cond_latents)
        return HeldOutClip(self.name, load_batch(plan))

    @property
    def identity(self) -> tuple[str, ...]:
        """Names of what its loss depends on; those of cached files are hashes of what they hold."""
        paths = (*self.sample.latents_paths, *self.sample.text_paths, self.sample.cond_latents_path)
        cached = (path.name for path in paths if path is not None)
        return (*cached, self.name, str(self.num_cond_latents))


def held_out(cached: CachedRun, flow: FlowSection, processes: Processes) -> HeldOut | None:
    """Tell a run what to measure: every clip for every task of its dataset, in the order of their ids.

    Args:
        cached: the run's clips.
        flow: the section; noise levels follow from its shift.
        processes: that share the clips; those in lockstep each take all.

    Returns:
        None when no clip is held out.
    """
    uses = [
        _Use(sample.clip_id.removeprefix(f"{one.dataset_id}/"), sample, task.num_cond_latents)
        for one in cached.held_out
        for sample in one.samples
        for task in one.tasks
    ]
    if not uses:
        return None
    uses.sort(key=lambda use: (use.sample.clip_id, use.num_cond_latents))
    sigmas = eval_sigmas(flow.flow_schedule_shift)
    share = uses if processes.lockstep else uses[processes.rank :: processes.count]
    return HeldOut(lambda: _read(share), sigmas, identity_of(sigmas, (use.identity for use in uses)))


def evaluate_every(config: RunConfig) -> int:
    """Steps between evaluations; whenever a checkpoint is due, unless the config says otherwise."""
    return config.validation.eval_steps_interval or config.output.checkpoint_step_interval


def evaluation_lines(plan: RunPlan, config: RunConfig) -> list[str]:
    """What will be measured, and when; nothing when no clip is held out."""
    most = config.validation.num_eval_images
    counts = [(dataset.entry.id, len(dataset.plan.clips)) for dataset in plan.held_out]
    parts = [
        f"{min(count, most)} of {count} held-out clips of {name} (num_eval_images {most})"
        if count > most
        else f"the {count} held-out clips of {name}"
        for name, count in counts
        if count
    ]
    if not parts:
        return []
    every = f"every {evaluate_every(config)} steps"
    return [f"evaluation: the loss on {', '.join(parts)} at {NUM_SIGMAS} noise levels, {every}"]


def _read(uses: Sequence[_Use]) -> Iterator[HeldOutClip]:
    return (use.read() for use in uses)
