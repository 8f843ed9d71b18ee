"""What cannot be shared out over processes is refused; that it trains alike is shown with two processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from longcat_tune.errors import ConfigError
from longcat_tune.memory.frozen import freeze_linears
from longcat_tune.memory.sharding import shard_blocks


def test_blocks_that_are_quantized_or_streamed_are_refused() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(4, 4))])})
    blocks = model["blocks"]
    assert isinstance(blocks, nn.ModuleList)
    freeze_linears(blocks[0])
    with pytest.raises(ConfigError, match="needs plain weights, and these are quantized or streamed"):
        shard_blocks(model, blocks, device=torch.device("cpu"))
