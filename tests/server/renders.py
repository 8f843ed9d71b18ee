"""Runs on disk as the tool leaves them, for tests of what shows them; no model renders anything."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

VIDEO = bytes(range(256)) * 16
"""In place of an mp4: 4096 bytes of which every one tells its place."""


def make_run(home: Path, run: str = "dog") -> Path:
    """A run that has not rendered yet; gives its results."""
    results = home / "runs" / run / "results"
    results.mkdir(parents=True)
    (results.parent / "config.json").write_text(json.dumps({"model_flavour": "tiny"}))
    return results


def video_record(name: str = "prompt", **changes) -> dict[str, object]:
    """One entry of renders.json."""
    stem = f"{name}_64x64_42"
    return {
        "key": f"key-{name}",
        "name": name,
        "prompt": f"a {name} on a beach",
        "file": f"{stem}.mp4",
        "strip": f"{stem}.png",
        "cells": 4,
        "width": 64,
        "height": 64,
        "num_frames": 9,
        "fps": 15.0,
        "details": ["64 wide x 64 high (square)", "seed 42"],
        "numbers": {"sharpness": 12.5, "temporal_consistency": 0.987},
        "seconds": 3.25,
    } | changes


def make_renders(results: Path, place: str, *videos: dict[str, object], failures=()) -> Path:
    """A folder below `validation` with a record, its videos, strips and grid."""
    folder = results / "validation" / place
    folder.mkdir(parents=True, exist_ok=True)
    for video in videos:
        (folder / str(video["file"])).write_bytes(VIDEO)
        Image.new("RGB", (256, 64), "teal").save(folder / str(video["strip"]))
    if videos:
        Image.new("RGB", (256, 64), "teal").save(folder / "grid.png")
    record = {"weights": "w", "renders": [], "videos": list(videos), "failures": list(failures)}
    (folder / "renders.json").write_text(json.dumps(record))
    return folder


def make_lora(
    folder: Path, name: str = "pytorch_lora_weights.safetensors", content: bytes = b"weights"
) -> Path:
    """A file in place of a LoRA."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name
