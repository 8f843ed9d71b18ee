"""What does not fit is made shorter, then given up; what fits is remembered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from longcat_tune.errors import DeviceError
from longcat_tune.runs.fitting import Decoder, Fitting
from longcat_tune.types import Bucket

CPU = torch.device("cpu")
WANTED = Bucket(64, 64, 93)


def up_to(frames: int, tried: list[int]) -> Callable[[Bucket], int]:
    def attempt(size: Bucket) -> int:
        tried.append(size.num_frames)
        if size.num_frames > frames:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return size.num_frames

    return attempt


def make(fitting: Fitting, attempt: Callable[[Bucket], int], given: int = 0) -> tuple[int, list[str]]:
    told: list[str] = []
    made = fitting.make(
        attempt, WANTED, given_frames=given, device=CPU, on_smaller=lambda change, _: told.append(change)
    )
    return made, told


def test_frames_are_halved_until_they_fit_and_that_is_remembered() -> None:
    fitting, tried = Fitting(), []
    made, told = make(fitting, up_to(30, tried))
    assert (made, tried) == (21, [93, 45, 21])
    assert told == ["45 frames in place of 93", "21 frames in place of 45"]
    assert make(fitting, up_to(30, tried)) == (21, [])
    assert tried == [93, 45, 21, 21]


@pytest.mark.parametrize(("given", "least"), [(0, 5), (1, 5), (13, 17)])
def test_the_shortest_still_makes_frames_and_its_failure_says_what_to_lower(given: int, least: int) -> None:
    fitting, tried = Fitting(), []
    with pytest.raises(DeviceError, match=rf"rendering 64x64@{least}.*validation_resolution"):
        make(fitting, up_to(0, tried), given)
    assert tried[-1] == least
    assert all(frames % 4 == 1 for frames in tried)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    def attempt(_: Bucket) -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        make(Fitting(), attempt)


def test_a_decoder_without_room_is_loaded_again_in_tiles_and_stays_so() -> None:
    loaded: list[bool] = []

    def load(tiling: bool) -> bool:
        loaded.append(tiling)
        return tiling

    def decode(tiled: bool) -> torch.Tensor:
        if not tiled:
            raise MemoryError
        return torch.ones(1)

    told: list[str] = []
    decoder = Decoder(load, CPU)
    for _ in range(2):
        assert decoder.use(decode, on_smaller=lambda change, _: told.append(change)).item() == 1
    assert loaded == [False, True]
    assert told == ["frames are decoded in tiles"]


def test_tiles_that_do_not_fit_either_are_out_of_memory() -> None:
    def decode(_: bool) -> torch.Tensor:
        raise MemoryError

    with pytest.raises(DeviceError, match="out of memory in decoding"):
        Decoder(bool, CPU).use(decode, on_smaller=lambda *_: None)
