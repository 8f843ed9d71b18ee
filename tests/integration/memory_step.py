"""A training step of a checkpoint in a process of its own; prints its peak and what the plan said.

    python memory_step.py CHECKPOINT KEYS SIZE

KEYS are a config's, SIZE is a bucket's; both are JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

import longcat_tune.model.lora  # noqa: F401
from longcat_tune.config.load import load_run_config
from longcat_tune.memory.budget import Capacity
from longcat_tune.memory.budget_parts import RELEASED_TEXT_ENCODER, VaeSize
from longcat_tune.memory.budget_shape import ModelShape
from longcat_tune.model.weights import read_transformer_config
from longcat_tune.runs.build import build_optimizer, compute_context, require_transformer
from longcat_tune.runs.machine import this_machine
from longcat_tune.runs.memory_plan import plan_memory
from longcat_tune.runs.memory_sizes import RunSizes, adapter_size
from longcat_tune.runs.parts import model_with_adapter
from longcat_tune.training.process_memory import host_peak_bytes
from longcat_tune.training.step import training_step
from longcat_tune.types import TEXT_TOKENS, Batch, Bucket


def main(folder: Path, keys: dict[str, str], size: Bucket) -> None:
    config = load_run_config(None, keys)
    adapter = require_transformer(config.lora, folder, config_dir=folder)
    machine = replace(this_machine(), capacity=Capacity(None, 1 << 40))
    shape = ModelShape.of(read_transformer_config(folder))
    trained = adapter_size(shape, adapter, config.training)
    vae = VaeSize(0, base_width=96, element_bytes=2)
    sizes = RunSizes(shape, trained, 1, 1, (size,), (), (), (), vae, RELEASED_TEXT_ENCODER, released=False)
    plan = plan_memory(config, sizes, machine)

    model = model_with_adapter(plan.config, folder, adapter, device=torch.device("cpu"))
    optimizer = build_optimizer(config.training, [one for one in model.parameters() if one.requires_grad])
    latents = torch.randn(1, 16, *size.latent_shape)
    text = torch.randn(1, TEXT_TOKENS, shape.caption_channels, dtype=torch.bfloat16)
    batch = Batch(latents, text, torch.ones(1, TEXT_TOKENS).long(), 0, ("clip",))
    model.train()
    with compute_context(config.model, torch.device("cpu"))():
        step = training_step(
            model, batch, sigma_B=torch.tensor([0.5]), noise_BCTHW=torch.randn(latents.shape)
        )
    step.loss_B.mean().backward()
    optimizer.step()
    predicted = plan.parts[0].budget.on_one_memory().peak("host")
    found = {"predicted": predicted, "measured": host_peak_bytes(), "imports": machine.imports_bytes}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), Bucket(**json.loads(sys.argv[3])))
