"""LoRA layers on the transformer: the one door to PEFT.

Knows module names and tensors; files and their formats are `checkpoint`'s. Weights cross as a plain
dictionary in PEFT's naming without prefix or adapter name (`blocks.0.attn.qkv.lora_A.weight`, with DoRA also
`blocks.0.attn.qkv.lora_magnitude_vector`), scales as alpha per module: the layer adds
multiplier * alpha / rank * B(A(x)). A rank-stabilised scale is only another alpha.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Generator, Tensor, nn

from longcat_tune.errors import CheckpointError
from longcat_tune.model.dora import BaseWeight, DoraForward, Magnitude, current_norms, own_weight
from longcat_tune.model.lora_targets import linear_layers, nearest_names

MAGNITUDE = ".lora_magnitude_vector"
NO_TENSORS: Mapping[str, Tensor] = MappingProxyType({})


def add_lora(
    model: nn.Module,
    *,
    targets: Sequence[str],
    rank: int | Mapping[str, int],
    alpha: float | Mapping[str, float],
    generator: Generator,
    dropout: float = 0.0,
    adapter: str = "default",
    autocast: bool = False,
) -> None:
    """Add a trainable LoRA that changes nothing yet, and freeze all other weights.

    A is uniform in +-1/sqrt(inputs), PEFT's own default; B is zero. Both are float32 whatever the model's
    dtype.

    Args:
        model: its modules are replaced in place; its class stays.
        targets: exact module names, as from `lora_target_modules`.
        rank: inner width; of each target, or one for all.
        alpha: the update is scaled by alpha / rank; of each target, or one for all.
        generator: on the CPU; draws A.
        dropout: probability of dropping an input of A in training.
        adapter: names it among several.
        autocast: True when the model will run under torch.autocast, which then casts A's input itself.
            Without that a bf16 model would keep a float32 copy of every layer's input for backward.
    """
    ranks = rank if isinstance(rank, Mapping) else dict.fromkeys(targets, rank)
    alphas = alpha if isinstance(alpha, Mapping) else dict.fromkeys(targets, float(alpha))
    _inject(model, {name: ranks[name] for name in targets}, alphas, adapter, dropout)
    for layer in _layers(model, adapter).values():
        weight = layer.lora_A[adapter].weight
        bound = layer.in_features**-0.5
        weight.data.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
        layer.lora_B[adapter].weight.data.zero_()
    _finish(model, adapter, trainable=True, autocast=autocast)


def add_magnitudes(
    model: nn.Module,
    start: Mapping[str, Tensor] = NO_TENSORS,
    *,
    adapter: str = "default",
    base_weight: BaseWeight = own_weight,
) -> None:
    """Make a LoRA a DoRA whose function is what it was; the new magnitudes train if its matrices do.

    Args:
        model: has the LoRA.
        start: magnitudes [out] trained before, by module; they are taken as they are.
        adapter: the LoRA's name.
        base_weight: tells the weights of base layers that are not held as they are.
    """
    forward = DoraForward(base_weight)
    for name, layer in _layers(model, adapter).items():
        lengths = start.get(name)
        own = current_norms(layer, adapter, base_weight)
        magnitude = Magnitude(own if lengths is None else lengths.to(own))
        magnitude.requires_grad_(layer.lora_B[adapter].weight.requires_grad)
        layer.lora_magnitude_vector[adapter] = magnitude
        layer.lora_variant[adapter] = forward


def load_lora(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    alphas: Mapping[str, float],
    *,
    adapter: str = "default",
    trainable: bool = False,
    autocast: bool = False,
    base_weight: BaseWeight = own_weight,
) -> None:
    """Add a LoRA that was trained before, with the ranks it has; it works together with those already there.

    Args:
        model: as in `add_lora`.
        weights: a down and an up matrix per module; with magnitudes on all of them it is a DoRA.
        alphas: per module.
        adapter: names it among several.
        trainable: False for renders.
        autocast: as in `add_lora`.
        base_weight: as in `add_magnitudes`.

    Raises:
        CheckpointError: a module is not a linear layer of this model, or of another size.
    """
    modules = check_modules(model, weights)
    ranks = {name: weights[f"{name}.lora_A.weight"].shape[0] for name in modules}
    _inject(model, ranks, alphas, adapter, dropout=0.0)
    if magnitudes := magnitudes_in(weights):
        add_magnitudes(model, magnitudes, adapter=adapter, base_weight=base_weight)
    load_lora_state(model, weights, adapter=adapter)
    _finish(model, adapter, trainable=trainable, autocast=autocast)


def lora_state(model: nn.Module, *, adapter: str = "default") -> dict[str, Tensor]:
    """Copy a LoRA's weights to the CPU, in the order of the modules."""
    return {
        key: weight.detach().to("cpu", copy=True) for key, weight in _named_weights(model, adapter).items()
    }


