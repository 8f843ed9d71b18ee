"""Every visible sentence in each language, from the files in `texts`; knows nothing of requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: Mapping[Language, str] = {"en": "English", "zh": "中文"}
"""Each language by its own name."""

FOLDER = Path(__file__).parent / "texts"


@lru_cache
def catalogue() -> Mapping[str, Mapping[str, str]]:
    """All sentences: `feature.key` to language to text; the feature is the file's name."""
    texts = {}
    for path in sorted(FOLDER.glob("*.json")):
        for key, versions in json.loads(path.read_text(encoding="utf-8")).items():
            texts[f"{path.stem}.{key}"] = versions
    return texts


def translate(language: Language, key: str, /, **values: object) -> str:
    """One sentence.

    Args:
        language: which version.
        key: `feature.key`; one that is not in the files is a bug and raises KeyError.
        **values: for the names in braces.
    """
    return catalogue()[key][language].format(**values)
