"""The values that `init` writes, chosen from what a folder holds, each with the reason for its comment.

Arithmetic over records; opens no file and writes none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Generic, Literal, TypeVar

from longcat_tune.data.buckets import clip_length
from longcat_tune.data.naming import some
from longcat_tune.data.windows import resampled_frames
from longcat_tune.runs.init_look import FolderContent
from longcat_tune.runs.init_recipes import Recipe, Size
from longcat_tune.types import ClipRecord

T = TypeVar("T")

FAST_FPS, SLOW_FPS = 30, 15
FAST_FROM = 27.0
"""Frames per second; slower clips would be taken at 30 by repeating frames, which the model would learn."""
SHORTEST = 5
"""Frames that a clip needs by default, and to have anything left beside its start image."""
ONE_LENGTH = 0.8
"""When the shortest clip has this share of the usual length, all are cut to it, to share their buckets."""
MANY_WINDOWS = 2000
"""More are not cut out of long clips: each is encoded and cached."""
MOSTLY = 0.9
"""Share of the files that must not be enlarged."""
SEEN_FROM = 0.05
"""Less enlargement than this nobody sees."""
SHORT_EPOCH = 50
"""Uses; a shorter epoch is repeated, so that what is counted and saved by epochs means something."""
LISTED = 3


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """A value and why it was chosen."""

    value: T
    why: str


@dataclass(frozen=True, slots=True)
class FramesChoice:
    """How frames are taken from the clips.

    Attributes:
        num_frames: the length, and why.
        strategy: whether all have it, and why.
        selection: which part of a clip is used, and why.
        min_frames: of the shortest clip that is used; None: the default suffices.
        count: training clips that come of it.
    """

    num_frames: int
    strategy: Choice[Literal["aspect_ratio", "resolution_frames"]]
    selection: Choice[Literal["start", "all", "random"]]
    min_frames: Choice[int] | None
    count: int


def choose_framerate(videos: Sequence[ClipRecord]) -> Choice[int]:
    """15 or 30 frames per second, the rates that the model knows."""
    timed = [record.fps for record in videos if record.kind == "video"]
    if not timed:
        why = (
            "numbered pictures have no rate of their own; set it, or video.frames_fps, to how they were taken"
        )
        return Choice(FAST_FPS, why)
    usual = median(timed)
    if usual >= FAST_FROM:
        return Choice(FAST_FPS, f"the clips have {usual:.4g} frames per second; the model knows 30 and 15")
    why = f"the clips have {usual:.4g} frames per second, and 30 would repeat some; the model knows 30 and 15"
    return Choice(SLOW_FPS, why if usual > SLOW_FPS else f"the clips have {usual:.4g} frames per second")


def clip_lengths(videos: Sequence[ClipRecord], framerate: int) -> list[int]:
    """Frames of each clip at this rate; numbered pictures are taken as they are."""
    return [
        record.source_frames if record.kind == "sequence" else resampled_frames(record.seconds, framerate)
        for record in videos
    ]


def choose_frames(lengths: Sequence[int], *, longest: int, from_start: bool, i2v: bool) -> FramesChoice:
    """How many frames training clips have, and where in the files they lie.

    Args:
        lengths: frames of each clip at the run's rate.
        longest: that training clips may have.
        from_start: only the start can be used, because start images show it.
        i2v: a clip of one frame is not enough.
    """
    shortest, usual = min(lengths), int(median(lengths))
    usable = max(shortest, SHORTEST) if i2v else shortest
    same = clip_length(min(longest, usable))
    spread = f"{shortest}" if shortest == max(lengths) else f"{shortest} to {max(lengths)}"
    if same >= SHORTEST and same >= ONE_LENGTH * clip_length(min(longest, max(usual, SHORTEST))):
        num_frames = same
        why = f"the clips have {spread} frames, so that all can have {same}, and share their buckets"
        strategy: Choice[Literal["aspect_ratio", "resolution_frames"]] = Choice("aspect_ratio", why)
    else:
        num_frames = clip_length(min(longest, max(lengths)))
        why = f"the clips have {spread} frames, so each keeps its own length, up to {num_frames}"
        strategy = Choice("resolution_frames", why)
    windows = sum(max(1, length // num_frames) for length in lengths)
    selection = _selection(usual, num_frames, windows, from_start=from_start)
    few = not i2v and shortest < SHORTEST
    return FramesChoice(
        num_frames=num_frames,
        strategy=strategy,
        selection=selection,
        min_frames=Choice(shortest, f"the shortest clip has {shortest}") if few else None,
        count=windows if selection.value == "all" else len(lengths),
    )


def _selection(
    usual: int, num_frames: int, windows: int, *, from_start: bool
) -> Choice[Literal["start", "all", "random"]]:
    if from_start:
        return Choice("start", "the start images show where the clips begin")
    if usual < 2 * num_frames:
        return Choice("start", f"most clips have no room for a second window of {num_frames} frames")
    if windows <= MANY_WINDOWS:
        why = f"the clips hold {windows:,} windows of {num_frames} frames; each becomes a training clip"
        return Choice("all", why)
    why = (
        f"the clips hold {windows:,} windows of {num_frames} frames, which are many to encode; of each clip "
        "up to 8 take turns"
    )
    return Choice("random", why)


def choose_size(records: Sequence[ClipRecord], recipe: Recipe) -> Choice[Size]:
    """The largest size at which (nearly) no file is enlarged, or the smallest there is."""
    sizes = Counter((record.width, record.height) for record in records)
    few = (1 - MOSTLY) * len(records)
    best, *_ = recipe.sizes
    size = next((one for one in recipe.sizes if _enlarged(sizes, one) <= few), recipe.sizes[-1])
    shapes = (f"{w}x{h}" + (f" ({n})" if n > 1 else "") for (w, h), n in sizes.most_common())
    listed = some(shapes, LISTED, noun="sizes")
    count = _enlarged(sizes, size)
    told = f"{count} of {len(records)} are enlarged" if count else "none is enlarged"
    if size != best:
        told = f"{best.resolution} would enlarge {_enlarged(sizes, best)} of {len(records)}; here {told}"
    return Choice(size, f"the files are {listed}; {told}")


def usual_frame(records: Sequence[ClipRecord], size: Size) -> tuple[int, int]:
    """Width and height that most files are brought to."""
    frames: Counter[tuple[int, int]] = Counter()
    for (width, height), count in Counter((record.width, record.height) for record in records).items():
        frames[size.of(width, height)] += count
    [(frame, _)] = frames.most_common(1)
    return frame


def _enlarged(sizes: Mapping[tuple[int, int], int], size: Size) -> int:
    """How many files fill their bucket only by being enlarged visibly."""
    count = 0
    for (width, height), files in sizes.items():
        bucket_width, bucket_height = size.of(width, height)
        count += files * (max(bucket_width / width, bucket_height / height) - 1 > SEEN_FROM)
    return count


def choose_repeats(count: int) -> Choice[int] | None:
    """Further uses of each clip, when an epoch would else be a handful of steps; None: they suffice."""
    if count >= SHORT_EPOCH:
        return None
    repeats = math.ceil(SHORT_EPOCH / count) - 1
    used = f"{repeats + 1} uses of each make one of {count * (repeats + 1)} clips"
    return Choice(repeats, f"{count} would make a short epoch; {used}")


def choose_steps(count: int, recipe: Recipe, *, share: float = 1.0) -> Choice[int]:
    """Length of the run: more clips need more steps, but fewer for each.

    Args:
        count: clips and images to learn from.
        recipe: of the model.
        share: of the steps that learn from them; the others are for regularisation data.
    """
    learning = max(recipe.fewest_steps, recipe.fewest_steps * math.sqrt(count / 10))
    steps = min(recipe.every * round(learning / share / recipe.every), recipe.most_steps)
    looks = max(1, round(steps * share * recipe.batch_size / count))
    others = f", and {1 - share:.0%} of the steps for regularisation data" if share < 1 else ""
    looked = f"about {looks} looks at each of {count}{others}"
    return Choice(steps, f"{looked}; watch the renders, and stop or go on by what they show")


def choose_start_images(content: FolderContent) -> Choice[Path | None]:
    """The folder of start images, if there is exactly one that has an image for every clip."""
    clips = len(content.videos)
    whole = [
        one.path for one in content.start_folders if one.paired == clips and _only_starts(one.path, content)
    ]
    if len(whole) == 1:
        return Choice(whole[0], f"{whole[0].name} holds an image of the same name for every clip")
    own = "the first frame of each clip is its start image"
    if len(whole) > 1:
        names = " and ".join(str(path) for path in whole)
        return Choice(None, f"{own}; conditioning_data could name one of {names}")
    partly = [
        f"{one.path} has images for {one.paired} of {clips} clips only" for one in content.start_folders
    ]
    return Choice(None, "; ".join([own, *partly]))


def _only_starts(folder: Path, content: FolderContent) -> bool:
    """Whether all images among the clips lie in this folder, so that none is there for its own sake."""
    inside = folder.is_relative_to(content.folder)
    return not inside or all(record.path.absolute().is_relative_to(folder) for record in content.images)
