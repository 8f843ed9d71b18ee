"""Blocks whose frozen weights are shared out over processes: each keeps a part and gathers a block to use it.

Torch's FSDP2 (`torch.distributed.fsdp.fully_shard`). Sees a list of blocks within a model, never LongCat;
what is added to the blocks later, such as adapters, stays whole in every process.
"""

from __future__ import annotations

import logging

import torch
import torch.distributed
from torch import nn

from longcat_tune.errors import ConfigError
from longcat_tune.memory.frozen import FrozenLinear

logger = logging.getLogger(__name__)


def shard_blocks(model: nn.Module, blocks: nn.ModuleList, *, device: torch.device) -> None:
    """Leave this process its share of every block's weights, on its device; blocks move there one at a time.

    From then on all processes must call the blocks equally often, with or without gradients: each call
    gathers the block from all of them. Results and gradients stay the same to the bit.

    Args:
        model: that calls the blocks; its other weights stay whole, where they are.
        blocks: frozen, with plain weights.
        device: of this process.

    Raises:
        ConfigError: a block's weights are quantized or streamed.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if any(isinstance(module, FrozenLinear) for module in blocks.modules()):
        raise ConfigError(
            "sharing the base out over processes (FSDP) needs plain weights, and these are quantized or "
            "streamed; leave out the launcher's --use_fsdp, or the keys of quantization and of offloading"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks:
        # Said for each: a block that is its own root would otherwise stay gathered after its forward.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # Around all of them, so that one block is gathered while another computes.
    fully_shard(model, mesh=mesh, ignored_params=_outside(model, blocks))
    logger.info("Each of %d processes holds its share of every block's weights", mesh.size())


def _outside(model: nn.Module, blocks: nn.ModuleList) -> set[nn.Parameter]:
    return set(model.parameters()) - set(blocks.parameters())
