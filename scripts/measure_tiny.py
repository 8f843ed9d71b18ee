"""Measure how well the miniature's renders obey held-out captions.

    python scripts/measure_tiny.py                                   the base, 128 captions it was never shown
    python scripts/measure_tiny.py --table                           the table of its card
    python scripts/measure_tiny.py --lora FILE --concept star        a LoRA on its concept
    python scripts/measure_tiny.py --base_model_precision int8-quanto      any config key changes the model

What is seen in a render is read back by plain image analysis (longcat_tune/data/demo_probe.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from longcat_tune.config.load import load_run_config
from longcat_tune.data.demo import (
    COLOURS,
    CONCEPTS,
    DIRECTIONS,
    MOTIONS,
    SHAPES,
    Concept,
    Names,
    Scene,
    concept_names,
    held_out_names,
    place,
)
from longcat_tune.data.demo_drawing import render
from longcat_tune.data.demo_probe import first_frame
from longcat_tune.runs.build import pick_device
from longcat_tune.runs.obedience import Examiner, Render, shares
from longcat_tune.sampling.numbers import psnr
from longcat_tune.sampling.pictures import Frames
from longcat_tune.types import Bucket

START_SEED = 9_000_000


def first_scenes(asked: Sequence[Names]) -> list[Scene]:
    """Scenes whose first frames are given, always the same."""
    rng = np.random.default_rng(START_SEED)
    return [place(rng, names) for names in asked]


def table(renders: list[Render]) -> dict[str, float]:
    """Shares by name; the direction among those that move straight or rest."""
    moving = [one for one in renders if one.asked.motion in DIRECTIONS]
    found = shares(renders)
    if moving:
        found["direction"] = shares(moving)["motion"]
    return {name: round(share, 4) for name, share in found.items()}


def pinned(renders: Sequence[Render], starts: Sequence[Scene]) -> dict[str, float]:
    """How well first frames are those that were given: the worst PSNR in dB, and what is seen in them."""
    pairs = list(zip(renders, starts, strict=True))
    worst = min(psnr(one.frames_FHW3[0], first_drawn(one, start)) for one, start in pairs)
    seen = [first_frame(one.frames_FHW3) == (start.shape, start.colour) for one, start in pairs]
    return {"first_frame_psnr_worst": round(worst, 1), "first_frame": round(sum(seen) / len(seen), 4)}


def first_drawn(one: Render, start: Scene) -> Frames:
    """The frame that was given."""
    frames, height, width, _ = one.frames_FHW3.shape
    return render(start, width, height, frames)[0]


@dataclass(frozen=True, slots=True)
class Question:
    """What to render, and with which model.

    Attributes:
        size: WIDTHxHEIGHT@FRAMES.
        count: captions.
        language: which of the captions of Names.
        image_to_video: give the first frame of a drawn scene.
        seed: of the noise.
        concept: ask for it instead of held-out captions.
        loras: to apply.
        changes: of the config.
    """

    size: str = "64x64@9"
    count: int = 128
    language: int = 0
    image_to_video: bool = False
    seed: int = 0
    concept: Concept | None = None
    loras: Sequence[Path] = ()
    changes: Mapping[str, str] = field(default_factory=dict)

    def answer(self) -> dict[str, float]:
        """Render and look."""
        config = load_run_config(None, {"model_flavour": "tiny", **self.changes})
        width, height, frames = (int(part) for part in self.size.replace("@", "x").split("x"))
        asked = (
            held_out_names(self.count) if self.concept is None else concept_names(self.concept, self.count)
        )
        starts = first_scenes(asked) if self.image_to_video else None
        renders = Examiner(config, loras=self.loras, device=pick_device()).render(
            asked, size=Bucket(width, height, frames), seed=self.seed, language=self.language, starts=starts
        )
        return table(renders) | (pinned(renders, starts) if starts is not None else {})


SPARSE = "128x64@33"
"""Small, and yet of enough boxes that block-sparse attention leaves half of them out."""
TABLE: dict[str, Question] = {
    "64x64, 9 frames": Question(),
    "the same, other noise": Question(seed=1),
    "short captions": Question(language=1),
    "Chinese captions": Question(language=2),
    "17 frames": Question("64x64@17", 64),
    "33 frames": Question("64x64@33", 32),
    "128x64, 9 frames": Question("128x64@9", 64),
    "image-to-video": Question(image_to_video=True),
    "int8-quanto": Question(changes={"base_model_precision": "int8-quanto"}),
    "all blocks streamed": Question(changes={"musubi_blocks_to_swap": "4"}),
    "128x64, 33 frames": Question(SPARSE),
    "the same, block-sparse": Question(SPARSE, changes={"attention_implementation": "block_sparse"}),
}


def print_table() -> None:
    """The rows of the card's table, as Markdown."""
    columns = ("background", "colour", "shape", "motion", "direction", "all")
    print("| " + " | ".join(["renders", "captions", *columns]) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for name, question in TABLE.items():
        found = question.answer()
        shown = (f"{100 * found[column]:.1f} %" for column in columns)
        print("| " + " | ".join([name, str(question.count), *shown]) + " |", flush=True)
        if question.image_to_video:
            print(f"(first frame: {found['first_frame']:.3f}, worst {found['first_frame_psnr_worst']} dB)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own = Question()
    parser.add_argument("--table", action="store_true", help="measure every row of the card's table")
    parser.add_argument("--count", type=int, default=own.count, help="captions to render")
    parser.add_argument("--size", default=own.size, help="WIDTHxHEIGHT@FRAMES")
    parser.add_argument("--lora", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--concept", choices=CONCEPTS, help="ask for a concept instead of held-out captions")
    parser.add_argument("--language", type=int, default=0, choices=(0, 1, 2), help="long, short, Chinese")
    parser.add_argument("--image-to-video", action="store_true", help="give the first frame of a drawn scene")
    parser.add_argument("--seed", type=int, default=own.seed)
    options, rest = parser.parse_known_args()
    if options.table:
        print_table()
        return
    changes = {name.removeprefix("--"): value for name, value in zip(rest[::2], rest[1::2], strict=True)}
    question = Question(
        size=options.size,
        count=options.count,
        language=options.language,
        image_to_video=options.image_to_video,
        seed=options.seed,
        concept=options.concept,
        loras=options.lora,
        changes=changes,
    )
    known = {"captions": options.count, "size": options.size, "chance_colour": round(1 / len(COLOURS), 3)}
    known |= {"chance_shape": round(1 / len(SHAPES), 3), "chance_motion": round(1 / len(MOTIONS), 3)}
    print(json.dumps(known | question.answer(), indent=2))


if __name__ == "__main__":
    main()
