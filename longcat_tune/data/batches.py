"""Planned batches to tensors, read ahead in the background from any place in the order on.

Knows no model and no optimizer; the order is the sampler's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from longcat_tune.data.cache import read_latents, read_text
from longcat_tune.data.epochs import Cursor
from longcat_tune.data.prefetch import mapped_ahead
from longcat_tune.data.sampler import BatchPlan, BucketSampler
from longcat_tune.data.tasks import START_IMAGE_LATENTS
from longcat_tune.errors import DataError
from longcat_tune.types import TEXT_TOKENS, Batch, Bucket, CachedSample, TextFeatures

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The batches of one optimizer step, as paths.

    Attributes:
        plans: as many as are accumulated; fewer at the end of an epoch.
        epoch: the one they belong to.
        cursor: where to go on after them; the next epoch's start when they end theirs.
    """

    plans: tuple[BatchPlan, ...]
    epoch: int
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class StepBatches:
    """The batches of one optimizer step, read.

    Attributes:
        batches: as in StepPlan.
        epoch: as in StepPlan.
        cursor: as in StepPlan.
    """

    batches: tuple[Batch, ...]
    epoch: int
    cursor: Cursor


def plan_steps(sampler: BucketSampler, start: Cursor) -> Generator[StepPlan, None, None]:
    """Plan one optimizer step after the other, until the last dataset's last step if there is one.

    The next epoch is put in order in the background while this one is used.
    Close the generator to end its thread.

    Args:
        sampler: gives the order.
        start: where a resumed run goes on; one beyond its epoch's end goes on with the next.
    """
    num_epochs, accumulation = sampler.plan.num_epochs, sampler.plan.accumulation
    numbers = count(start.epoch) if num_epochs is None else range(start.epoch, num_epochs)
    first = start.batch
    with closing(mapped_ahead(sampler.epoch, numbers)) as orders:
        for order in orders:
            for begin in range(first, len(order), accumulation):
                end = min(begin + accumulation, len(order))
                cursor = Cursor(order.epoch, end) if end < len(order) else Cursor(order.epoch + 1, 0)
                plans = tuple(sampler.batch(order, place) for place in range(begin, end))
                yield StepPlan(plans, order.epoch, cursor)
            first = 0


def step_batches(
    sampler: BucketSampler, *, start: Cursor, pin_memory: bool, workers: int = 2
) -> Generator[StepBatches, None, None]:
    """Read the batches of one optimizer step after the other, a step ahead in the background.

    A clip of 93 frames at 832x480 is 5 MB of latents and 4 MB of text. Close the generator to end its
    threads.

    Args:
        sampler: gives the order.
        start: as in `plan_steps`.
        pin_memory: page-lock the tensors, for faster copies to CUDA.
        workers: threads that read, each its own batch.

    Raises:
        DataError: as `load_batch`, from the step that the batch belongs to.
    """

    def load(item: tuple[BatchPlan, StepPlan | None]) -> tuple[Batch, StepPlan | None]:
        plan, finished = item
        batch = load_batch(plan)
        return _pinned(batch) if pin_memory else batch, finished

    # A whole step is read while the one before is computed, so the loop waits only for a slower disk.
    ahead = max(workers, sampler.plan.accumulation)
    with (
        closing(plan_steps(sampler, start)) as steps,
        closing(mapped_ahead(load, _single_batches(steps), workers=workers, ahead=ahead)) as loaded,
    ):
        batches: list[Batch] = []
        for batch, finished in loaded:
            batches.append(batch)
            if finished is not None:
                yield StepBatches(tuple(batches), finished.epoch, finished.cursor)
                batches = []


def load_batch(plan: BatchPlan) -> Batch:
    """Read one batch; latents and text keep the dtype of the cache, half the bytes to move to a device.

    Raises:
        DataError: a cache file is missing, damaged, or not of its bucket's size.
    """
    text_BLD, mask_BL = _padded([read_text(path) for path in plan.text_paths])
    return Batch(
        latents_BCTHW=torch.stack(
            [
                _clean_latents(sample, path, plan.num_cond_latents)
                for sample, path in zip(plan.samples, plan.latents_paths, strict=True)
            ]
        ),
        text_BLD=text_BLD,
        mask_BL=mask_BL,
        num_cond_latents=plan.num_cond_latents,
        clip_ids=tuple(sample.clip_id for sample in plan.samples),
        keeps_base=plan.keeps_base,
    )


def _single_batches(steps: Iterable[StepPlan]) -> Iterator[tuple[BatchPlan, StepPlan | None]]:
    """Every batch by itself; with the last of a step comes the step."""
    for step in steps:
        *earlier, last = step.plans
        yield from ((plan, None) for plan in earlier)
        yield last, step


def _padded(texts: Sequence[TextFeatures]) -> tuple[Tensor, Tensor]:
    """What stacking every `TextFeatures.padded` gives, without those copies.

    They took as long as the reading, and left holes in the heap: resident memory grew by 32 MB in 20,000
    batches, and now stays.
    """
    first_LD = texts[0].text_LD
    text_BLD = first_LD.new_zeros(len(texts), TEXT_TOKENS, first_LD.shape[1])
    mask_BL = first_LD.new_zeros(len(texts), TEXT_TOKENS, dtype=torch.long)
    for number, features in enumerate(texts):
        length = len(features.text_LD)
        text_BLD[number, :length] = features.text_LD
        mask_BL[number, :length] = 1
    return text_BLD, mask_BL


def _clean_latents(sample: CachedSample, path: Path, num_cond_latents: int) -> Tensor:
    """Read latents_CTHW, with the start image in the first frame for image-to-video that has one.

    A continuation goes on from the clip's own leading frames, which an image has no part in.
    """
    latents_CTHW = _read_sized(path, sample.bucket)
    if num_cond_latents != START_IMAGE_LATENTS or sample.cond_latents_path is None:
        return latents_CTHW
    image_C1HW = _read_sized(sample.cond_latents_path, replace(sample.bucket, num_frames=1))
    return torch.cat([image_C1HW, latents_CTHW[:, START_IMAGE_LATENTS:]], dim=1)


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
