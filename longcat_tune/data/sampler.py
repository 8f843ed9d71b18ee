"""Which clips make up a batch, for which task, with which caption, in which order.

Every choice follows from (seed, epoch), so two integers are all that a resumed run needs. Opens no file;
knows no model and no device.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from longcat_tune.data.epochs import DatasetBatches, EpochPlan, shared_out
from longcat_tune.errors import DataError
from longcat_tune.types import Bucket, CachedSample, TrainingSet

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""The fraction whose multiples are spread most evenly over the unit interval, wherever one stops."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One batch as paths.

    Attributes:
        samples: of one bucket of one dataset.
        latents_paths: the window chosen for each.
        text_paths: the caption chosen for each; the empty prompt's where it was dropped.
        num_cond_latents: clean leading latent frames of all of them.
        keeps_base: as in Batch.
    """

    samples: tuple[CachedSample, ...]
    latents_paths: tuple[Path, ...]
    text_paths: tuple[Path, ...]
    num_cond_latents: int
    keeps_base: bool = False


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The batches of one epoch in the order of one process, from which `BucketSampler.batch` makes plans.

    It is a few long lists, because Python's garbage collection takes a second for 100,000 small objects.

    Attributes:
        epoch: from 0.
        samples: the clip of every use; those of one batch lie side by side.
        uses: how often each of them was used before, in this epoch and earlier ones.
        ends: where each batch ends in both, the batches numbered from 0.
        tasks: clean leading latent frames, by the number of the batch.
        kept: numbers of the batches of regularisation data.
        turns: numbers of the batches that this process takes, in order.
    """

    epoch: int
    samples: list[CachedSample]
    uses: list[int]
    ends: list[int]
    tasks: dict[int, int]
    kept: set[int]
    turns: list[int]

    def __len__(self) -> int:
        return len(self.turns)


def count_batches(uses: Iterable[int], batch_size: int) -> int:
    """Batches of one pass over a dataset; a bucket's last one may be short.

    Args:
        uses: clips of each bucket, counted as often as they are used.
        batch_size: clips per batch.
    """
    return sum(math.ceil(count / batch_size) for count in uses)


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
        plan: how many batches and steps each epoch has, and of which sets.

    Raises:
        DataError: there are no samples, or there are steps that use none of the sets.
    """

    def __init__(
        self,
        sets: tuple[TrainingSet, ...],
        empty_text: Path,
        batch_size: int,
        seed: int,
        caption_dropout: float,
        accumulation: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not any(one.samples for one in sets):
            raise DataError(
                "there are 0 clips to train on and at least 1 is needed; "
                "`longcat-tune check` lists every clip that was refused and why"
            )
        self.sets = sets
        self.empty_text = empty_text
        self.batch_size = batch_size
        self.seed = seed
        self.caption_dropout = caption_dropout
        self.rank = rank
        self.world_size = world_size
        self._buckets = [_by_bucket(one.samples) for one in sets]
        self.plan = EpochPlan(
            [self._batches(number) for number in range(len(sets))], accumulation, world_size
        )

    def epoch(self, epoch: int) -> EpochOrder:
        """Put the batches of one epoch in order."""
        place = self.plan.locate(epoch)
        made = EpochOrder(epoch, [], [], [], {}, set(), [])
        # A text seed is hashed: the same on every machine, and neighbouring epochs have nothing in common.
        order = random.Random(f"order/{self.seed}/{epoch}")
        batches: list[int] = []
        for number in place.phase.active:
            own_epoch = epoch - self.plan.first_epoch(number)
            share = self._share(number, own_epoch, order, made)
            made.tasks.update(zip(share, self._tasks(self.sets[number], own_epoch, len(share)), strict=True))
            if self.sets[number].keeps_base:
                made.kept.update(share)
            batches += share
        order.shuffle(batches)
        made.turns.extend(islice(cycle(batches), self.rank, place.batches * self.world_size, self.world_size))
        return made

    def batch(self, order: EpochOrder, place: int) -> BatchPlan:
        """Choose the windows and captions of one batch.

        Args:
            order: from `epoch`.
            place: from 0, within the epoch and this process.
        """
        number = order.turns[place]
        clips = slice(order.ends[number - 1] if number else 0, order.ends[number])
        samples = tuple(order.samples[clips])
        # Not the order's generator, so that another caption_dropout or caption count leaves that as it is.
        captions = random.Random(f"captions/{self.seed}/{order.epoch}/{number}")
        return BatchPlan(
            samples,
            tuple(self._window(sample, use) for sample, use in zip(samples, order.uses[clips], strict=True)),
            tuple(self._chosen_text(sample, captions) for sample in samples),
            order.tasks[number],
            number in order.kept,
        )

    def largest(self) -> BatchPlan:
        """The batch that needs most memory: most video tokens together."""
        full = [
            (one, bucket[: self.batch_size])
            for one, buckets in zip(self.sets, self._buckets, strict=True)
            for bucket in buckets
        ]
        one, samples = max(full, key=lambda batch: batch[1][0].bucket.num_tokens * len(batch[1]))
        return BatchPlan(
            tuple(samples),
            tuple(sample.latents_paths[0] for sample in samples),
            tuple(sample.text_paths[0] for sample in samples),
            one.tasks[0].num_cond_latents,
            one.keeps_base,
        )

    def _batches(self, number: int) -> DatasetBatches:
        one = self.sets[number]
        uses = (len(bucket) * one.uses_per_epoch for bucket in self._buckets[number])
        return DatasetBatches(
            count_batches(uses, self.batch_size), one.probability, one.start_step, one.end_step
        )

    def _share(self, number: int, epoch: int, order: random.Random, made: EpochOrder) -> list[int]:
        """Make a set's batches of one epoch, counted from the first that uses it; returns their numbers.

        Where that is not all of them, the epochs take one stretch after the other of an endless row of
        passes, so that every batch comes before any comes again.
        """
        share = self.plan.datasets[number]
        if share.per_epoch == share.batches:
            return self._pass(number, epoch, order, made)
        first_pass, skipped = divmod(epoch * share.per_epoch, share.batches)
        last_pass = ((epoch + 1) * share.per_epoch - 1) // share.batches
        row: list[int] = []
        for pass_number in range(first_pass, last_pass + 1):
            own_order = random.Random(f"pass/{self.seed}/{self.sets[number].dataset_id}/{pass_number}")
            batches = self._pass(number, pass_number, own_order, made)
            own_order.shuffle(batches)
            row += batches
        return row[skipped : skipped + share.per_epoch]

    def _pass(self, number: int, pass_number: int, order: random.Random, made: EpochOrder) -> list[int]:
        """Cut the uses of every bucket, each turn of them shuffled on its own, into batches."""
        uses_per_epoch = self.sets[number].uses_per_epoch
        first = len(made.ends)
        for bucket in self._buckets[number]:
            begin = len(made.samples)
            turn = list(bucket)
            for use in range(pass_number * uses_per_epoch, (pass_number + 1) * uses_per_epoch):
                order.shuffle(turn)
                made.samples.extend(turn)
                made.uses.extend([use] * len(turn))
            end = len(made.samples)
            made.ends.extend([*range(begin + self.batch_size, end, self.batch_size), end])
        return list(range(first, len(made.ends)))

    def _window(self, sample: CachedSample, use: int) -> Path:
        """Take a clip's windows in turn; each clip begins with another."""
        windows = sample.latents_paths
        if len(windows) == 1:
            return windows[0]
        # Not Python's own hash, which differs from process to process.
        first = zlib.crc32(f"{self.seed}/{sample.clip_id}".encode("utf-8", "surrogatepass"))
        return windows[(first + use) % len(windows)]

    def _tasks(self, one: TrainingSet, epoch: int, batches: int) -> list[int]:
        """Give every batch of a set's epoch a task; what rounding takes from one, other epochs give it."""
        if len(one.tasks) == 1:
            return [one.tasks[0].num_cond_latents] * batches
        first_turn = random.Random(f"turn/{self.seed}/{one.dataset_id}").random()
        turn = (first_turn + epoch * GOLDEN_RATIO) % 1
        counts = shared_out(batches, [task.share for task in one.tasks], turn=turn)
        tasks = [
            task.num_cond_latents for task, count in zip(one.tasks, counts, strict=True) for _ in range(count)
        ]
        random.Random(f"tasks/{self.seed}/{one.dataset_id}/{epoch}").shuffle(tasks)
        return tasks

    def _chosen_text(self, sample: CachedSample, captions: random.Random) -> Path:
        chosen = captions.choice(sample.text_paths)
        return self.empty_text if captions.random() < self.caption_dropout else chosen


def _by_bucket(samples: Iterable[CachedSample]) -> list[list[CachedSample]]:
    """Samples that may share a batch."""
    buckets: dict[Bucket, list[CachedSample]] = {}
    for sample in samples:
        buckets.setdefault(sample.bucket, []).append(sample)
    return list(buckets.values())
