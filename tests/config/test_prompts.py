"""Prompt libraries: what a file may hold, and what is said of one that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longcat_tune.config.prompts import built_in_prompts, load_prompts
from longcat_tune.errors import ConfigError


def library(folder: Path, content: Any) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps(content))
    return path


def test_the_built_in_library_has_twelve_prompts_in_two_languages() -> None:
    prompts = built_in_prompts()
    chinese = [
        name for name, entry in prompts.items() if any(ord(letter) > 0x3000 for letter in entry.prompt)
    ]
    assert len(prompts) == 12
    assert len(chinese) == 6


def test_a_prompt_is_a_text_or_an_object_with_more(tmp_path: Path) -> None:
    (tmp_path / "cat.png").touch()
    more = {"prompt": "A cat.", "image": "cat.png", "resolution": "832x480", "guidance": 0, "seed": 0}
    path = library(tmp_path, {"plain": "A dog.", "more": more})
    prompts = load_prompts(path)
    assert prompts["plain"].prompt == "A dog."
    assert prompts["more"].image == tmp_path / "cat.png"
    assert [tuple(size) for size in prompts["more"].resolution] == [(832, 480)]
    assert (prompts["more"].guidance, prompts["more"].seed, prompts["plain"].seed) == (0, 0, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": {"prompt": "x", "gidance": 1}}, "a: gidance (1) is not a known key; did you mean guidance?"),
        (
            {"a": {"prompt": "x", "num_video_frames": 50}},
            "a: num_video_frames (50) must be 4k + 1; use 49 or 53",
        ),
        ({"a": {"image": "x.png"}}, "a: prompt is missing"),
        ({"a": {"prompt": "x", "image": "i", "video": "v"}}, "image and video cannot both be the start"),
        ([], "must hold an object of prompts by id"),
    ],
)
def test_what_is_wrong_in_a_library_is_told_with_the_prompt_s_id(tmp_path: Path, content: Any, message: str):
    with pytest.raises(ConfigError) as caught:
        load_prompts(library(tmp_path, content))
    assert message in str(caught.value)
