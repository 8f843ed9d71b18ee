"""Optimizers from the libraries that own them; sees parameters and numbers, never a model or a config.

The libraries of the extra `optim` are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from typing import Any, Literal

import torch
from torch.nn import Parameter
from torch.optim import Adafactor, AdamW, Optimizer

from longcat_tune.errors import ConfigError

OptimizerName = Literal["adamw", "adamw_8bit", "adafactor", "prodigy", "adamw_schedulefree", "muon"]

PACKAGES: dict[OptimizerName, str] = {
    "adamw_8bit": "bitsandbytes",
    "prodigy": "prodigyopt",
    "adamw_schedulefree": "schedulefree",
}
"""Where optimizers that are not torch's come from; the extra `optim` installs all of them."""

TORCH_HAS_MUON = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)

Group = dict[str, Any]
"""A parameter group as torch's optimizers take it, with its own `lr`."""


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Which optimizer, with which numbers.

    Attributes:
        name: which.
        learning_rate: before the schedule; of the A matrices where lora_plus_ratio is given.
        betas: decay of the running means of gradients and of their squares.
        eps: added to the denominator.
        weight_decay: decoupled (Loshchilov & Hutter 2019, arXiv 1711.05101).
        lora_plus_ratio: learning rate of the B matrices over that of A: LoRA+, Hayou et al. 2024 (arXiv
            2402.12354); None: one rate for all.
    """

    name: OptimizerName = "adamw"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    lora_plus_ratio: float | None = None

    @property
    def adam(self) -> dict[str, Any]:
        """The numbers that every relative of Adam takes by the same names."""
        return {
            "lr": self.learning_rate,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }


def require_optimizer(name: OptimizerName) -> None:
    """Refuse an optimizer that is not installed, before long work counts on it.

    Raises:
        ConfigError: its library is missing or too old.
    """
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        raise ConfigError(
            f"optimizer ({name}) needs the package {package}, which is not installed; "
            "pip install 'longcat-tune[optim]', or choose adamw"
        )
    if name == "muon" and not TORCH_HAS_MUON:
        raise ConfigError(
            f"optimizer (muon) needs torch 2.9 or newer, and this is {torch.__version__}; upgrade torch or "
            "choose adamw"
        )


def build_optimizer(
    settings: OptimizerSettings, parameters: Iterable[Parameter], *, is_up: Callable[[Parameter], bool]
) -> Optimizer:
    """Build an optimizer over the trained parameters.

    Args:
        settings: which, with which numbers.
        parameters: on the device they stay on.
        is_up: tells the B matrices of LoRA; asked only with lora_plus_ratio.

    Raises:
        ConfigError: as `require_optimizer`.
    """
    require_optimizer(settings.name)
    trained = list(parameters)
    groups: list[Group] = [{"params": trained, "lr": settings.learning_rate}]
    if settings.lora_plus_ratio is not None:
        ups = {id(parameter) for parameter in trained if is_up(parameter)}
        rate = settings.learning_rate * settings.lora_plus_ratio
        groups = [
            {"params": [one for one in trained if id(one) not in ups], "lr": settings.learning_rate},
            {"params": [one for one in trained if id(one) in ups], "lr": rate},
        ]
    # Decay would pull the magnitudes of DoRA, which are vectors, away from the lengths that they stand for.
    vectors = [group | {"weight_decay": 0.0} for group in _with_dimensions(groups, lambda ndim: ndim < 2)]
    matrices = _with_dimensions(groups, lambda ndim: ndim >= 2)
    return _BUILDERS[settings.name](settings, [*matrices, *vectors])


def rate_of_step(optimizer: Optimizer) -> float:
    """The learning rate that the next step is made with: of the first group, before any that is faster.

    Prodigy multiplies it by the rate that it has found so far, which it keeps as `d`.
    """
    group = optimizer.param_groups[0]
    return float(group["lr"] * group.get("d", 1.0))


def _adamw(settings: OptimizerSettings, groups: Sequence[Group]) -> Optimizer:
    """In one fused kernel on CUDA."""
    fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return AdamW(groups, **settings.adam, fused=fused)


def _adamw_8bit(settings: OptimizerSettings, groups: Sequence[Group]) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    optimizer: Optimizer = AdamW8bit(groups, **settings.adam)
    return optimizer


def _adafactor(settings: OptimizerSettings, groups: Sequence[Group]) -> Optimizer:
    """Take the learning rate as it is given, which is the step's size.

    torch's Adafactor multiplies it by max(eps2, RMS of the weights). A LoRA's B begins at 0, so that its own
    eps2 of 1e-3 would leave a thousandth of the rate.
    """
    return Adafactor(groups, lr=settings.learning_rate, eps=(None, 1.0), weight_decay=settings.weight_decay)


def _prodigy(settings: OptimizerSettings, groups: Sequence[Group]) -> Optimizer:
    """With what its authors recommend for diffusion models: bias correction and a safeguarded warmup."""
    from prodigyopt import Prodigy

    # It prints that it decouples weight decay.
    with redirect_stdout(StringIO()):
        optimizer: Optimizer = Prodigy(
            groups, **settings.adam, use_bias_correction=True, safeguard_warmup=True
        )
    return optimizer


def _adamw_schedulefree(settings: OptimizerSettings, groups: Sequence[Group]) -> Optimizer:
    """Its own warmup stays off: it weighs its average by the rate that a schedule sets, which is the same."""
    from schedulefree import AdamWScheduleFree

    optimizer: Optimizer = AdamWScheduleFree(groups, **settings.adam)
    return optimizer


def _muon(settings: OptimizerSettings, groups: Sequence[Group]) -> Optimizer:
    matrices = _with_dimensions(groups, lambda ndim: ndim == 2)
    others = _with_dimensions(groups, lambda ndim: ndim != 2)
    if not matrices:
        return _adamw(settings, others)
    # Scaled to the size of AdamW's steps (Liu et al. 2025, arXiv 2502.16982, section 2.2), so that
    # learning_rate means the same.
    muon = torch.optim.Muon(
        matrices,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return OptimizerPair(muon, _adamw(settings, others)) if others else muon


def _with_dimensions(groups: Sequence[Group], wanted: Callable[[int], bool]) -> list[Group]:
    """The groups with only the parameters of a wanted number of dimensions; empty ones are left out."""
    kept = [group | {"params": [one for one in group["params"] if wanted(one.ndim)]} for group in groups]
    return [group for group in kept if group["params"]]


class OptimizerPair(Optimizer):
    """Two optimizers over different parameters that look like one, with one state and one list of groups."""

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self._parts = (first, second)
        self._split = len(first.param_groups)
        super().__init__([*first.param_groups, *second.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step both."""
        del closure
        shares = (self.param_groups[: self._split], self.param_groups[self._split :])
        for part, groups in zip(self._parts, shares, strict=True):
            # Anew each time: loading a state replaces the dictionaries.
            part.state, part.param_groups = self.state, groups
            part.step()


_BUILDERS: dict[OptimizerName, Callable[[OptimizerSettings, Sequence[Group]], Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
    "adamw_schedulefree": _adamw_schedulefree,
    "muon": _muon,
}
