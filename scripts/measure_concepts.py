"""Teach the miniature every concept of the demo, as a user would, and measure what came of it.

    python scripts/measure_concepts.py --save

For each: `init --demo` and `train` in a folder of their own, with the options of `train` that are given; then
renders of captions that no clip had, before and after, and of captions that the miniature was never shown but
could draw. One more run is image-to-video. What a render shows is read back by plain image analysis
(longcat_tune/data/demo_probe.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure_tiny import Question

from longcat_tune.data.demo import CONCEPTS, Concept

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "concepts.json"
ASKED = 32
OLD = Question(count=64)
LORA = "longcat-tune-results/pytorch_lora_weights.safetensors"
WANTED = {
    "before": 0.1,
    "after": 0.8,
    "lost": 0.1,
    "seconds": 300,
    "image_to_video": 0.7,
    "kept_from_image": 0.9,
}
PACKAGES = ("torch", "diffusers", "numpy")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One training run.

    Attributes:
        concept: what is taught.
        i2v: from start images.
        changes: options of `train`.
    """

    concept: Concept
    i2v: bool
    changes: Sequence[str]

    @property
    def name(self) -> str:
        """`spiral, image-to-video`."""
        return f"{self.concept}, image-to-video" if self.i2v else self.concept

    def take(self, folder: Path) -> float:
        """Train in an empty folder; returns the seconds of the command `train`."""
        command("init", "clips", "--demo", "--model_flavour", "tiny", folder=folder)
        (folder / "config").rename(folder / "config-of-the-demo")
        i2v = ["--i2v"] if self.i2v else []
        known = ("--regularisation_dir", "clips/known")
        command("init", f"clips/{self.concept}", *known, "--model_flavour", "tiny", *i2v, folder=folder)
        started = time.perf_counter()
        command("train", "--config", "config/config.json", *self.changes, folder=folder)
        return time.perf_counter() - started


def command(*words: str, folder: Path) -> None:
    """Run longcat-tune in a folder; what it says is shown only if it fails."""
    run = [sys.executable, "-m", "longcat_tune", *words]
    done = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


def measure(lesson: Lesson, known: dict[str, float]) -> dict[str, Any]:
    """Before, after, and what became of all else.

    Args:
        lesson: what to teach.
        known: the base's answer to OLD.
    """
    field = CONCEPTS[lesson.concept]
    new = Question(count=ASKED, concept=lesson.concept, image_to_video=lesson.i2v)
    with tempfile.TemporaryDirectory() as folder:
        seconds = lesson.take(Path(folder))
        loras = [Path(folder) / LORA]
        before, after = new.answer(), replace(new, loras=loras).answer()
        kept = replace(OLD, loras=loras).answer()
    return {
        "options": " ".join(lesson.changes),
        "seconds": round(seconds, 1),
        "field": field,
        "before": before[field],
        "after": after[field],
        "asked_before": before,
        "asked_after": after,
        "old_before": known,
        "old_after": kept,
    }


def kept_from_image(found: dict[str, Any]) -> float:
    """Share of renders that show the start image's shape, or its colour, whichever is less."""
    return min(found["asked_after"][name] for name in ("shape", "colour"))


def misses(lesson: Lesson, found: dict[str, Any]) -> list[str]:
    """What is not as wanted."""
    lost = max(found["old_before"][field] - found["old_after"][field] for field in found["old_before"])
    wrong = [
        ("before", found["before"] > WANTED["before"]),
        ("after", found["after"] < WANTED["image_to_video" if lesson.i2v else "after"]),
        ("lost", lost > WANTED["lost"]),
        ("seconds", found["seconds"] > WANTED["seconds"]),
        ("kept_from_image", lesson.i2v and kept_from_image(found) < WANTED["kept_from_image"]),
    ]
    return [what for what, is_wrong in wrong if is_wrong]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=CONCEPTS, help="one concept, text-to-video")
    parser.add_argument("--i2v", action="store_true", help="with --only: image-to-video")
    parser.add_argument("--save", action="store_true", help=f"into {RESULT.relative_to(ROOT)}")
    options, changes = parser.parse_known_args()
    lessons = [Lesson(concept, False, changes) for concept in CONCEPTS] + [Lesson("spiral", True, changes)]
    if options.only:
        lessons = [Lesson(options.only, options.i2v, changes)]
    known = OLD.answer()
    results: dict[str, Any] = {}
    for lesson in lessons:
        results[lesson.name] = found = measure(lesson, known)
        found["missed"] = misses(lesson, found)
        print(lesson.name, json.dumps(found), flush=True)
    about = {
        "command": "python scripts/measure_concepts.py --save",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "captions": {"asked": ASKED, "old": OLD.count},
    }
    if options.save:
        others = json.loads(RESULT.read_text())["results"] if options.only and RESULT.exists() else {}
        RESULT.write_text(json.dumps({**about, "results": others | results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
