"""Blocks whose frozen weights are shared out over processes: each keeps a part and gathers a block to use it.

Torch's FSDP2 (`torch.distributed.fsdp.fully_shard`). Sees blocks and the model that calls them, never
LongCat; what is added to the blocks later, such as adapters, stays whole in every process.
"""

from __future__ import annotations

import logging

import torch
import torch.distributed
from torch import nn

logger = logging.getLogger(__name__)


class BlockSharding:
    """Shares blocks out over all processes of a run.

    From then on all of them must call the blocks equally often, with or without gradients: each call gathers
    the block from all. Results and gradients stay the same to the bit.

    Args:
        device: of this process.
    """

    def __init__(self, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self._mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))

    def add(self, block: nn.Module) -> None:
        """Leave this process its share of a block's weights, on its device.

        Args:
            block: with plain frozen weights, on the device or on the host.
        """
        from torch.distributed.fsdp import fully_shard

        block.requires_grad_(requires_grad=False)
        # Said for each: a block that is its own root would otherwise stay gathered after its forward.
        fully_shard(block, mesh=self._mesh, reshard_after_forward=True)

    def enclose(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        """Let one block be gathered while another computes.

        Args:
            model: that calls the blocks; its other weights stay whole, where they are.
            blocks: all of them, added before.
        """
        from torch.distributed.fsdp import fully_shard

        outside = set(model.parameters()) - set(blocks.parameters())
        fully_shard(model, mesh=self._mesh, ignored_params=outside)
        logger.info("Each of %d processes holds its share of every block's weights", self._mesh.size())
