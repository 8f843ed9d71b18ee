"""Cached clips to batches: which clips, with which caption, in which order, from which place on.

Every choice follows from (seed, epoch), so two integers are all that a resumed run needs. Knows no model,
no optimizer step and no device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from longcat_tune.data.cache import read_latents, read_text
from longcat_tune.data.prefetch import mapped_ahead
from longcat_tune.errors import DataError
from longcat_tune.types import Batch, Bucket, CachedSample, TrainingSet

if TYPE_CHECKING:
    from torch import Tensor


class Cursor(NamedTuple):
    """A place in the endless order of batches: the first batch that was not used yet.

    Attributes:
        epoch: from 0.
        batch: from 0, counted within the epoch and this process.
    """

    epoch: int
    batch: int


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One batch as paths.

    Attributes:
        samples: of one bucket of one dataset.
        latents_paths: the window chosen for each.
        text_paths: the caption chosen for each; the empty prompt's where it was dropped.
        num_cond_latents: clean leading latent frames of all of them.
    """

    samples: tuple[CachedSample, ...]
    latents_paths: tuple[Path, ...]
    text_paths: tuple[Path, ...]
    num_cond_latents: int


@dataclass(frozen=True, slots=True)
class StepBatches:
    """The batches of one optimizer step.

    Attributes:
        batches: as many as are accumulated; fewer at the end of an epoch.
        epoch: the one they belong to.
        cursor: where to go on after them; the next epoch's start when they end theirs.
    """

    batches: tuple[Batch, ...]
    epoch: int
    cursor: Cursor


def count_batches(uses: Iterable[int], batch_size: int) -> int:
    """Batches of one epoch; a bucket's last one may be short.

    Args:
        uses: clips of each bucket, counted as often as they are used.
        batch_size: clips per batch.
    """
    return sum(math.ceil(count / batch_size) for count in uses)


