"""The command `init`: look at a folder of clips, write the two config files that fit it and this machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from longcat_tune.data.demo import CONCEPTS, Concept, Scene, concept_prompts, concept_scenes, known_scenes
from longcat_tune.data.demo_drawing import render
from longcat_tune.data.naming import some
from longcat_tune.data.video import write_mp4
from longcat_tune.errors import ConfigError
from longcat_tune.files import write_atomically
from longcat_tune.runs.build import pick_device
from longcat_tune.runs.init_choices import Choice
from longcat_tune.runs.init_files import choose_run
from longcat_tune.runs.init_look import REGULARISATION, FolderContent, look_into
from longcat_tune.runs.init_recipes import RECIPES, Flavour
from longcat_tune.runs.init_texts import config_text, data_text
from longcat_tune.runs.problems import Problem, counted, problem_lines

logger = logging.getLogger(__name__)

CONFIG_FOLDER = Path("config")
OUTPUT_DIR = Path("longcat-tune-results")
DEMO_SIZE, DEMO_FRAMES, DEMO_FPS = (64, 64), 9, 15.0
"""What the miniature draws best; anything larger would only be scaled down."""
DEMO_CONCEPT: Concept = "orange"
KNOWN = "known"
"""The demo's folder of regularisation data."""


def init(
    clips_dir: Path,
    *,
    i2v: bool,
    demo: bool,
    regularisation_dir: Path | None = None,
    flavour: Flavour | None = None,
) -> None:
    """Write config/config.json and config/multidatabackend.json.

    Args:
        clips_dir: the clips; with demo it gets a folder of clips for each thing the miniature has never seen.
        i2v: train image-to-video, from start images if a folder beside the clips or in theirs holds one for
            each, else from each clip's own first frame.
        demo: draw captioned clips first, and train on those of DEMO_CONCEPT; they have regularisation data
            of their own.
        regularisation_dir: clips of what the model knows and shall not forget.
        flavour: the model; None takes the miniature where there is no GPU.

    Raises:
        ConfigError: one of the files exists, or the demo is given regularisation data.
        DataError: there are no usable clips.
    """
    config_path, data_path = CONFIG_FOLDER / "config.json", CONFIG_FOLDER / "multidatabackend.json"
    for path in (config_path, data_path):
        if path.exists():
            msg = f"{path} exists and is never overwritten; edit it, or move it away and run init again"
            raise ConfigError(msg)
    if demo and regularisation_dir is not None:
        msg = (
            f"--regularisation_dir ({regularisation_dir}) has no effect with --demo, which draws its own; "
            "leave one of them out"
        )
        raise ConfigError(msg)
    prompts = None
    if demo:
        clips_dir, regularisation_dir, prompts = _draw_demo(clips_dir)
    memory = OUTPUT_DIR / "cache" / "vae"
    content = look_into(clips_dir, memory=memory, start_images=i2v)
    _warn(content)
    known = None
    if regularisation_dir is not None:
        known = look_into(regularisation_dir, memory=memory, start_images=False, clips_id=REGULARISATION)
        _warn(known)
    run, datasets = choose_run(
        content, _flavour(flavour), known=known, output_dir=OUTPUT_DIR, i2v=i2v, prompts=prompts
    )
    _write(data_path, data_text(datasets, about=_about(content)))
    _write(config_path, config_text(run, data_path))
    logger.info("Wrote %s and %s for %s", config_path, data_path, _about(content))
    logger.info("Next: longcat-tune check --config %s", config_path)


def _draw_demo(folder: Path) -> tuple[Path, Path, Path]:
    """Draw the clips of every concept; returns those to be learnt, those of what is known, and prompts."""
    trained, known = folder / DEMO_CONCEPT, folder / KNOWN
    # Without them it would come to answer everything with the new thing.
    _draw(known, KNOWN, known_scenes())
    for concept in CONCEPTS:
        _draw(folder / concept, concept, concept_scenes(concept))
        prompts = json.dumps(concept_prompts(concept), indent=2, ensure_ascii=False)
        _write(folder / f"{concept}.json", prompts + "\n")
    others = " and ".join(str(folder / concept) for concept in CONCEPTS if concept != DEMO_CONCEPT)
    logger.info("Drew clips of what the miniature has never seen: %s; also %s", trained, others)
    return trained, known, trained.with_suffix(".json")


def _draw(folder: Path, name: str, scenes: Sequence[Scene]) -> None:
    width, height = DEMO_SIZE
    for number, scene in enumerate(scenes, start=1):
        path = folder / f"{name}-{number:02d}.mp4"
        write_mp4(path, render(scene, width, height, DEMO_FRAMES), DEMO_FPS)
        _write(path.with_suffix(".txt"), scene.caption + "\n")


def _warn(content: FolderContent) -> None:
    """Name the files that cannot be used, images that are not, and folders that count as clips."""
    pictures = [record.name for record in content.videos if record.kind == "sequence"]
    if pictures:
        logger.info("Folders of numbered pictures, each of which is a clip: %s", some(pictures))
    for line in problem_lines([Problem.of_refusal(refusal) for refusal in content.refusals]):
        logger.warning("%s", line)
    if content.refusals:
        logger.warning(
            "%s cannot be used; `longcat-tune check` fails until all are mended or taken out",
            counted(len(content.refusals), "file"),
        )
    if content.loose_images:
        logger.warning(
            "%s not used: a dataset of images over this folder would take the frames of its clips "
            "too; move them into a folder of their own and add an entry of dataset_type image",
            counted(content.loose_images, "image"),
        )


def _flavour(asked: Flavour | None) -> Choice[Flavour]:
    if asked is not None:
        return Choice(asked, RECIPES[asked].about)
    if pick_device().type == "cpu":
        return Choice("tiny", f"no GPU is here, so {RECIPES['tiny'].about}; final is the model itself")
    return Choice("final", RECIPES["final"].about)


def _about(content: FolderContent) -> str:
    """`12 clips and 3 images in /data/clips`."""
    parts = [
        counted(len(records), name)
        for records, name in ((content.videos, "clip"), (content.images, "image"))
        if records
    ]
    return f"{' and '.join(parts)} in {content.folder}"


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
