"""Records become clips with a bucket, windows of frames and tasks; or a reason why not.

Decides by numbers alone: no file is opened here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.buckets import bucket_size
from longcat_tune.data.framing import bucket_shape, crop_place, require_shape, require_sharp
from longcat_tune.data.lots import lot
from longcat_tune.data.manifest import Manifest
from longcat_tune.data.notices import plan_notices
from longcat_tune.data.pairing import StartImages
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.tasks import require_something_to_learn, takes_start_images, tasks_of
from longcat_tune.data.windows import encoded_frames, resampled_frames, window_starts
from longcat_tune.types import Bucket, ClipRecord, Notice, PlannedClip, Refusal


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """What becomes of the files of one dataset.

    Attributes:
        clips: in the order of their names; those of one file follow one another.
        refusals: files that cannot be read, then those that do not fit.
        found: how many files there are: used, refused and left out together.
        left_out: usable files beyond max_num_samples.
        faults: what keeps the dataset as a whole from being used.
        notices: what its owner should know.
    """

    clips: tuple[PlannedClip, ...]
    refusals: tuple[Refusal, ...]
    found: int
    left_out: int = 0
    faults: tuple[Refusal, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def used(self) -> int:
        """How many files the clips come from; several come from one under clip_selection all."""
        return sum(1 for _ in self._records())

    @property
    def source_rates(self) -> Counter[float]:
        """Files per frame rate; at another than the run's, frames are left out or repeated."""
        return Counter(round(record.fps, 2) for record in self._records() if record.seconds)

    @property
    def source_sizes(self) -> Counter[tuple[int, int]]:
        """Files per width and height."""
        return Counter((record.width, record.height) for record in self._records())

    def _records(self) -> Iterator[ClipRecord]:
        return (clip.record for clip in self.clips if clip.number in {None, 1})


def clip_id(clip: PlannedClip) -> str:
    """`dataset/name`, with `#number` where files are cut into several clips; no two clips share one."""
    number = "" if clip.number is None else f"#{clip.number}"
    return f"{clip.record.dataset_id}/{clip.record.name}{number}"


def plan_dataset(
    entry: DatasetEntry,
    manifest: Manifest,
    *,
    framerate: float,
    seed: int,
    conditioning: Sequence[Manifest] = (),
) -> DatasetPlan:
    """Give every record a bucket, windows and tasks, and tell what that means for the dataset.

    Args:
        entry: the dataset. Under max_num_samples the files whose lot is smallest are used, so that raising
            the number only adds some.
        manifest: its files.
        framerate: frames per second that clips are resampled to.
        seed: of random windows, crops and choices; each depends on the file's name beside it and on no other
            file.
        conditioning: files of the entries named in conditioning_data, in that order.
    """
    planner = _Planner(entry, framerate, seed, conditioning)
    files: list[tuple[PlannedClip, ...]] = []
    refusals = list(manifest.refusals)
    for record in manifest.records:
        try:
            files.append(planner.clips_of(record))
        except UnusableFileError as error:
            refusals.append(error.refusal(entry.id))
    used = _allotted(files, entry, seed)
    left_out = len(files) - len(used)
    unpaired = bool(conditioning) and not takes_start_images(planner.tasks)
    notices = plan_notices(entry, used, framerate=framerate, left_out=left_out, unpaired=unpaired)
    return DatasetPlan(
        clips=tuple(chain.from_iterable(used)),
        refusals=tuple(refusals),
        found=manifest.found,
        left_out=left_out,
        faults=manifest.faults,
        notices=manifest.notices + notices,
    )


class _Planner:
    """Plans the files of one dataset one by one; what many clips have in common is made once."""

    def __init__(
        self, entry: DatasetEntry, framerate: float, seed: int, conditioning: Sequence[Manifest]
    ) -> None:
        self.entry = entry
        self.framerate = framerate
        self.seed = seed
        self.tasks = tasks_of(entry)
        self.start_images = StartImages(conditioning if takes_start_images(self.tasks) else ())
        self.buckets: dict[tuple[float, float, int], Bucket] = {}

    def clips_of(self, record: ClipRecord) -> tuple[PlannedClip, ...]:
        """One clip, or under clip_selection all one per window, numbered from 1.

        Raises:
            UnusableFileError: the file does not fit the dataset.
        """
        entry, video = self.entry, self.entry.video
        require_shape(record, entry)
        available = resampled_frames(record.seconds, self.framerate)
        num_frames = encoded_frames(record, entry, available, framerate=self.framerate)
        bucket = self._bucket(*bucket_shape(record, entry, seed=self.seed), num_frames)
        require_something_to_learn(record, num_frames, self.tasks, entry)
        record = self.start_images.paired(record)
        require_sharp(record, entry, bucket)
        crop = crop_place(record.name, entry, seed=self.seed)
        windows = window_starts(
            video, available=available, num_frames=num_frames, name=record.name, seed=self.seed
        )
        if video.clip_selection != "all" or record.kind == "image":
            return (PlannedClip(record, bucket, self.framerate, windows, crop, self.tasks),)
        return tuple(
            PlannedClip(record, bucket, self.framerate, (start,), crop, self.tasks, number)
            for number, start in enumerate(windows, start=1)
        )

    def _bucket(self, width: float, height: float, num_frames: int) -> Bucket:
        bucket = self.buckets.get((width, height, num_frames))
        if bucket is None:
            entry = self.entry
            size = bucket_size(
                width,
                height,
                resolution=entry.resolution,
                resolution_type=entry.resolution_type,
                table=entry.bucket_table,
            )
            bucket = self.buckets[width, height, num_frames] = Bucket(*size, num_frames)
        return bucket


def _allotted(
    files: Sequence[tuple[PlannedClip, ...]], entry: DatasetEntry, seed: int
) -> Sequence[tuple[PlannedClip, ...]]:
    """At most max_num_samples files, in their order: those with the smallest lots."""
    if entry.max_num_samples is None or len(files) <= entry.max_num_samples:
        return files
    lots = ((lot(seed, entry.id, clips[0].record.name), number) for number, clips in enumerate(files))
    chosen = sorted(number for _, number in nsmallest(entry.max_num_samples, lots))
    return [files[number] for number in chosen]
