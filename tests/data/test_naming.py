"""Long lists are cut, and say by how much."""

from __future__ import annotations

import pytest

from longcat_tune.data.naming import NAMED, some


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("", ""),
        ("a", "a"),
        ("abc", "a; b; c"),
        ("abcd", "a; b; c; 1 more"),
        ("abcdef", "a; b; c; 3 more"),
    ],
)
def test_the_first_few_are_named_and_the_others_counted(names, told):
    assert some(names, 3, between="; ") == told
    assert some(iter(names), 3, between="; ", noun="sets") == told.replace("more", "more sets")


def test_without_a_number_it_is_five():
    assert some("abcdef") == "a, b, c, d, e, 1 more"
    assert NAMED == 5
