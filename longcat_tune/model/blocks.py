"""The parts of the transformer: embedders, modulation, feed-forward, block and final layer.

Precision follows the official model, whose CUDA autocast islands are written out here so that every device
computes the same: the timestep path, modulation, norms, gated sums and the last projection are float32
whatever the weights' dtype. Letters: B batch, T latent frames, N video tokens (N = T S), L text tokens,
C hidden width, E timestep embedding width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longcat_tune.model.attention import AttentionFunction, VideoAttention
from longcat_tune.model.attention_layers import CrossAttention, KeyValue, SelfAttention
from longcat_tune.model.elementwise import LEAN, NORM_EPS, Elementwise
from longcat_tune.model.rope import RotaryTable

FFN_MULTIPLE = 256


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 from weights stored in any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis; the result is float32."""
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias)


class PatchEmbed(nn.Module):
    """Latent patches to tokens."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, latents_BCTHW: Tensor) -> Tensor:
        """Give tokens [B, N, C] in order frame, row, column; sizes no patch divides are zero-padded."""
        sizes = latents_BCTHW.shape[-3:]
        missing = [-size % patch for size, patch in zip(sizes, self.patch_size, strict=True)]
        padded = F.pad(latents_BCTHW, (0, missing[2], 0, missing[1], 0, missing[0]))
        patches_BCTHW: Tensor = self.proj(padded)
        # Laid out by token here, once, or every residual after it would keep the channels apart.
        return patches_BCTHW.flatten(2).transpose(1, 2).contiguous()


class TimestepEmbedder(nn.Module):
    """Sinusoids of the timestep through a small MLP, float32 throughout."""

    def __init__(self, embed_dim: int, frequency_size: int) -> None:
        super().__init__()
        self.frequency_size = frequency_size
        self.mlp = nn.Sequential(
            Float32Linear(frequency_size, embed_dim), nn.SiLU(), Float32Linear(embed_dim, embed_dim)
        )

    def forward(self, timestep: Tensor) -> Tensor:
        """Embed timesteps of any shape, 0 to 1000, as float32 [..., E]."""
        half = self.frequency_size // 2
        steps = torch.arange(half, device=timestep.device, dtype=torch.float32)
        angles = timestep.float()[..., None] * torch.exp(-math.log(10000.0) * steps / half)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedded: Tensor = self.mlp(F.pad(sinusoids, (0, self.frequency_size % 2)))
        return embedded


class CaptionEmbedder(nn.Module):
    """Text features to the hidden width, position by position."""

    def __init__(self, caption_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.y_proj = nn.Sequential(
            nn.Linear(caption_channels, hidden_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, text_BLD: Tensor) -> Tensor:
        """Embed [B, L, D] as [B, L, C], padding included."""
        text_BLC: Tensor = self.y_proj(text_BLD)
        return text_BLC


def fold_pads(text_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Let few pads stand for all, where pads are attended to as zeros: attention's result stays the same.

    Pads' keys and values are equal, so n of them weigh as much as one whose logit is greater by log n.

    Args:
        text_BLD: features.
        mask_BL: 1 = token, 0 = pad.

    Returns:
        Text and mask as far as the longest text and one pad more, and float32 [B, L] for the logits: the log
        of how many tokens each one stands for.
    """
    length = int((mask_BL * torch.arange(1, mask_BL.shape[1] + 1, device=mask_BL.device)).max()) + 1
    is_pad_BL = mask_BL == 0
    fewer_BL = is_pad_BL[:, :length]
    stands_for_B1 = is_pad_BL.sum(dim=1, keepdim=True) / fewer_BL.sum(dim=1, keepdim=True)
    return text_BLD[:, :length], mask_BL[:, :length], stands_for_B1.log().where(fewer_BL, 0.0)


def ffn_width(hidden_size: int, mlp_ratio: float) -> int:
    """Two thirds of hidden * ratio, rounded up to a multiple of 256: 11008 for 4096 and ratio 4."""
    wanted = int(2 * int(hidden_size * mlp_ratio) / 3)
    return FFN_MULTIPLE * math.ceil(wanted / FFN_MULTIPLE)


