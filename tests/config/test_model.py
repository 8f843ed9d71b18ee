"""Keys of the section model that take more than text."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from longcat_tune.config.model import ModelSection


@pytest.mark.parametrize(
    ("given", "word"), [(True, "true"), (False, "false"), ("true", "true"), ("auto", "auto")]
)
def test_compile_takes_a_bool_or_its_word(given: object, word: str) -> None:
    assert ModelSection(compile=given).compile == word


def test_compile_takes_no_number() -> None:
    with pytest.raises(ValidationError, match="'auto', 'true' or 'false'"):
        ModelSection(compile=1)
