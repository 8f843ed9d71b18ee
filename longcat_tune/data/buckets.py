"""The sizes and lengths that clips are brought to: pure arithmetic, nothing of files.

Sizes are width first, in pixels. Two ways lead to one: a grid of 64 pixels at the dataset's resolution, or a
table of the model's authors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from longcat_tune.types import TEMPORAL_STRIDE

if TYPE_CHECKING:
    from longcat_tune.config.data import ResolutionType
    from longcat_tune.config.datasets import BucketTable

GRID = 64

# Height / width as the table writes it (a few keys are not quite the quotient), height, width. These are the
# tables for spatial factors 16 and 32 of meituan-longcat/LongCat-Video.
OFFICIAL_SIZES: dict[BucketTable, tuple[tuple[float, int, int], ...]] = {
    "official_480p": (
        (0.26, 320, 1216),
        (0.31, 352, 1120),
        (0.38, 384, 1024),
        (0.43, 416, 960),
        (0.52, 448, 864),
        (0.58, 480, 832),
        (0.67, 512, 768),
        (0.74, 544, 736),
        (0.86, 576, 672),
        (0.95, 608, 640),
        (1.05, 640, 608),
        (1.17, 672, 576),
        (1.29, 704, 544),
        (1.35, 736, 544),
        (1.50, 768, 512),
        (1.67, 800, 480),
        (1.73, 832, 480),
        (2.00, 896, 448),
        (2.31, 960, 416),
        (2.58, 992, 384),
        (2.75, 1056, 384),
        (3.09, 1088, 352),
        (3.70, 1184, 320),
        (3.80, 1216, 320),
        (3.90, 1248, 320),
        (4.00, 1280, 320),
    ),
    "official_720p": (
        (0.25, 480, 1920),
        (0.29, 512, 1792),
        (0.32, 544, 1696),
        (0.36, 576, 1600),
        (0.40, 608, 1504),
        (0.49, 672, 1376),
        (0.54, 704, 1312),
        (0.59, 736, 1248),
        (0.69, 800, 1152),
        (0.74, 832, 1120),
        (0.82, 864, 1056),
        (0.88, 896, 1024),
        (0.94, 928, 992),
        (1.00, 960, 960),
        (1.07, 992, 928),
        (1.14, 1024, 896),
        (1.22, 1056, 864),
        (1.31, 1088, 832),
        (1.35, 1120, 832),
        (1.44, 1152, 800),
        (1.70, 1248, 736),
        (2.00, 1344, 672),
        (2.05, 1376, 672),
        (2.47, 1504, 608),
        (2.53, 1536, 608),
        (2.83, 1632, 576),
        (3.06, 1664, 544),
        (3.12, 1696, 544),
        (3.62, 1856, 512),
        (3.93, 1888, 480),
        (4.00, 1920, 480),
    ),
}
"""No size of the 480p table is square: a square clip gets 640 x 608."""


def bucket_size(
    width: float,
    height: float,
    *,
    resolution: float,
    resolution_type: ResolutionType,
    table: BucketTable | None = None,
) -> tuple[int, int]:
    """The size that a clip is brought to.

    Args:
        width: of the clip, or of anything with the aspect ratio wanted.
        height: of the same.
        resolution: in the unit of resolution_type; not used with a table.
        resolution_type: `pixel` the shorter edge, `area` megapixels, `pixel_area` the edge of a square of the
            same area.
        table: the authors' sizes instead of the grid.

    Returns:
        Width and height, multiples of 64 (32 with a table).
    """
    if table is not None:
        ratio = height / width
        _, height, width = min(OFFICIAL_SIZES[table], key=lambda size: abs(size[0] - ratio))
        return width, height
    aspect = max(round(width / height, 2), 0.01)
    if resolution_type == "pixel":
        if width < height:
            return to_grid(resolution), to_grid(int(resolution / aspect))
        return to_grid(int(resolution * aspect)), to_grid(resolution)
    square = resolution**2 if resolution_type == "pixel_area" else resolution * 1e6
    edge = to_grid(int(math.sqrt(square)))
    return to_grid(edge * math.sqrt(aspect)), to_grid(edge / math.sqrt(aspect))


def to_grid(length: float) -> int:
    """The nearest multiple of 64, half to even, but never 0."""
    return max(GRID, GRID * round(length / GRID))


def clip_length(num_frames: int, *, interval: int = TEMPORAL_STRIDE) -> int:
    """The longest length k·i + 1 that fits into num_frames; k is interval, rounded up to a multiple of 4."""
    step = math.ceil(interval / TEMPORAL_STRIDE) * TEMPORAL_STRIDE
    return (num_frames - 1) // step * step + 1


def cover_size(width: int, height: int, target_width: int, target_height: int) -> tuple[int, int]:
    """The smallest size with the same aspect ratio that covers the target; one side fits exactly."""
    if target_width * height >= target_height * width:
        return target_width, max(target_height, round(height * target_width / width))
    return max(target_width, round(width * target_height / height)), target_height


def crop_slices(
    width: int, height: int, target_width: int, target_height: int, at: tuple[float, float]
) -> tuple[slice, slice]:
    """Rows and columns of a crop; `at` is the share of the spare pixels left of it and above."""
    left, top = int((width - target_width) * at[0]), int((height - target_height) * at[1])
    return slice(top, top + target_height), slice(left, left + target_width)