class FeedForward(nn.Module):
    """SwiGLU: w2(SiLU(w1 x) * w3 x); no biases."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden_size, inner_size, bias=False)
        self.w2 = nn.Linear(inner_size, hidden_size, bias=False)
        self.w3 = nn.Linear(hidden_size, inner_size, bias=False)

    def forward(
        self, x_BNC: Tensor, *, chunk_tokens: int | None = None, elementwise: Elementwise = LEAN
    ) -> Tensor:
        """Transform the last axis.

        Args:
            x_BNC: tokens.
            chunk_tokens: tokens at a time, which bounds the memory of the inner width; backward computes each
                chunk once more. The result stays the same. None: all at once.
            elementwise: how the gate is computed.
        """
        if chunk_tokens is None or chunk_tokens >= x_BNC.shape[1]:
            return self._transform(x_BNC, elementwise)
        chunks = x_BNC.split(chunk_tokens, dim=1)
        if not torch.is_grad_enabled():
            return torch.cat([self._transform(chunk, elementwise) for chunk in chunks], dim=1)
        return torch.cat(
            [checkpoint(self._transform, chunk, elementwise, use_reentrant=False) for chunk in chunks], dim=1
        )

    def _transform(self, x_BNC: Tensor, elementwise: Elementwise) -> Tensor:
        out_BNC: Tensor = self.w2(elementwise.swiglu(self.w1(x_BNC), self.w3(x_BNC)))
        return out_BNC


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What all blocks of one forward pass share.

    Attributes:
        time_BTE: float32 timestep embedding per latent frame.
        text_BLC: embedded text.
        keep_BL: text mask as CrossAttention takes it; None attends to all.
        rotary: positions of all keys of the self-attention.
        num_cond_tokens: leading condition tokens in x; 0 when they are in the cache instead.
        skip_cross_attention: True while a KV cache is filled, which must not depend on the text.
        return_kv: whether blocks hand out their keys and values.
        frame_N: the latent frame of every token; None: they lie frame by frame.
        attend_video: what the self-attention of this call attends with; None: the dense kernel.
        ffn_chunk_tokens: tokens that pass the feed-forward at a time; None: all.
        elementwise: how norms, modulation, gates and rotations are computed.
    """

    time_BTE: Tensor
    text_BLC: Tensor
    keep_BL: Tensor | None
    rotary: RotaryTable
    num_cond_tokens: int
    skip_cross_attention: bool
    return_kv: bool = False
    frame_N: Tensor | None = None
    attend_video: VideoAttention | None = None
    ffn_chunk_tokens: int | None = None
    elementwise: Elementwise = LEAN


class Block(nn.Module):
    """Self-attention and feed-forward under the timestep's modulation, a plain cross-attention between."""

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float, time_dim: int, attend: AttentionFunction
    ) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Float32Linear(time_dim, 6 * hidden_size))
        self.attn = SelfAttention(hidden_size, num_heads, attend)
        self.pre_crs_attn_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.cross_attn = CrossAttention(hidden_size, num_heads, attend)
        self.ffn = FeedForward(hidden_size, ffn_width(hidden_size, mlp_ratio))

    def forward(
        self, x_BNC: Tensor, context: BlockContext, cached: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue | None]:
        """Transform the tokens; also give this block's own keys and values if the context asks for them."""
        # float(): a LoRA on the modulation computes in its own dtype.
        modulation = self.adaLN_modulation(context.time_BTE).float()
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.chunk(6, dim=-1)
        elementwise, frame_N = context.elementwise, context.frame_N

        attended, own = self.attn(
            elementwise.modulate(x_BNC, shift_a, scale_a, frame_N),
            context.rotary,
            num_cond_tokens=context.num_cond_tokens,
            cached=cached,
            attend_video=context.attend_video,
            return_kv=context.return_kv,
            elementwise=elementwise,
        )
        x_BNC = elementwise.add_gated(x_BNC, gate_a, attended, frame_N)
        del attended
        if not context.skip_cross_attention:
            norm = self.pre_crs_attn_norm
            x_BNC = x_BNC + self.cross_attn(
                elementwise.layer_norm(x_BNC, norm.weight, norm.bias),
                context.text_BLC,
                context.keep_BL,
                num_cond_tokens=context.num_cond_tokens,
                elementwise=elementwise,
            )
        update_BNC = self.ffn(
            elementwise.modulate(x_BNC, shift_f, scale_f, frame_N),
            chunk_tokens=context.ffn_chunk_tokens,
            elementwise=elementwise,
        )
        return elementwise.add_gated(x_BNC, gate_f, update_BNC, frame_N), own


class FinalLayer(nn.Module):
    """Tokens to patches of the prediction; float32 out."""

    def __init__(self, hidden_size: int, patch_values: int, time_dim: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Float32Linear(time_dim, 2 * hidden_size))
        self.linear = Float32Linear(hidden_size, patch_values)

    def forward(self, x_BNC: Tensor, time_BTE: Tensor, elementwise: Elementwise = LEAN) -> Tensor:
        """Project [B, N, C] to float32 [B, N, patch values]."""
        shift, scale = self.adaLN_modulation(time_BTE).float().chunk(2, dim=-1)
        patches_BNP: Tensor = self.linear(elementwise.modulate(x_BNC, shift, scale))
        return patches_BNP.float()


def unpatchify(patches_BNP: Tensor, grid: tuple[int, int, int], patch_size: tuple[int, int, int]) -> Tensor:
    """Lay patches out as [B, channels, T, H, W]; a patch is ordered frame, row, column, channel."""
    split: Tensor = patches_BNP.unflatten(1, grid).unflatten(-1, (*patch_size, -1))
    return split.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
