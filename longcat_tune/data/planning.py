"""Records become clips with a bucket, the times of their frames and a task; or a reason why not.

Decides by numbers alone: no file is opened here.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.buckets import bucket_size, clip_length
from longcat_tune.data.manifest import Manifest
from longcat_tune.data.pairing import StartImages
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.types import IMAGE_TO_VIDEO, TEXT_TO_VIDEO, Bucket, ClipRecord, PlannedClip, Refusal

logger = logging.getLogger(__name__)

LAST_FRAME_SHARE = 0.9
"""How much of a frame's time must be left for the last frame to count; mkv and webm round times to 1 ms."""


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """What becomes of the files of one dataset.

    Attributes:
        clips: in the order of their names.
        refusals: those that cannot be read, then those that do not fit.
        found: how many files there are: clips and refusals together.
    """

    clips: tuple[PlannedClip, ...]
    refusals: tuple[Refusal, ...]
    found: int

    @property
    def source_rates(self) -> Counter[float]:
        """Clips per frame rate of their files; at another than the run's, frames are left out or repeated."""
        records = (clip.record for clip in self.clips)
        return Counter(
            round(record.source_frames / record.seconds, 2) for record in records if record.seconds
        )

    @property
    def source_sizes(self) -> Counter[tuple[int, int]]:
        """Clips per width and height of their files."""
        return Counter((clip.record.width, clip.record.height) for clip in self.clips)


def plan_dataset(
    entry: DatasetEntry, manifest: Manifest, *, framerate: float, conditioning: Sequence[Manifest] = ()
) -> DatasetPlan:
    """Give every record a bucket and a task.

    Args:
        entry: the dataset.
        manifest: its files.
        framerate: frames per second that clips are resampled to.
        conditioning: files of the entries named in conditioning_data, in that order.
    """
    if conditioning and not entry.is_i2v:
        logger.warning("%s: conditioning_data has no effect without is_i2v", entry.id)
    start_images = StartImages(conditioning)
    clips, refusals = [], list(manifest.refusals)
    for record in manifest.records:
        try:
            clips.append(_plan_clip(record, entry, framerate, start_images))
        except UnusableFileError as error:
            refusals.append(error.refusal(entry.id))
    return DatasetPlan(clips=tuple(clips), refusals=tuple(refusals), found=manifest.found)


def resampled_frames(seconds: float, framerate: float) -> int:
    """How many frames a clip has at another frame rate; frame i is the one shown at i / framerate."""
    return max(1, math.floor(seconds * framerate + 1 - LAST_FRAME_SHARE))


def _plan_clip(
    record: ClipRecord, entry: DatasetEntry, framerate: float, start_images: StartImages
) -> PlannedClip:
    _require_shape(record, entry)
    available = resampled_frames(record.seconds, framerate)
    num_frames = 1 if record.kind == "image" else _clip_frames(record, entry, available, framerate)
    width, height = bucket_size(
        record.width,
        record.height,
        resolution=entry.resolution,
        resolution_type=entry.resolution_type,
        table=entry.bucket_table,
    )
    _require_sharp(record, entry, width, height)
    if entry.is_i2v:
        _require_something_to_learn(record, num_frames)
        record = start_images.paired(record)
    spare = available - num_frames
    first = spare // 2 if entry.video.clip_selection == "middle" else 0
    return PlannedClip(
        record=record,
        bucket=Bucket(width, height, num_frames),
        framerate=framerate,
        windows=(first,),
        tasks=IMAGE_TO_VIDEO if entry.is_i2v else TEXT_TO_VIDEO,
    )


def _clip_frames(record: ClipRecord, entry: DatasetEntry, available: int, framerate: float) -> int:
    """The length that a video is encoded at."""
    video = entry.video
    has = f"has {available} frames at {framerate:g} fps"
    if available < video.min_frames:
        reason = f"{has}, fewer than video.min_frames ({video.min_frames})"
        raise UnusableFileError(record.path, reason, "take a longer clip or lower video.min_frames")
    if video.bucket_strategy == "resolution_frames":
        limits = [video.max_frames, video.num_frames if video.num_frames_given else None]
        longest = min([available, *(limit for limit in limits if limit is not None)])
        return clip_length(longest, interval=video.frame_interval)
    if video.max_frames is not None and available > video.max_frames:
        reason = f"{has}, more than video.max_frames ({video.max_frames})"
        raise UnusableFileError(record.path, reason, "cut the clip or raise video.max_frames")
    if available >= video.num_frames:
        return video.num_frames
    if not entry.allow_short:
        reason = f"{has}, fewer than video.num_frames ({video.num_frames})"
        remedy = (
            f"lower video.num_frames to {clip_length(available)}, set allow_short to true, "
            'or set video.bucket_strategy to "resolution_frames"'
        )
        raise UnusableFileError(record.path, reason, remedy)
    return clip_length(available)


def _require_shape(record: ClipRecord, entry: DatasetEntry) -> None:
    """Refuse clips outside minimum_image_size and the aspect ratio bounds."""
    width, height = record.width, record.height
    in_megapixels = entry.resolution_type == "area"
    size = width * height / 1e6 if in_megapixels else min(width, height)
    if entry.minimum_image_size is not None and size < entry.minimum_image_size:
        unit = "megapixels" if in_megapixels else "pixels on its shorter edge"
        reason = f"has {size:g} {unit}, less than minimum_image_size ({entry.minimum_image_size:g})"
        raise UnusableFileError(record.path, reason, "take a larger clip or lower minimum_image_size")
    aspect = width / height
    low, high = entry.minimum_aspect_ratio or 0.0, entry.maximum_aspect_ratio or math.inf
    if not low <= aspect <= high:
        key, bound = ("minimum_aspect_ratio", low) if aspect < low else ("maximum_aspect_ratio", high)
        reason = f"is {width}x{height}, an aspect ratio of {aspect:.2f} outside {key} ({bound:g})"
        raise UnusableFileError(record.path, reason, f"crop the clip or change {key}")


def _require_sharp(record: ClipRecord, entry: DatasetEntry, width: int, height: int) -> None:
    """Refuse clips that would be enlarged beyond max_upscale_threshold."""
    if entry.max_upscale_threshold is None:
        return
    enlarged = max(width / record.width, height / record.height) - 1
    if enlarged > entry.max_upscale_threshold:
        reason = (
            f"is {record.width}x{record.height} and would be enlarged by {enlarged:.0%} to fill "
            f"{width}x{height}, more than max_upscale_threshold ({entry.max_upscale_threshold:g})"
        )
        raise UnusableFileError(record.path, reason, "take a larger clip or lower resolution")


def _require_something_to_learn(record: ClipRecord, num_frames: int) -> None:
    if num_frames == 1:
        reason = (
            "has one frame, which image-to-video takes as the start image, so that nothing is left to learn"
        )
        raise UnusableFileError(record.path, reason, "take a longer clip or set is_i2v to false")
