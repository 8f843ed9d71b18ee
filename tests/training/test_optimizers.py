"""Each optimizer gets its numbers, learns, and says which package it needs when that is missing."""

from __future__ import annotations

import sys
from typing import get_args

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.optim import Adafactor, AdamW, Optimizer

from longcat_tune.errors import ConfigError
from longcat_tune.training.optimizers import (
    PACKAGES,
    OptimizerName,
    OptimizerPair,
    OptimizerSettings,
    build_optimizer,
    rate_of_step,
)
from longcat_tune.training.schedule_free import ScheduleFreeWeights


def weights() -> list[Parameter]:
    """A LoRA's A and B, and a vector as DoRA has them."""
    generator = Generator().manual_seed(0)
    return [
        Parameter(torch.randn(4, 32, generator=generator) * 0.1),
        Parameter(torch.zeros(16, 4)),
        Parameter(torch.ones(16)),
    ]


def build(name: OptimizerName, parameters: list[Parameter], **changes: object) -> Optimizer:
    settings = OptimizerSettings(name, **changes)  # type: ignore[arg-type]
    return build_optimizer(settings, parameters, is_up=lambda parameter: parameter.shape == (16, 4))


def loss_of(parameters: list[Parameter], inputs: Tensor, targets: Tensor) -> Tensor:
    down, up, size = parameters
    return ((inputs @ down.T @ up.T) * size - targets).square().mean()


def needs(name: str) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("adamw", 1e-2),
        ("adamw_8bit", 1e-2),
        ("adafactor", 1e-2),
        ("prodigy", 1.0),
        ("adamw_schedulefree", 1e-2),
        ("muon", 1e-2),
    ],
)
def test_every_optimizer_learns(name: OptimizerName, rate: float) -> None:
    needs(name)
    generator = Generator().manual_seed(1)
    inputs = torch.randn(64, 32, generator=generator)
    targets = 0.1 * inputs @ torch.randn(32, 16, generator=generator)[:, :1].repeat(1, 16)
    parameters = weights()
    optimizer = build(name, parameters, learning_rate=rate)
    if name == "adamw_schedulefree":
        ScheduleFreeWeights(optimizer).take_up()
    first = loss_of(parameters, inputs, targets).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss_of(parameters, inputs, targets).backward()
        optimizer.step()
    assert loss_of(parameters, inputs, targets).item() < 0.2 * first


def test_every_name_is_tested() -> None:
    assert set(get_args(OptimizerName)) == {*PACKAGES, "adamw", "adafactor", "muon"}


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "prodigy", "adamw_schedulefree"])
def test_relatives_of_adam_take_the_same_numbers(name: OptimizerName) -> None:
    needs(name)
    optimizer = build(name, weights()[:2], learning_rate=0.5, betas=(0.7, 0.8), eps=1e-3, weight_decay=0.25)
    (group,) = optimizer.param_groups
    assert [group[key] for key in ("lr", "betas", "eps", "weight_decay")] == [0.5, (0.7, 0.8), 1e-3, 0.25]


def test_adamw_is_torch_s_and_not_fused_on_the_cpu() -> None:
    ours, theirs = weights()[:2], weights()[:2]
    optimizer = build("adamw", ours, learning_rate=1e-3, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    reference = AdamW(theirs, 1e-3, (0.8, 0.9), 1e-6, 0.1)
    for parameters, stepped in ((ours, optimizer), (theirs, reference)):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.5)
        stepped.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not optimizer.defaults["fused"]


@pytest.mark.parametrize("name", ["adamw", "adafactor", "adamw_schedulefree", "muon"])
def test_lora_plus_gives_b_its_own_rate(name: OptimizerName) -> None:
    needs(name)
    parameters = weights()
    optimizer = build(name, parameters, learning_rate=1e-4, lora_plus_ratio=16)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert [rates[id(parameter)] for parameter in parameters] == [1e-4, 16e-4, 1e-4]


@pytest.mark.parametrize("name", ["adamw", "adafactor", "adamw_schedulefree", "muon"])
def test_weight_decay_leaves_the_vectors_of_dora_as_they_are(name: OptimizerName) -> None:
    needs(name)
    parameters = weights()
    optimizer = build(name, parameters, learning_rate=1e-2, weight_decay=0.5)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    if name == "adamw_schedulefree":
        ScheduleFreeWeights(optimizer).take_up()
    before = parameters[0].detach().clone()
    optimizer.step()
    assert not torch.equal(parameters[0], before)
    assert torch.equal(parameters[2], torch.ones(16))


def test_adafactor_s_rate_is_absolute() -> None:
    # With torch's own eps2 the first step of B, which is 0, would be a thousandth of it.
    up = Parameter(torch.zeros(16, 4))
    optimizer = build("adafactor", [up], learning_rate=1e-3)
    assert isinstance(optimizer, Adafactor)
    up.grad = torch.ones(16, 4)
    optimizer.step()
    torch.testing.assert_close(up.detach(), torch.full((16, 4), -1e-3))


def test_muon_steps_matrices_and_adamw_the_rest() -> None:
    parameters = weights()
    optimizer = build("muon", parameters, learning_rate=1e-2, weight_decay=0.0)
    assert isinstance(optimizer, OptimizerPair)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=Generator().manual_seed(3))
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.step()
    steps = [now.detach() - then for now, then in zip(parameters, before, strict=True)]
    # Orthogonal and as large as AdamW's: 0.2 sqrt(16) / sqrt(16) a value, as 4 of 16 directions are stepped.
    spectrum = torch.linalg.svdvals(steps[1]) / (1e-2 * 0.2 * 4)
    assert bool(((spectrum > 0.6) & (spectrum < 1.3)).all())
    torch.testing.assert_close(steps[2].abs(), torch.full((16,), 1e-2))
    assert isinstance(build("muon", parameters[:2]), torch.optim.Muon)
    assert isinstance(build("muon", parameters[2:]), AdamW)


def test_muon_in_an_older_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longcat_tune.training.optimizers.TORCH_HAS_MUON", False)
    with pytest.raises(ConfigError, match=r"optimizer \(muon\) needs torch 2.9 or newer, and this is"):
        build("muon", weights())


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, name: OptimizerName, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        build(name, weights())
    assert str(caught.value) == (
        f"optimizer ({name}) needs the package {package}, which is not installed; "
        "pip install 'longcat-tune[optim]', or choose adamw"
    )


def test_the_rate_that_prodigy_has_found_is_the_one_that_is_logged() -> None:
    [weight] = trained = weights()[:1]
    optimizer = build("prodigy", trained, learning_rate=1.0)
    assert rate_of_step(optimizer) == pytest.approx(1e-6)  # Where it begins to look.
    for _ in range(30):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert rate_of_step(optimizer) == optimizer.param_groups[0]["d"] > 2e-6
    optimizer.param_groups[0]["lr"] = 0.5
    assert rate_of_step(optimizer) == optimizer.param_groups[0]["d"] / 2
    assert rate_of_step(build("adamw", weights(), learning_rate=3e-4)) == 3e-4


def test_prodigy_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    build("prodigy", weights(), learning_rate=1.0)
    assert capsys.readouterr().out == ""
