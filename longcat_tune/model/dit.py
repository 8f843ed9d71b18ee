"""LongCat-Video's diffusion transformer: one model for text-to-video, image-to-video and continuation.

Parameter names are the released checkpoint's. Source: meituan-longcat/LongCat-Video,
longcat_video/modules/longcat_video_dit.py.
Letters: B batch, C latent channels, T/H/W latent frames, rows, columns, L text tokens, D text width, N video
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from longcat_tune.model.attention import AttentionFunction, PlanAttention, sdpa_attention
from longcat_tune.model.attention_layers import KeyValue
from longcat_tune.model.blocks import (
    Block,
    BlockContext,
    CaptionEmbedder,
    FinalLayer,
    PatchEmbed,
    TimestepEmbedder,
    fold_pads,
    unpatchify,
)
from longcat_tune.model.elementwise import LEAN, Elementwise
from longcat_tune.model.rope import rotary_table
from longcat_tune.model.token_order import TokenGrid

KVCache = Mapping[int, KeyValue]
"""Keys and values of condition frames, by block number."""


class LongCatVideoTransformer(nn.Module):
    """The 13.6B transformer; the defaults are the released model's.

    Args:
        in_channels: latent channels.
        out_channels: channels of the prediction.
        hidden_size: a multiple of 8 * num_heads.
        depth: number of blocks.
        num_heads: attention heads.
        caption_channels: width of the text features.
        mlp_ratio: feed-forward width over hidden_size, before the two-thirds rule.
        adaln_tembed_dim: width of the timestep embedding.
        frequency_embedding_size: sinusoids of the timestep.
        patch_size: latents per token along frames, rows and columns.
        text_tokens_zero_pad: masked text tokens become zero vectors that are attended to (the released
        model), instead of
            being left out.
        attend: the dense attention kernel of every layer.

    Attributes:
        plan_attention: asked once per call what its video tokens attend with and in which order they lie;
            None, as at first: densely, frame by frame.
        ffn_chunk_tokens: tokens that pass a feed-forward at a time; None, as at first: all.
        elementwise: how norms, modulation, gates and rotations are computed.
    """

    plan_attention: PlanAttention | None
    ffn_chunk_tokens: int | None
    elementwise: Elementwise

    def __init__(  # noqa: PLR0913 - one argument per field of the checkpoint's config.json
        self,
        in_channels: int = 16,
        out_channels: int = 16,
        hidden_size: int = 4096,
        depth: int = 48,
        num_heads: int = 32,
        caption_channels: int = 4096,
        mlp_ratio: float = 4,
        adaln_tembed_dim: int = 512,
        frequency_embedding_size: int = 256,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        text_tokens_zero_pad: bool = True,
        *,
        attend: AttentionFunction = sdpa_attention,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.caption_channels = caption_channels
        self.head_dim = hidden_size // num_heads
        self.patch_size = patch_size
        self.text_tokens_zero_pad = text_tokens_zero_pad
        self.plan_attention = None
        self.ffn_chunk_tokens = None
        self.elementwise = LEAN

        self.x_embedder = PatchEmbed(in_channels, hidden_size, patch_size)
        self.t_embedder = TimestepEmbedder(adaln_tembed_dim, frequency_embedding_size)
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio, adaln_tembed_dim, attend) for _ in range(depth)
        )
        patch_values = patch_size[0] * patch_size[1] * patch_size[2] * out_channels
        self.final_layer = FinalLayer(hidden_size, patch_values, adaln_tembed_dim)

    @property
    def dtype(self) -> torch.dtype:
        """What activations between blocks are kept in."""
        return self.x_embedder.proj.weight.dtype

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
        *,
        num_cond_latents: int = 0,
        kv_cache: KVCache | None = None,
        return_kv: bool = False,
        skip_cross_attention: bool = False,
    ) -> Tensor | tuple[Tensor, dict[int, KeyValue]]:
        """Predict clean - noise for every latent frame.

        Args:
            latents: [B, C, T, H, W], normalised; condition frames first, clean. With kv_cache only the noise
            frames.
            timestep: [B] or [B, T], 1000 sigma; the caller gives condition frames timestep 0.
            text: features [B, L, D].
            mask: [B, L], 1 = token; None attends to all L as they are.
            num_cond_latents: leading condition frames, in latents or in kv_cache.
            kv_cache: what a call with return_kv gave for the condition frames; batch 1 or B.
            return_kv: also return every block's keys and values.
            skip_cross_attention: leave the text out, as when the cache is filled.

        Returns:
            Float32 [B, C, T, H, W] for all given frames; with return_kv a pair of it and the cache.

        Raises:
            ValueError: H or W is not a multiple of the patch, or kv_cache comes without num_cond_latents.
        """
        self._check(latents, kv_cache, num_cond_latents)
        batch, _, frames, height, width = latents.shape
        patches = (frames // self.patch_size[0], height // self.patch_size[1], width // self.patch_size[2])
        cached_frames = num_cond_latents if kv_cache is not None else 0
        grid = TokenGrid(cached_frames + patches[0], *patches[1:], num_cond_latents, cached_frames)

        # The official model rounds the timestep to its own dtype: 987.36 is 988 in bf16.
        time_BT = timestep.to(self.dtype)
        if time_BT.ndim == 1:
            time_BT = time_BT[:, None].expand(batch, frames)
        text_BLC, keep_BL = self._embed_text(text, mask, math.prod(patches))
        attend_video = None if self.plan_attention is None else self.plan_attention(grid, latents.device)
        order = None if attend_video is None else attend_video.order
        rotary = rotary_table((grid.frames, grid.rows, grid.columns), self.head_dim, device=latents.device)
        context = BlockContext(
            time_BTE=self.t_embedder(time_BT).float(),
            text_BLC=text_BLC,
            keep_BL=keep_BL,
            rotary=rotary if order is None else rotary.of(order.keys_M),
            num_cond_tokens=grid.num_cond_tokens,
            skip_cross_attention=skip_cross_attention,
            return_kv=return_kv,
            frame_N=None if order is None else order.frame_N,
            attend_video=attend_video,
            ffn_chunk_tokens=self.ffn_chunk_tokens,
            elementwise=self.elementwise,
        )

        x_BNC = self.x_embedder(latents.to(self.dtype))
        if order is not None:
            x_BNC = order.arrange(x_BNC)
        fresh: dict[int, KeyValue] = {}
        for number, block in enumerate(self.blocks):
            x_BNC, own = block(x_BNC, context, kv_cache[number] if kv_cache is not None else None)
            if own is not None:
                fresh[number] = own
        if order is not None:
            x_BNC = order.restore(x_BNC)
        patches_BNP = self.final_layer(x_BNC, context.time_BTE, self.elementwise)
        sample_BCTHW = unpatchify(patches_BNP, patches, self.patch_size)
        return (sample_BCTHW, fresh) if return_kv else sample_BCTHW

    def _check(self, latents: Tensor, kv_cache: KVCache | None, num_cond_latents: int) -> None:
        for name, size, patch in zip("THW", latents.shape[2:], self.patch_size, strict=True):
            if size % patch:
                msg = f"latents {name} ({size}) must be a multiple of the patch size {patch}"
                raise ValueError(msg)
        if kv_cache is not None and num_cond_latents == 0:
            msg = "num_cond_latents (0) must be the number of cached condition frames when kv_cache is given"
            raise ValueError(msg)

    def _embed_text(
        self, text_BLD: Tensor, mask_BL: Tensor | None, num_video_tokens: int
    ) -> tuple[Tensor, Tensor | None]:
        """Embedded text and the mask that attention still needs."""
        text_BLD = text_BLD.to(self.dtype)
        if mask_BL is None or not self.text_tokens_zero_pad:
            return self.y_embedder(text_BLD), None if mask_BL is None else mask_BL.bool()
        stands_for_BL = None
        if num_video_tokens < text_BLD.shape[1]:
            # Otherwise text is no cost: finding its length would wait for the device, and a mask takes
            # away its fastest kernels.
            text_BLD, mask_BL, stands_for_BL = fold_pads(text_BLD, mask_BL)
        text_BLC = self.y_embedder(text_BLD)
        return text_BLC * mask_BL[..., None].to(text_BLC.dtype), stands_for_BL