def lora_alphas(model: nn.Module, *, adapter: str = "default") -> dict[str, float]:
    """Give a LoRA's alpha per module; a multiplier from `set_lora_scale` is not in it."""
    return {name: layer.lora_alpha[adapter] for name, layer in _layers(model, adapter).items()}


def load_lora_state(model: nn.Module, state: Mapping[str, Tensor], *, adapter: str = "default") -> None:
    """Overwrite the weights of a LoRA that the model has.

    Raises:
        CheckpointError: a weight is missing, unknown or of another shape; nothing is changed then.
    """
    own = _named_weights(model, adapter)
    if different := sorted(own.keys() ^ state.keys()):
        rule = "is missing from the file" if different[0] in own else "is not part of this run's LoRA"
        msg = (
            f"LoRA weight {different[0]} {rule} ({len(different)} such in all); the file must have been made "
            "with the same lora_target and use_dora"
        )
        raise CheckpointError(msg)
    for key, weight in own.items():
        if state[key].shape != weight.shape:
            msg = (
                f"LoRA weight {key} has shape {tuple(state[key].shape)}, but this run's is "
                f"{tuple(weight.shape)}; use the same lora_rank and the same model"
            )
            raise CheckpointError(msg)
    with torch.no_grad():
        for key, weight in own.items():
            weight.copy_(state[key])


def set_lora_scale(model: nn.Module, multiplier: float, *, adapter: str = "default") -> None:
    """Make a LoRA weaker or stronger than trained: 1 is as trained, 0 is off."""
    for layer in _layers(model, adapter).values():
        layer.set_scale(adapter, multiplier)


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Let the model work without any LoRA while the block runs."""
    layers = list(_layers(model).values())
    # PEFT freezes the weights it disables and unfreezes all that it enables.
    trained = {weight for weight in _lora_parameters(layers) if weight.requires_grad}
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        _train_only(layers, trained)


def rest_lora(model: nn.Module, *, adapter: str, dtype: torch.dtype) -> None:
    """Take a LoRA out of the function of the model, and its weights to the host, until it is lent.

    Args:
        model: has the LoRA, which is not trained.
        adapter: its name.
        dtype: what its weights are kept in.
    """
    _activate(model, _active(model) - {adapter})
    _move(model, adapter, torch.device("cpu"), dtype)


@contextmanager
def lora_lent(model: nn.Module, *, adapter: str, device: torch.device) -> Iterator[None]:
    """Let the model work with a resting LoRA, too, while the block runs; what trains stays what it was.

    Args:
        model: has the LoRA, after `rest_lora`.
        adapter: its name.
        device: where the model computes.
    """
    dtype = next(iter(_named_weights(model, adapter).values())).dtype
    try:
        _move(model, adapter, device, dtype)
        _activate(model, _active(model) | {adapter})
        yield
    finally:
        rest_lora(model, adapter=adapter, dtype=dtype)


def magnitudes_in(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The magnitudes [out] among a LoRA's weights, by module."""
    return {key.removesuffix(MAGNITUDE): value for key, value in weights.items() if key.endswith(MAGNITUDE)}


