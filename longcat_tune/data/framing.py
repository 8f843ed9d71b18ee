"""Which part of a picture becomes which bucket: its shape, where the crop lies, and what is too small for it.

Knows width and height only; the arithmetic of sizes is in `buckets`.
"""

from __future__ import annotations

import math

from longcat_tune.config.datasets import BucketTable, DatasetEntry
from longcat_tune.data.lots import shares
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.types import Bucket, ClipRecord

CENTER = (0.5, 0.5)
CORNER = (0.0, 0.0)

SMALLER_BUCKETS: dict[BucketTable | None, str] = {
    None: "lower resolution",
    "official_480p": "set bucket_table to null with a lower resolution",
    "official_720p": "set bucket_table to official_480p",
}
"""How clips come into smaller buckets, which enlarge them less."""


def bucket_shape(record: ClipRecord, entry: DatasetEntry, *, seed: int) -> tuple[float, float]:
    """A width and a height with the aspect ratio that the bucket shall have, as crop_aspect says."""
    ratios = entry.crop_aspect_buckets
    match entry.crop_aspect:
        case "preserve":
            return record.width, record.height
        case "square":
            return 1, 1
        case "closest":
            own = record.width / record.height
            return min(ratios, key=lambda ratio: abs(math.log(ratio / own))), 1
        case "random":
            return ratios[int(next(shares(seed, record.name, "aspect")) * len(ratios))], 1


def crop_place(name: str, entry: DatasetEntry, *, seed: int) -> tuple[float, float]:
    """Where the crop lies: the share of the spare width on its left, and of the spare height above it."""
    match entry.crop_style:
        case "center":
            return CENTER
        case "corner":
            return CORNER
        case "random":
            draws = shares(seed, name, "crop")
            return round(next(draws), 4), round(next(draws), 4)


def enlargement(record: ClipRecord, bucket: Bucket) -> float:
    """By which share a clip is enlarged to cover its bucket; 0.25 is 25 %, below 0 it is made smaller."""
    return max(bucket.width / record.width, bucket.height / record.height) - 1


def require_shape(record: ClipRecord, entry: DatasetEntry) -> None:
    """Refuse clips outside minimum_image_size and the aspect ratio bounds.

    Raises:
        UnusableFileError: naming the bound.
    """
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


def require_sharp(record: ClipRecord, entry: DatasetEntry, bucket: Bucket) -> None:
    """Refuse clips that would be enlarged beyond max_upscale_threshold, or whose start image would be.

    Raises:
        UnusableFileError: saying by how much.
    """
    if entry.max_upscale_threshold is None:
        return
    for picture in filter(None, (record, record.conditioning)):
        enlarged = enlargement(picture, bucket)
        if enlarged > entry.max_upscale_threshold:
            own = picture is record
            whose = "" if own else f"has a conditioning image that is too small: {picture.path} "
            reason = (
                f"{whose}is {picture.width}x{picture.height} and would be enlarged by {enlarged:.0%} to fill "
                f"{bucket.width}x{bucket.height}, more than max_upscale_threshold "
                f"({entry.max_upscale_threshold:g})"
            )
            remedy = f"take a larger {'clip' if own else 'image'} or {SMALLER_BUCKETS[entry.bucket_table]}"
            raise UnusableFileError(record.path, reason, remedy)
