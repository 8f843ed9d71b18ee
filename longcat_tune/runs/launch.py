"""How a run was started: alone, or by torchrun or accelerate launch in processes that train as one.

Reads what launchers put into the environment; knows neither the clips nor the model itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from longcat_tune.config.problems import shown
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import ConfigError
from longcat_tune.runs.build import pick_device
from longcat_tune.runs.steps import launched_processes

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(hours=24)
"""How long processes wait for one that caches, saves or renders."""

FSDP = "ACCELERATE_USE_FSDP"
OTHER_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "context, tensor or sequence parallelism",
}
"""What accelerate launch sets for an engine that would wrap the model; none of them trains a LoRA here."""

REMEDY = (
    "launch without it: several processes each hold the base, and one that is too large for the card is "
    "streamed (musubi_blocks_to_swap, enable_group_offload) or shared out (--use_fsdp --fsdp_version 2)"
)


def require_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a launch that this tool would not honour.

    Args:
        environment: of this process.

    Raises:
        ConfigError: it asks for an engine that is not used here, or one process was started in place of many.
    """
    for variable, engine in OTHER_ENGINES.items():
        if _is_true(environment, variable):
            raise ConfigError(f"{variable} (true) asks for {engine}, which is not used here; {REMEDY}")
    version = environment.get("FSDP_VERSION", "1")
    if _is_true(environment, FSDP) and version != "2":
        raise ConfigError(
            f"FSDP_VERSION ({version}) must be 2 with {FSDP}: version 1 cannot keep the adapter whole beside "
            "a base that is shared out; add --fsdp_version 2 to accelerate launch, or leave out --use_fsdp"
        )
    # It sets an address to meet at for the processes that it then does not start.
    alone = "RANK" not in environment and "MASTER_ADDR" in environment
    if alone and _is_true(environment, "ACCELERATE_USE_CPU"):
        raise ConfigError(
            "accelerate launch starts one process on the CPU whatever --num_processes says; use torchrun "
            "--nproc_per_node N -m longcat_tune train ..., or --num_processes 1"
        )


def build_accelerator() -> Accelerator:
    """Join the processes of this run; alone, there is nothing to join."""
    # Imported here: it costs a second, and a mistake in the data should be told before.
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    # transformers would leave weights out in all processes but the first, for accelerate to send them.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # Autocast is this tool's own: what a launcher's settings say of precision must not scale the loss.
    return Accelerator(
        cpu=pick_device().type == "cpu",
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def shards_base(accelerator: Accelerator) -> bool:
    """Whether each process is to hold a share of the frozen base: asked for, and there are several."""
    return asks_to_share() and accelerator.num_processes > 1


def asks_to_share() -> bool:
    """Whether the launch asks for a base that is shared out over its processes."""
    return _is_true(os.environ, FSDP)


def require_plain_base(config: RunConfig) -> None:
    """Refuse keys that change or move the frozen weights of which each process is to hold a share.

    Args:
        config: the run.

    Raises:
        ConfigError: names the first such key.
    """
    if not asks_to_share() or launched_processes() == 1:
        return
    for key, value, plain in (
        ("base_model_precision", config.model.base_model_precision, ("bf16", "fp32")),
        ("musubi_blocks_to_swap", config.memory.musubi_blocks_to_swap, (0,)),
        ("enable_group_offload", config.memory.enable_group_offload, (False,)),
    ):
        if value not in plain:
            raise ConfigError(
                f"{key} ({shown(value)}) cannot be used on a base that is shared out over processes "
                f"({FSDP}), whose weights are as released and stay on the device; set it to "
                f"{shown(plain[0])}, or launch without --use_fsdp"
            )


def require_shardable(*, renders: bool, dora: bool, keeps_base: bool) -> None:
    """Refuse what cannot be done with a base of which each process holds a share.

    Args:
        renders: whether the run renders: only one process does, and it would wait for the others' shares.
        dora: whether the adapter has magnitudes, which are taken from whole weights.
        keeps_base: whether there is regularisation data, whose steps have one forward pass more, for which
            a process with other data would not hand on its share.

    Raises:
        ConfigError: names what to change.
    """
    if renders:
        raise ConfigError(
            f"{FSDP} (true): a run whose base is shared out over its processes cannot render; set "
            "validation_step_interval to 0, validation_epoch_interval to null and validation_on_startup to "
            "false, and render its checkpoints with longcat-tune validate"
        )
    if dora:
        raise ConfigError(
            f"use_dora (true) cannot be trained on a base that is shared out over processes ({FSDP}); set it "
            "to false, or launch without --use_fsdp"
        )
    if keeps_base:
        raise ConfigError(
            "is_regularisation_data (true) cannot be trained on a base that is shared out over processes "
            f"({FSDP}); leave those datasets out, or launch without --use_fsdp"
        )


def _is_true(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in {"1", "true", "yes"}
