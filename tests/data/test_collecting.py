"""The collector is as it was before, whatever happens between."""

from __future__ import annotations

import gc

import pytest

from longcat_tune.data.collecting import uncollected


def test_the_collector_rests_and_goes_on():
    @uncollected()
    def fail() -> None:
        assert not gc.isenabled()
        raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
