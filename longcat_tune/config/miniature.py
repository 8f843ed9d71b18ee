"""What the miniature is trained with, whoever writes its config: `init` and the server start from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MINIATURE: Mapping[str, Any] = {
    "train_batch_size": 4,
    "gradient_checkpointing": False,
    "learning_rate": 2e-3,
    "lora_target": "attention+ffn",
    "flow_use_uniform_schedule": True,
}
"""Keys of a config, by which a LoRA of rank 8 learns something new in minutes on two CPU cores."""
