"""Self- and cross-attention of a LongCat-Video block; which kernel computes them is `attention`'s.

Letters: B batch, A heads, N video tokens, M key tokens, L text tokens, C hidden width, d head width. Heads
come before tokens everywhere: [B, A, N, d].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longcat_tune.model.attention import AttentionFunction, VideoAttention
from longcat_tune.model.elementwise import LEAN, Elementwise, rms_norm_formula
from longcat_tune.model.rope import RotaryTable, rotate

KeyValue = tuple[Tensor, Tensor]
"""Keys (normalised, before the rotation) and values of one block, [B, A, M, d] each."""


class RMSNorm(nn.Module):
    """Root-mean-square norm over the head width: float32 inside, cast back, then the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; any leading shape."""
        return rms_norm_formula(x, self.weight)


class SelfAttention(nn.Module):
    """Attention among video tokens, in which condition tokens see only condition tokens."""

    def __init__(self, hidden_size: int, num_heads: int, attend: AttentionFunction) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend = attend
        head_dim = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = RMSNorm(head_dim)
        self.k_norm = RMSNorm(head_dim)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        x_BNC: Tensor,
        rotary: RotaryTable,
        *,
        num_cond_tokens: int = 0,
        cached: KeyValue | None = None,
        attend_video: VideoAttention | None = None,
        return_kv: bool = False,
        elementwise: Elementwise = LEAN,
    ) -> tuple[Tensor, KeyValue | None]:
        """Attend, and give this call's own keys and values for a cache if asked for.

        Args:
            x_BNC: modulated tokens.
            rotary: positions of all keys, cached ones first.
            num_cond_tokens: leading tokens that attend only to each other.
            cached: keys and values of condition tokens that are not in x; batch 1 or B.
            attend_video: what this model call attends with; None: the dense kernel.
            return_kv: whether the second result is wanted.
            elementwise: how norm and rotation are computed.

        Returns:
            The projected output [B, N, C], and the keys and values of x.
        """
        batch, num_tokens, _ = x_BNC.shape
        q, k, v = self.qkv(x_BNC).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # A copy of the values: the view would keep q and k alive as long as the cache.
        own = (self.k_norm(k), v.clone()) if return_kv else None
        places = rotary.last(num_tokens)
        q = elementwise.norm_rotate(q, self.q_norm.weight, places)
        k = elementwise.norm_rotate(k, self.k_norm.weight, places)
        if cached is not None:
            before = rotate(cached[0], rotary.first(len(rotary.cos_Nd) - num_tokens))
            k = torch.cat([before.expand(batch, -1, -1, -1), k], dim=2)
            v = torch.cat([cached[1].expand(batch, -1, -1, -1), v], dim=2)
        if attend_video is not None:
            out_BANd = attend_video(q, k, v)
        elif num_cond_tokens:
            cond, noise = slice(None, num_cond_tokens), slice(num_cond_tokens, None)
            out_BANd = torch.cat(
                [
                    self.attend(q[:, :, cond], k[:, :, cond], v[:, :, cond], None),
                    self.attend(q[:, :, noise], k, v, None),
                ],
                dim=2,
            )
        else:
            out_BANd = self.attend(q, k, v, None)
        return self.proj(out_BANd.transpose(1, 2).flatten(2)), own


class CrossAttention(nn.Module):
    """Attention from video tokens to text; condition tokens get exactly zero."""

    def __init__(self, hidden_size: int, num_heads: int, attend: AttentionFunction) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend = attend
        head_dim = hidden_size // num_heads
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.q_norm = RMSNorm(head_dim)
        self.k_norm = RMSNorm(head_dim)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        x_BNC: Tensor,
        text_BLC: Tensor,
        keep_BL: Tensor | None,
        *,
        num_cond_tokens: int = 0,
        elementwise: Elementwise = LEAN,
    ) -> Tensor:
        """Attend to each sample's own text.

        Args:
            x_BNC: normalised tokens.
            text_BLC: embedded text.
            keep_BL: boolean, True = attended, or float32, added to the logits; None attends to all L.
            num_cond_tokens: leading tokens whose output is zero.
            elementwise: how norms are computed.

        Returns:
            The projected output [B, N, C].
        """
        q = self.q_linear(x_BNC[:, num_cond_tokens:]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv_linear(text_BLC).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q = elementwise.rms_norm(q, self.q_norm.weight)
        k = elementwise.rms_norm(k, self.k_norm.weight)
        out_BANd = self._attend_text(q, k, v, None if keep_BL is None else keep_BL[:, None, None, :])
        out_BNC: Tensor = self.proj(out_BANd.transpose(1, 2).flatten(2))
        # Padding with nothing would still copy.
        return F.pad(out_BNC, (0, 0, num_cond_tokens, 0)) if num_cond_tokens else out_BNC

    def _attend_text(self, q_BANd: Tensor, k_BALd: Tensor, v_BALd: Tensor, keep: Tensor | None) -> Tensor:
        if keep is None or keep.dtype == torch.bool:
            return self.attend(q_BANd, k_BALd, v_BALd, keep)
        # A kernel takes logits to add in its own dtype; bfloat16 would round them to 1/64.
        wide = torch.promote_types(q_BANd.dtype, keep.dtype)
        with torch.autocast(q_BANd.device.type, enabled=False):
            q, k, v = (part.to(wide) for part in (q_BANd, k_BALd, v_BALd))
            return self.attend(q, k, v, keep.to(wide)).to(q_BANd.dtype)