def check_modules(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Name the modules that a LoRA adapts, all of which are linear layers of the model, of the right size.

    Args:
        model: may be on the meta device.
        weights: of the LoRA.

    Raises:
        CheckpointError: one is not, or only some have a magnitude.
    """
    linear = linear_layers(model)
    modules = list(dict.fromkeys(key.rsplit(".lora_", 1)[0] for key in weights))
    for name in modules:
        if name not in linear:
            msg = (
                f"the LoRA adapts {name}, which is no linear layer of this model (nearest: "
                f"{nearest_names(name, list(linear))}); it was made for another model"
            )
            raise CheckpointError(msg)
        down, up = weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]
        wanted = (linear[name].in_features, linear[name].out_features)
        if (down.shape[1], up.shape[0]) != wanted:
            msg = (
                f"the LoRA's {name} takes {down.shape[1]} and gives {up.shape[0]} values, but this model's "
                f"takes {wanted[0]} and gives {wanted[1]}; it was made for another model"
            )
            raise CheckpointError(msg)
    magnitudes = magnitudes_in(weights)
    if magnitudes and len(magnitudes) != len(modules):
        name = next(name for name in modules if name not in magnitudes)
        msg = f"the LoRA has magnitudes, but none for {name}; write or fetch the file again"
        raise CheckpointError(msg)
    return modules


def _inject(
    model: nn.Module,
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    adapter: str,
    dropout: float,
) -> None:
    """Wrap the modules and give them float32 weights, not yet filled, where the model computes."""
    # Where its first weight is, an embedder's; those of the layers may be elsewhere until they are used.
    device = next(model.parameters()).device
    first = next(iter(ranks))
    config = LoraConfig(
        r=ranks[first],
        lora_alpha=alphas[first],
        lora_dropout=dropout,
        target_modules=list(ranks),
        rank_pattern=_patterns(ranks),
        alpha_pattern=_patterns({name: alphas[name] for name in ranks}),
    )
    with warnings.catch_warnings():
        # Several LoRAs on one model are meant.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        # On the meta device first: PEFT would draw from the global generator and round to the model's dtype.
        inject_adapter_in_model(config, model, adapter_name=adapter, low_cpu_mem_usage=True)
    for layer in _layers(model, adapter).values():
        for linear in (layer.lora_A[adapter], layer.lora_B[adapter]):
            linear.weight = nn.Parameter(torch.empty(linear.weight.shape, dtype=torch.float32, device=device))


def _patterns(values: Mapping[str, float]) -> dict[str, float]:
    """Give PEFT one regex per distinct value: it compares every module with every regex it is given."""
    return {
        "|".join(re.escape(name) for name, own in values.items() if own == value): value
        for value in set(values.values())
    }


def _finish(model: nn.Module, adapter: str, *, trainable: bool, autocast: bool) -> None:
    """Activate the new LoRA beside the others; train it if asked, keep the others as they were."""
    layers = list(_layers(model).values())
    new = set(_named_weights(model, adapter).values())
    trained = {weight for weight in _lora_parameters(layers) if weight.requires_grad} - new
    model.requires_grad_(requires_grad=False)
    for layer in layers:
        layer.set_adapter(list(layer.lora_A))
        layer.cast_input_dtype_enabled = not autocast
    _train_only(layers, trained | new if trainable else trained)


def _active(model: nn.Module) -> set[str]:
    """The LoRAs that work, by name."""
    return {name for layer in _layers(model).values() for name in layer.active_adapters}


def _activate(model: nn.Module, names: Set[str]) -> None:
    """Let these LoRAs work, and the others not; each trains or does not, as before."""
    layers = list(_layers(model).values())
    trained = {weight for weight in _lora_parameters(layers) if weight.requires_grad}
    for layer in layers:
        layer.set_adapter([name for name in layer.lora_A if name in names])
    _train_only(layers, trained)


def _move(model: nn.Module, adapter: str, device: torch.device, dtype: torch.dtype) -> None:
    for weight in _named_weights(model, adapter).values():
        weight.data = weight.data.to(device, dtype)


def _train_only(layers: Sequence[Any], trained: set[nn.Parameter]) -> None:
    for weight in _lora_parameters(layers):
        weight.requires_grad_(weight in trained)


def _layers(model: nn.Module, adapter: str | None = None) -> dict[str, Any]:
    """PEFT's layers by module name: those of one LoRA, or all."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and (adapter is None or adapter in module.lora_A)
    }


def _named_weights(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    return {
        f"{name}{part}": weight
        for name, layer in _layers(model, adapter).items()
        for part, weight in _parameters_of(layer, adapter).items()
    }


def _parameters_of(layer: Any, adapter: str) -> dict[str, nn.Parameter]:
    own = {
        ".lora_A.weight": layer.lora_A[adapter].weight,
        ".lora_B.weight": layer.lora_B[adapter].weight,
    }
    if adapter in layer.lora_magnitude_vector:
        own[MAGNITUDE] = layer.lora_magnitude_vector[adapter].weight
    return own


def _lora_parameters(layers: Sequence[Any]) -> list[nn.Parameter]:
    return [
        weight
        for layer in layers
        for adapter in layer.lora_A
        for weight in _parameters_of(layer, adapter).values()
    ]
