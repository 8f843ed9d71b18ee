"""A resumed run says whose clips and captions are others than before."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from longcat_tune.runs.content import content_hashes
from longcat_tune.runs.train import train
from longcat_tune.types import Bucket, CachedSample, TrainingSet
from tests.builders import make_clips, make_run, video_entry

CLIP = CachedSample("d/a.mp4", Bucket(64, 64, 9), (Path("c/1"), Path("c/2")), Path("c/3"), (Path("t/4"),))
SET = TrainingSet("d", (CLIP, replace(CLIP, clip_id="d/b.mp4", text_paths=(Path("t/5"),))))


def changed(**values: object) -> set[str]:
    """The hashes that differ when the second clip has these values."""
    first, second = SET.samples
    before, after = (
        content_hashes([SET]),
        content_hashes([replace(SET, samples=(first, replace(second, **values)))]),
    )
    return {key for key in before if before[key] != after[key]}


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"text_paths": (Path("t/6"),)}, {"captions of d"}),
        ({"text_paths": (Path("t/5"), Path("t/4"))}, {"captions of d"}),
        ({"latents_paths": (Path("c/1"), Path("c/9"))}, {"latents of d"}),
        ({"cond_latents_path": Path("c/9")}, {"latents of d"}),
        ({"cond_latents_path": None}, {"latents of d"}),
        ({"clip_id": "d/renamed.mp4"}, set()),
        ({"text_paths": (Path("moved/5"),), "latents_paths": (Path("moved/1"), Path("moved/2"))}, set()),
    ],
)
def test_latents_and_captions_are_told_apart(values: dict[str, object], keys: set[str]) -> None:
    assert changed(**values) == keys


def test_the_hashes_are_the_same_on_every_machine() -> None:
    assert content_hashes([SET, replace(SET, dataset_id="e", samples=())]) == {
        "latents of d": "88384685cb34d616",
        "captions of d": "2d1fd26628ae21de",
        "latents of e": "e4a6a0577479b2b4",
        "captions of e": "e4a6a0577479b2b4",
    }


@pytest.mark.parametrize(
    ("change", "told"), [("caption", "captions of clips"), ("crop", "latents of clips"), (None, None)]
)
def test_a_resumed_run_shows_what_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str | None, told: str | None
) -> None:
    clips = make_clips(tmp_path / "clips", 1, size=(96, 64))
    train(make_run(tmp_path, [video_entry(clips)], max_train_steps=1), config_dir=tmp_path)
    if change == "caption":
        (clips / "clip-0.txt").write_text("an edited caption")
    entry = video_entry(clips, crop_style="corner" if change == "crop" else "center")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(make_run(tmp_path, [entry], max_train_steps=2), config_dir=tmp_path)
    rows = [
        row
        for message in caplog.messages
        if message.startswith("Changed since")
        for row in message.split("\n")
    ]
    shown = {row.split("  ")[1] for row in rows if " of clips" in row}
    assert shown == ({told} if told else set())
