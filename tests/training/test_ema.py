"""The average follows its formula, comes and goes without a trace, and is saved to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Parameter

from longcat_tune.errors import CheckpointError
from longcat_tune.training.ema import EMA_FILE, Ema


def named(value: float = 0.0, *, dtype: torch.dtype = torch.float32) -> dict[str, Parameter]:
    return {
        "a": Parameter(torch.full((2, 3), value, dtype=dtype)),
        "b": Parameter(torch.full((4,), value, dtype=dtype)),
    }


def stepped(weights: dict[str, Parameter], ema: Ema, values: list[float]) -> None:
    for value in values:
        with torch.no_grad():
            for parameter in weights.values():
                parameter.fill_(value)
        ema.update()


def average(ema: Ema, weights: dict[str, Parameter]) -> float:
    with ema.swapped_in():
        return weights["a"][0, 0].item()


def test_the_decay_grows_to_the_one_asked_for() -> None:
    weights = named(1.0)
    ema = Ema(weights.items(), decay=0.3)
    values = [2.0, -1.0, 4.0, 0.5, 3.0]
    expected = 1.0
    for n, value in enumerate(values):
        keep = min(0.3, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * value
    stepped(weights, ema, values)
    assert average(ema, weights) == pytest.approx(expected, rel=1e-6)
    assert ema.updates == 5


def test_the_weights_come_back_to_the_bit_also_after_an_error() -> None:
    weights = named()
    ema = Ema(weights.items(), decay=0.9)
    stepped(weights, ema, [0.1, 0.7])
    before = {name: parameter.detach().clone() for name, parameter in weights.items()}

    def broken_off() -> None:
        with ema.swapped_in():
            assert not torch.equal(weights["a"], before["a"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_a_saved_average_goes_on_to_the_bit(tmp_path: Path) -> None:
    weights, values = named(), [0.1, 0.7, -0.3, 0.9, 0.2, 0.4]
    whole = Ema(weights.items(), decay=0.995)
    stepped(weights, whole, values[:3])
    whole.write(tmp_path)
    resumed_weights = named(values[2])
    resumed = Ema(resumed_weights.items(), decay=0.995)
    resumed.resume(tmp_path)
    stepped(weights, whole, values[3:])
    stepped(resumed_weights, resumed, values[3:])
    with whole.swapped_in(), resumed.swapped_in():
        assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
    assert resumed.updates == 6
    assert load_file(tmp_path / EMA_FILE).keys() == weights.keys()


def test_a_checkpoint_without_one_begins_with_its_weights(tmp_path: Path) -> None:
    weights = named()
    ema = Ema(weights.items(), decay=0.9)
    with torch.no_grad():
        weights["a"].fill_(5.0)
    ema.resume(tmp_path)
    assert average(ema, weights) == 5.0


def test_the_average_of_bf16_weights_is_float32() -> None:
    weights = named(dtype=torch.bfloat16)
    ema = Ema(weights.items(), decay=0.999)
    # Half of bf16's spacing at 1: lost if the average were rounded at each update.
    stepped(weights, ema, [1.0] * 60)
    stepped(weights, ema, [1.0078125] * 20)
    assert ema._average[0].dtype == torch.float32
    assert 1.0 < ema._average[0][0, 0].item() < 1.0078125


def test_an_average_of_other_weights_is_refused(tmp_path: Path) -> None:
    Ema(named().items(), decay=0.9).write(tmp_path)
    other = Ema([("a", Parameter(torch.zeros(2, 3)))], decay=0.9)
    with pytest.raises(CheckpointError, match=r"average of other weights \(2\) than this run trains \(1\)"):
        other.resume(tmp_path)
