"""The sizes of the transformer as numbers: its linear layers, what they weigh, what they compute.

Reads the fields of a checkpoint's config.json; never a loaded model.
Letters: C hidden width, E timestep width, F feed-forward width, D text width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longcat_tune.memory.host_buffer import ALIGNMENT

BF16, FLOAT32 = 2, 4
"""Bytes of an element."""

GROUP = 128
"""Weights that share a scale and a shift in 4 bits (optimum-quanto's default)."""

FFN_MULTIPLE = 256
NOT_QUANTIZED = ("adaLN_modulation.1",)
"""Layers of a block that stay in bf16 whatever the precision."""

TEXT_LAYERS = ("cross_attn.kv_linear", "adaLN_modulation.1")
"""Layers of a block that do not work on video tokens."""


@dataclass(frozen=True, slots=True)
class LinearSize:
    """One linear layer.

    Attributes:
        inputs: width that it takes.
        outputs: width that it gives.
        bias: whether it has one.
    """

    inputs: int
    outputs: int
    bias: bool = True

    @property
    def weights(self) -> int:
        """Elements of its matrix."""
        return self.inputs * self.outputs

    def lora(self, rank: int) -> int:
        """Elements of a LoRA on it."""
        return rank * (self.inputs + self.outputs)

    def stored_bytes(self, precision: str) -> int:
        """Its matrix as it is kept, every tensor of it aligned as in a host buffer.

        Args:
            precision: bf16, fp32, or a quantized one: 8 bits with a scale per output, in bf16 or torchao's
                float32, or 4 bits with a bf16 scale and shift per group.
        """
        match precision:
            case "bf16":
                parts = [BF16 * self.weights]
            case "fp32":
                parts = [FLOAT32 * self.weights]
            case "int4-quanto":
                groups = math.ceil(self.weights / GROUP)
                parts = [math.ceil(self.weights / 2), BF16 * groups, BF16 * groups]
            case "int8-torchao" | "fp8-torchao":
                parts = [self.weights, FLOAT32 * self.outputs]
            case _:
                parts = [self.weights, BF16 * self.outputs]
        return sum(aligned(part) for part in parts)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The transformer's sizes; the defaults are the released model's.

    Attributes:
        hidden_size: C.
        depth: number of blocks.
        num_heads: attention heads.
        ffn_size: F.
        time_size: E.
        frequency_size: sinusoids of the timestep.
        caption_channels: D.
        in_channels: of the latents.
        out_channels: of the prediction.
        patch_size: latents per token along frames, rows and columns.
    """

    hidden_size: int = 4096
    depth: int = 48
    num_heads: int = 32
    ffn_size: int = 11008
    time_size: int = 512
    frequency_size: int = 256
    caption_channels: int = 4096
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> ModelShape:
        """Read it from the fields of a transformer's config.json."""
        hidden = int(fields["hidden_size"])
        inner = int(2 * int(hidden * fields["mlp_ratio"]) / 3)
        return cls(
            hidden_size=hidden,
            depth=int(fields["depth"]),
            num_heads=int(fields["num_heads"]),
            ffn_size=FFN_MULTIPLE * math.ceil(inner / FFN_MULTIPLE),
            time_size=int(fields["adaln_tembed_dim"]),
            frequency_size=int(fields["frequency_embedding_size"]),
            caption_channels=int(fields["caption_channels"]),
            in_channels=int(fields["in_channels"]),
            out_channels=int(fields["out_channels"]),
            patch_size=tuple(fields["patch_size"]),
        )

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def block_linears(self) -> dict[str, LinearSize]:
        """The linear layers of one block, by name within it."""
        c, f = self.hidden_size, self.ffn_size
        return {
            "adaLN_modulation.1": LinearSize(self.time_size, 6 * c),
            "attn.qkv": LinearSize(c, 3 * c),
            "attn.proj": LinearSize(c, c),
            "cross_attn.q_linear": LinearSize(c, c),
            "cross_attn.kv_linear": LinearSize(c, 2 * c),
            "cross_attn.proj": LinearSize(c, c),
            "ffn.w1": LinearSize(c, f, bias=False),
            "ffn.w2": LinearSize(f, c, bias=False),
            "ffn.w3": LinearSize(c, f, bias=False),
        }

    @property
    def other_linears(self) -> dict[str, LinearSize]:
        """The linear layers beside the blocks, by name."""
        c, patch = self.hidden_size, math.prod(self.patch_size)
        return {
            "t_embedder.mlp.0": LinearSize(self.frequency_size, self.time_size),
            "t_embedder.mlp.2": LinearSize(self.time_size, self.time_size),
            "y_embedder.y_proj.0": LinearSize(self.caption_channels, c),
            "y_embedder.y_proj.2": LinearSize(c, c),
            "final_layer.adaLN_modulation.1": LinearSize(self.time_size, 2 * c),
            "final_layer.linear": LinearSize(c, patch * self.out_channels),
        }

    def linear(self, name: str) -> LinearSize:
        """A linear layer by its whole name, `blocks.3.attn.qkv` or `final_layer.linear`."""
        if name.startswith("blocks."):
            return self.block_linears[name.split(".", 2)[2]]
        return self.other_linears[name]

    @property
    def block_small_parameters(self) -> int:
        """Elements of a block's biases and norms, which are never streamed nor quantized."""
        biases = sum(one.outputs for one in self.block_linears.values() if one.bias)
        return biases + 2 * self.hidden_size + 4 * self.head_dim

    @property
    def other_parameters(self) -> int:
        """Elements of everything beside the blocks."""
        linears = sum(one.weights + one.outputs for one in self.other_linears.values())
        patch = math.prod(self.patch_size) * self.in_channels * self.hidden_size + self.hidden_size
        return linears + patch

    @property
    def parameters(self) -> int:
        """Elements of the whole model."""
        block = sum(one.weights for one in self.block_linears.values()) + self.block_small_parameters
        return self.depth * block + self.other_parameters

    def block_bytes(self, precision: str) -> int:
        """The matrices of one block as they are kept, in one host buffer or in a slot of the ring."""
        return sum(self._layer_bytes(precision))

    def largest_layer_bytes(self, precision: str) -> int:
        """The largest matrix of a block as it is kept."""
        return max(self._layer_bytes(precision))

    def _layer_bytes(self, precision: str) -> list[int]:
        return [
            linear.stored_bytes(kept_precision(name, precision))
            for name, linear in self.block_linears.items()
        ]

    def small_bytes(self, precision: str) -> int:
        """What stays on the device of every block whatever is streamed, and all beside the blocks."""
        element = FLOAT32 if precision == "fp32" else BF16
        return element * (self.depth * self.block_small_parameters + self.other_parameters)

    def tokens(self, latents: Sequence[int]) -> int:
        """Video tokens of a clip of so many latent frames, rows and columns."""
        return math.prod(size // patch for size, patch in zip(latents, self.patch_size, strict=True))


def kept_precision(name: str, precision: str) -> str:
    """What a block's layer is kept in."""
    quantized = precision not in {"bf16", "fp32"}
    return "bf16" if quantized and name in NOT_QUANTIZED else precision


def aligned(num_bytes: int) -> int:
    """Bytes that a tensor takes in a host buffer."""
    return math.ceil(num_bytes / ALIGNMENT) * ALIGNMENT
