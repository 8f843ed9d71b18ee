"""What the two files of `init` say, before they are text: the run, its datasets, and why.

Puts the choices together; the arithmetic of each is in `init_choices`, the words in `init_texts`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longcat_tune.errors import DataError
from longcat_tune.runs.init_captions import CaptionChoice
from longcat_tune.runs.init_choices import (
    SHORTEST,
    Choice,
    FramesChoice,
    choose_framerate,
    choose_frames,
    choose_repeats,
    choose_size,
    choose_start_images,
    choose_steps,
    clip_lengths,
    usual_frame,
)
from longcat_tune.runs.init_look import CLIPS, REGULARISATION, FolderContent
from longcat_tune.runs.init_recipes import RECIPES, Flavour, Recipe, Size
from longcat_tune.runs.problems import counted
from longcat_tune.types import ClipRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dataset:
    """What becomes an entry of clips or images.

    Attributes:
        dataset_id: unique.
        dataset_type: video or image.
        folder: of the files.
        captions: where they are.
        size: what the files are brought to.
        count: clips or images that are trained on.
        frames: how they are taken from videos; None for images.
        start_images: the folder of start images, or why there is none; None: text-to-video.
        keeps_base: why it is regularisation data; empty: it is not.
    """

    dataset_id: str
    dataset_type: str
    folder: Path
    captions: CaptionChoice
    size: Size
    count: int
    frames: FramesChoice | None = None
    start_images: Choice[Path | None] | None = None
    keeps_base: str = ""

    @property
    def uses(self) -> int:
        """Clips or images of an epoch."""
        repeats = choose_repeats(self.count)
        return self.count * (1 if repeats is None else repeats.value + 1)


@dataclass(frozen=True, slots=True)
class Run:
    """What becomes config.json.

    Attributes:
        flavour: the model.
        recipe: of the model.
        output_dir: of the run.
        framerate: of the clips; None for images alone.
        size: what the files are brought to.
        steps: of the run.
        prompt: of the render, and where it is from.
        prompts: a library of them, to be rendered instead.
        frame: width and height of the render.
        num_frames: of the render.
    """

    flavour: Choice[Flavour]
    recipe: Recipe
    output_dir: Path
    framerate: Choice[int] | None
    size: Choice[Size]
    steps: Choice[int]
    prompt: Choice[str]
    prompts: Path | None
    frame: tuple[int, int]
    num_frames: int


def choose_run(
    content: FolderContent,
    flavour: Choice[Flavour],
    *,
    known: FolderContent | None = None,
    output_dir: Path,
    i2v: bool,
    prompts: Path | None = None,
) -> tuple[Run, tuple[Dataset, ...]]:
    """Decide everything that the two files say.

    Args:
        content: of the folder of clips.
        flavour: the model.
        known: of the folder of regularisation data.
        output_dir: of the run.
        i2v: train image-to-video.
        prompts: a library to render instead of a caption.

    Raises:
        DataError: image-to-video is asked for, and there are no clips or all are too short; or regularisation
            data, and there are no clips.
    """
    recipe = RECIPES[flavour.value]
    framerate = choose_framerate(content.videos) if content.videos else None
    if i2v:
        _require_motion(content, framerate)
    start_images = choose_start_images(content) if i2v else None
    images = _trained_images(content, start_images)
    size = choose_size((*content.videos, *images), recipe)
    datasets = []
    if framerate is not None:
        datasets.append(_clips(CLIPS, content, recipe, size.value, framerate.value, start_images))
    if images and content.image_captions is not None:
        datasets.append(
            Dataset(
                dataset_id="images",
                dataset_type="image",
                folder=content.folder,
                captions=content.image_captions,
                size=size.value,
                count=len(images),
            )
        )
    count, learnt = sum(one.count for one in datasets), sum(one.uses for one in datasets)
    if known is not None:
        datasets.append(_regularisation(known, recipe, size.value, framerate, i2v=i2v))
    first = datasets[0]
    run = Run(
        flavour=flavour,
        recipe=recipe,
        output_dir=output_dir,
        framerate=framerate,
        size=size,
        steps=choose_steps(count, recipe, share=learnt / sum(one.uses for one in datasets)),
        prompt=_prompt(first.captions),
        prompts=prompts,
        frame=usual_frame(content.videos or images, size.value),
        num_frames=first.frames.num_frames if first.frames is not None else 1,
    )
    return run, tuple(datasets)


def _clips(
    dataset_id: str,
    content: FolderContent,
    recipe: Recipe,
    size: Size,
    framerate: int,
    start_images: Choice[Path | None] | None,
) -> Dataset:
    """The clips of a folder, which holds some."""
    assert content.video_captions is not None
    given = start_images is not None and start_images.value is not None
    frames = choose_frames(
        clip_lengths(content.videos, framerate),
        longest=recipe.num_frames,
        from_start=given,
        i2v=start_images is not None,
    )
    return Dataset(
        dataset_id=dataset_id,
        dataset_type="video",
        folder=content.folder,
        captions=content.video_captions,
        size=size,
        count=frames.count,
        frames=frames,
        start_images=start_images,
    )


def _regularisation(
    content: FolderContent, recipe: Recipe, size: Size, framerate: Choice[int] | None, *, i2v: bool
) -> Dataset:
    """Clips of what the model knows, for the task of the others and text-to-video."""
    if not content.videos:
        msg = f"{content.folder}: holds no clips, and regularisation data must be clips; take another folder"
        raise DataError(msg)
    rate = framerate or choose_framerate(content.videos)
    starts: Choice[Path | None] | None = Choice(None, "from each clip's own first frame") if i2v else None
    dataset = _clips(REGULARISATION, content, recipe, size, rate.value, starts)
    why = "the model's own answers to these captions are the target, so that they are not forgotten"
    return replace(dataset, keeps_base=why)


def _require_motion(content: FolderContent, framerate: Choice[int] | None) -> None:
    if framerate is None:
        msg = f"{content.folder}: holds images and no clips, and image-to-video needs clips; leave --i2v out"
        raise DataError(msg)
    longest = max(clip_lengths(content.videos, framerate.value))
    if longest < SHORTEST:
        msg = (
            f"{content.folder}: the longest clip has {longest} frames, and image-to-video needs at "
            f"least {SHORTEST}; take longer clips or leave --i2v out"
        )
        raise DataError(msg)


def _trained_images(content: FolderContent, start_images: Choice[Path | None] | None) -> Sequence[ClipRecord]:
    """The images that become a dataset: no start images, and none without a caption where the clips have."""
    starts = start_images.value if start_images is not None else None
    if starts is not None and starts.is_relative_to(content.folder):
        return ()
    if content.video_captions is None or content.image_captions is None:
        return content.images
    if content.image_captions.written or not content.video_captions.written:
        return content.images
    logger.warning(
        "%s not used for lack of captions, which the clips have; write them, and add an entry of "
        "dataset_type image",
        counted(len(content.images), "image"),
    )
    return ()


def _prompt(captions: CaptionChoice) -> Choice[str]:
    if not captions.found:
        return Choice("a video", "no caption was found; write what the training is to show")
    name, caption = next(iter(captions.found.items()))
    return Choice(caption, f"the caption of {name}: watch it change from the base model's answer to yours")
