"""The adapter that a run trains: decided and checked before anything is encoded, built on the loaded base."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Generator, Tensor, nn

from longcat_tune.checkpoint.lora_file import LoraWeights, read_lora
from longcat_tune.checkpoint.lora_writer import require_representable
from longcat_tune.config.lora import LoraSection
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.model.lora_targets import lora_alphas_of, lora_ranks, lora_target_modules

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What `build_adapter` adds.

    Attributes:
        ranks: per layer, in the model's order.
        alphas: per layer.
        dropout: of the adapter's inputs.
        dora: whether it has magnitudes.
        start: what it starts as; None: as nothing.
    """

    ranks: dict[str, int]
    alphas: dict[str, float]
    dropout: float
    dora: bool
    start: LoraWeights | None


def plan_adapter(
    lora: LoraSection, model: nn.Module, *, config_dir: Path, starts: bool = True
) -> AdapterPlan:
    """Decide every layer's rank and scale, and read what the adapter starts as.

    Args:
        lora: the section.
        model: the base without the adapter; may be on the meta device.
        config_dir: where a relative init_lora is looked for first; then in the working folder.
        starts: whether the run begins; one that goes on from a checkpoint takes no look at init_lora.

    Raises:
        ConfigError: an expression matches no layer, or a format cannot hold this adapter.
        CheckpointError: init_lora is missing, damaged, or does not fit.
    """
    targets = lora_target_modules(model, lora.lora_target)
    ranks = lora_ranks(targets, lora.lora_rank, lora.lora_rank_pattern)
    alphas = lora_alphas_of(ranks, rank=lora.lora_rank, alpha=lora.lora_alpha, use_rslora=lora.use_rslora)
    for form in lora.lora_format:
        try:
            require_representable(form, targets, dora=lora.use_dora)
        except ConfigError as error:
            raise ConfigError(f"lora_format ({form}): {error}") from error
    start: LoraWeights | None = None
    if starts and lora.init_lora is not None:
        start = _start(lora, lora.init_lora, model, ranks, config_dir)
    return AdapterPlan(ranks, alphas, lora.lora_dropout, lora.use_dora, start)


def build_adapter(
    model: nn.Module,
    plan: AdapterPlan,
    *,
    seed: int,
    autocast: bool,
    base_weight: Callable[[nn.Linear], Tensor],
) -> None:
    """Add the adapter to the loaded base and freeze the rest.

    Args:
        model: the base that the plan was made for.
        plan: from `plan_adapter`.
        seed: its fresh matrices follow from it.
        autocast: whether the model will run under torch.autocast.
        base_weight: tells the dense weights of its layers.
    """
    # Imported here: peft takes seconds, and `check` only asks whether the adapter can be.
    from longcat_tune.model.lora import add_lora, add_magnitudes, magnitudes_in
    from longcat_tune.model.lora_start import start_lora_as

    add_lora(
        model,
        targets=list(plan.ranks),
        rank=plan.ranks,
        alpha=plan.alphas,
        generator=Generator().manual_seed(seed),
        dropout=plan.dropout,
        autocast=autocast,
    )
    if plan.start is not None:
        start_lora_as(model, plan.start.weights, plan.start.alphas)
    if plan.dora:
        start = magnitudes_in(plan.start.weights) if plan.start else {}
        add_magnitudes(model, start, base_weight=base_weight)


def _start(
    lora: LoraSection, given: Path, model: nn.Module, ranks: dict[str, int], config_dir: Path
) -> LoraWeights:
    """Read init_lora, and say its name before whatever is wrong with it."""
    from longcat_tune.model.lora_start import require_start

    path = next((path for path in (config_dir / given, given) if path.exists()), given)
    try:
        start = read_lora(path)
        require_start(model, start.weights, ranks)
    except CheckpointError as error:
        raise CheckpointError(f"init_lora ({given}): {error}") from error
    if start.has_dora and not lora.use_dora:
        msg = f"init_lora ({given}) is a DoRA, which a plain adapter cannot start as; set use_dora to true"
        raise CheckpointError(msg)
    logger.info("init_lora: %s holds %d layers of format %s", path, len(start.alphas), start.layout)
    return start
