"""Draws from names: the same everywhere and for ever, and evenly spread."""

from __future__ import annotations

from itertools import islice

from longcat_tune.data.lots import lot, shares


def first_shares(count: int, *names: str, seed: int = 42) -> list[float]:
    return list(islice(shares(seed, *names), count))


def test_draws_depend_on_seed_and_names_alone():
    # Written down once: another value would choose other windows and crops, and encode every cache anew.
    assert lot(42, "clips", "a.mp4").hex()[:16] == "d1455430fbed729f"
    assert first_shares(2, "a.mp4") == [0.1349547104910016, 0.591002703178674]
    others = [first_shares(3, "b.mp4"), first_shares(3, "a.mp4", seed=43), first_shares(3, "a.mp4", "crop")]
    assert len({tuple(draws) for draws in [first_shares(3, "a.mp4"), *others]}) == 4


def test_draws_go_on_without_repeating():
    draws = first_shares(1000, "a.mp4")
    assert len(set(draws)) == 1000
    assert all(0 <= draw < 1 for draw in draws)


def test_draws_are_evenly_spread():
    tenths = [int(10 * draw) for draw in first_shares(10_000, "a.mp4")]
    assert all(900 < tenths.count(tenth) < 1100 for tenth in range(10))
