"""Measure how well the miniature's renders obey held-out captions, and how well its VAE reconstructs.

    python scripts/measure_tiny.py                                   the base, 128 captions it was never shown
    python scripts/measure_tiny.py --lora FILE --concept star        a LoRA on its concept
    python scripts/measure_tiny.py --base_model_precision int8-quanto      any config key changes the model

What is seen in a render is read back by plain image analysis (longcat_tune/data/demo_probe.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from longcat_tune.config.load import load_run_config
from longcat_tune.data.demo import (
    COLOURS,
    CONCEPTS,
    DIRECTIONS,
    MOTIONS,
    SHAPES,
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=128, help="captions to render")
    parser.add_argument("--size", default="64x64@9", help="WIDTHxHEIGHT@FRAMES")
    parser.add_argument("--lora", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--concept", choices=CONCEPTS, help="ask for a concept instead of held-out captions")
    parser.add_argument("--language", type=int, default=0, choices=(0, 1, 2), help="long, short, Chinese")
    parser.add_argument("--image-to-video", action="store_true", help="give the first frame of a drawn scene")
    parser.add_argument("--seed", type=int, default=0)
    options, rest = parser.parse_known_args()
    overrides = {name.removeprefix("--"): value for name, value in zip(rest[::2], rest[1::2], strict=True)}
    config = load_run_config(None, {"model_flavour": "tiny"} | overrides)
    torch.manual_seed(0)
    width, height, frames = (int(part) for part in options.size.replace("@", "x").split("x"))
    examiner = Examiner(config, loras=options.lora, device=pick_device())
    asked = (
        held_out_names(options.count)
        if options.concept is None
        else concept_names(options.concept, options.count)
    )
    renders = examiner.render(
        asked,
        size=Bucket(width, height, frames),
        seed=options.seed,
        language=options.language,
        starts=first_scenes(asked) if options.image_to_video else None,
    )
    known = {"captions": len(asked), "size": options.size, "chance_colour": round(1 / len(COLOURS), 3)}
    known |= {"chance_shape": round(1 / len(SHAPES), 3), "chance_motion": round(1 / len(MOTIONS), 3)}
    found = table(renders)
    if options.image_to_video:
        found |= pinned(renders, first_scenes(asked))
    print(json.dumps(known | found, indent=2))


if __name__ == "__main__":
    main()