@dataclass(frozen=True, slots=True)
class BucketSampler:
    """The order of batches for every epoch.

    Attributes:
        sets: all cached clips of a run, in the same order every time.
        empty_text: features of the empty prompt.
        batch_size: clips per batch; a bucket's last batch may be shorter, nothing is dropped.
        seed: the run's.
        caption_dropout: probability that a caption gives way to the empty prompt, 0 to 1.
        rank: this process.
        world_size: number of processes. When it does not divide the batches, the first ones of the epoch are
            used again, so that every process takes the same number of steps.

    Raises:
        DataError: there are no samples.
    """

    sets: tuple[TrainingSet, ...]
    empty_text: Path
    batch_size: int
    seed: int
    caption_dropout: float
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not any(one.samples for one in self.sets):
            raise DataError(
                "there are 0 clips to train on and at least 1 is needed; "
                "`longcat-tune check` lists every clip that was refused and why"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches that this process takes in one epoch."""
        uses = (len(samples) * one.uses_per_epoch for one, samples in self._groups())
        return math.ceil(count_batches(uses, self.batch_size) / self.world_size)

    def epoch(self, epoch: int) -> list[BatchPlan]:
        """Plan the batches of this process for one epoch."""
        # Two generators, so that another caption_dropout or caption count leaves the order as it is. A text
        # seed is hashed: the same on every machine, and neighbouring epochs have nothing in common.
        order = random.Random(f"order/{self.seed}/{epoch}")
        captions = random.Random(f"captions/{self.seed}/{epoch}")
        batches = [
            (one, batch)
            for one, samples in self._groups()
            for batch in self._shuffled_batches(one, samples, order)
        ]
        order.shuffle(batches)
        plans = [
            BatchPlan(
                samples,
                tuple(sample.latents_paths[0] for sample in samples),
                tuple(self._chosen_text(sample, captions) for sample in samples),
                one.tasks[0].num_cond_latents,
            )
            for one, samples in batches
        ]
        return list(
            islice(cycle(plans), self.rank, self.batches_per_epoch * self.world_size, self.world_size)
        )

    def _groups(self) -> list[tuple[TrainingSet, list[CachedSample]]]:
        """Samples that may share a batch."""
        groups: dict[tuple[str, Bucket], tuple[TrainingSet, list[CachedSample]]] = {}
        for one in self.sets:
            for sample in one.samples:
                groups.setdefault((one.dataset_id, sample.bucket), (one, []))[1].append(sample)
        return list(groups.values())

    def _shuffled_batches(
        self, one: TrainingSet, samples: list[CachedSample], order: random.Random
    ) -> list[tuple[CachedSample, ...]]:
        """Cut one pass after the other over the group, each shuffled on its own, into batches."""
        uses: list[CachedSample] = []
        for _ in range(one.uses_per_epoch):
            order.shuffle(samples)
            uses += samples
        starts = range(0, len(uses), self.batch_size)
        return [tuple(uses[start : start + self.batch_size]) for start in starts]

    def _chosen_text(self, sample: CachedSample, captions: random.Random) -> Path:
        chosen = captions.choice(sample.text_paths)
        return self.empty_text if captions.random() < self.caption_dropout else chosen


def load_batch(plan: BatchPlan) -> Batch:
    """Read one batch; latents and text keep the dtype of the cache, half the bytes to move to a device.

    Raises:
        DataError: a cache file is missing, damaged, or not of its bucket's size.
    """
    texts = [read_text(path).padded() for path in plan.text_paths]
    return Batch(
        latents_BCTHW=torch.stack(
            [
                _clean_latents(sample, path, plan.num_cond_latents)
                for sample, path in zip(plan.samples, plan.latents_paths, strict=True)
            ]
        ),
        text_BLD=torch.stack([text_LD for text_LD, _ in texts]),
        mask_BL=torch.stack([mask_L for _, mask_L in texts]),
        num_cond_latents=plan.num_cond_latents,
        clip_ids=tuple(sample.clip_id for sample in plan.samples),
    )


def step_batches(
    sampler: BucketSampler, *, start: Cursor, accumulation: int, pin_memory: bool
) -> Generator[StepBatches, None, None]:
    """Load the batches of one optimizer step after the other, endlessly, one step ahead in the background.

    A step's batches are loaded together: a clip of 93 frames at 832x480 is 5 MB of latents and 4 MB of text.
    Close the generator to end its thread.

    Args:
        sampler: gives the order.
        start: where a resumed run goes on; one beyond its epoch's end goes on with the next.
        accumulation: batches per step; no step reaches over the end of an epoch.
        pin_memory: page-lock the tensors, for faster copies to CUDA.

    Raises:
        DataError: as `load_batch`, from the step that the batch belongs to.
    """

    def load(planned: tuple[list[BatchPlan], int, Cursor]) -> StepBatches:
        plans, epoch, cursor = planned
        batches = (load_batch(plan) for plan in plans)
        return StepBatches(tuple(_pinned(b) if pin_memory else b for b in batches), epoch, cursor)

    return mapped_ahead(load, _planned_steps(sampler, start, accumulation))


def _planned_steps(
    sampler: BucketSampler, start: Cursor, accumulation: int
) -> Iterator[tuple[list[BatchPlan], int, Cursor]]:
    first = start.batch
    for epoch in count(start.epoch):
        plans = sampler.epoch(epoch)
        for begin in range(first, len(plans), accumulation):
            end = begin + accumulation
            cursor = Cursor(epoch, end) if end < len(plans) else Cursor(epoch + 1, 0)
            yield plans[begin:end], epoch, cursor
        first = 0


def _clean_latents(sample: CachedSample, path: Path, num_cond_latents: int) -> Tensor:
    """Read latents_CTHW, with the conditioning image in the first frame where the sample has one."""
    latents_CTHW = _read_sized(path, sample.bucket)
    if num_cond_latents != 1 or sample.cond_latents_path is None:
        return latents_CTHW
    image_C1HW = _read_sized(sample.cond_latents_path, replace(sample.bucket, num_frames=1))
    return torch.cat([image_C1HW, latents_CTHW[:, 1:]], dim=1)


def _read_sized(path: Path, bucket: Bucket) -> Tensor:
    latents_CTHW = read_latents(path)
    if tuple(latents_CTHW.shape[1:]) != bucket.latent_shape:
        raise DataError(
            f"cache file {path} holds latents of shape {tuple(latents_CTHW.shape)}, but bucket {bucket.name} "
            f"needs (channels, {', '.join(map(str, bucket.latent_shape))}); "
            "delete it and run `longcat-tune cache-latents` again"
        )
    return latents_CTHW


def _pinned(batch: Batch) -> Batch:
    return replace(
        batch,
        latents_BCTHW=batch.latents_BCTHW.pin_memory(),
        text_BLD=batch.text_BLD.pin_memory(),
        mask_BL=batch.mask_BL.pin_memory(),
    )
