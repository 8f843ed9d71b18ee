"""What bench_attention.py times: inputs with uneven lists, and the kinds of attention over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from longcat_tune.model.block_sparse.function import attend_by_kernel
from longcat_tune.model.block_sparse.lists import BlockLists
from longcat_tune.model.block_sparse.partition import SPAN_BASE, Grid, Partition, partition
from longcat_tune.model.block_sparse.selection import SelectionRule, select_lists

CHUNK: Grid = (4, 4, 4)

Forward = Callable[["Inputs"], tuple[Tensor, Sequence[Tensor]]]
"""Gives the output, and the tensors whose gradients a backward pass is to give."""


@dataclass(frozen=True)
class Inputs:
    """Queries, keys, values and the output's gradient in block order, and the lists of the queries."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    cut: Partition
    lists: BlockLists

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """What attention takes."""
        return self.q, self.k, self.v


@dataclass
class Row:
    """One line of the table."""

    name: str
    forward: Forward
    dense: bool = False
    error: str | None = None


def make_inputs(
    grid: Grid,
    sparsity: float,
    *,
    heads: tuple[int, int],
    device: torch.device,
    seed: int,
    scale: float = 1,
) -> Inputs:
    """Random tokens around random means of their blocks, some far out: columns as uneven as in a model."""
    num_heads, head_dim = heads
    cut = partition((grid,), CHUNK, device)
    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def tokens(*, uneven: bool = False) -> Tensor:
        means = draw(num_heads, cut.num_blocks, head_dim)
        if uneven:
            means *= (0.5 * draw(num_heads, cut.num_blocks, 1)).exp()
        values = draw(cut.num_tokens, num_heads, head_dim) + means[:, cut.block_of_token()].transpose(0, 1)
        # As a projection leaves them: tokens before heads.
        return (scale * values).to(dtype)[None].transpose(1, 2)

    q, k, v = tokens(), tokens(uneven=True), tokens()
    dout = draw(cut.num_tokens, num_heads, head_dim).to(dtype)[None].transpose(1, 2)
    lists = select_lists(q, k, cut, cut, SelectionRule(sparsity))
    return Inputs(*(tensor.requires_grad_() for tensor in (q, k, v)), dout, cut, lists)


def sdpa_by(backend: SDPBackend) -> Forward:
    def forward(inputs: Inputs) -> tuple[Tensor, Sequence[Tensor]]:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*inputs.qkv), inputs.qkv

    return forward


def sparse_kernels(inputs: Inputs) -> tuple[Tensor, Sequence[Tensor]]:
    return attend_by_kernel(*inputs.qkv, inputs.lists, inputs.cut, inputs.cut), inputs.qkv


def sparse_module(rule: SelectionRule) -> Forward:
    """Selection and lists included."""

    def forward(inputs: Inputs) -> tuple[Tensor, Sequence[Tensor]]:
        lists = select_lists(inputs.q, inputs.k, inputs.cut, inputs.cut, rule)
        return attend_by_kernel(*inputs.qkv, lists, inputs.cut, inputs.cut), inputs.qkv

    return forward


def flex(compiled: Callable[..., Tensor]) -> Forward:
    """FlexAttention with the same lists; partial blocks are filled up with zeros, for time only."""
    from torch.nn.attention.flex_attention import BlockMask

    prepared: dict[int, tuple[BlockMask, list[Tensor]]] = {}

    def prepare(inputs: Inputs) -> tuple[BlockMask, list[Tensor]]:
        cut, heads = inputs.cut, inputs.q.shape[1]
        place = torch.zeros(cut.num_tokens + 1, dtype=torch.int32, device=inputs.q.device)
        place[cut.starts()] = torch.arange(cut.num_blocks, dtype=torch.int32, device=inputs.q.device)
        chosen = place[inputs.lists.spans_E.long() // SPAN_BASE].view(1, heads, cut.num_blocks, -1)
        indices = torch.zeros(
            1, heads, cut.num_blocks, cut.num_blocks, dtype=torch.int32, device=chosen.device
        )
        indices[..., : chosen.shape[-1]] = chosen
        counts = torch.full(indices.shape[:-1], chosen.shape[-1], dtype=torch.int32, device=chosen.device)
        mask = BlockMask.from_kv_blocks(
            torch.zeros_like(counts),
            torch.zeros_like(indices),
            counts,
            indices,
            BLOCK_SIZE=cut.block_tokens,
            mask_mod=lambda b, h, q, k: q >= 0,
        )
        slots = cut.num_blocks * cut.block_tokens - cut.num_tokens
        padded = [F.pad(tensor.detach(), (0, 0, 0, slots)).requires_grad_() for tensor in inputs.qkv]
        return mask, padded

    def forward(inputs: Inputs) -> tuple[Tensor, Sequence[Tensor]]:
        if id(inputs) not in prepared:
            prepared[id(inputs)] = prepare(inputs)
        mask, (q, k, v) = prepared[id(inputs)]
        return compiled(q, k, v, block_mask=mask, kernel_options={"BLOCK_M": 64, "BLOCK_N": 64}), (q, k, v)

    return forward


def rows_of(rule: SelectionRule, device: torch.device, *, with_flex: bool) -> list[Row]:
    rows = [
        Row("sparse kernels", sparse_kernels),
        Row("sparse module", sparse_module(rule)),
    ]
    if device.type != "cuda":
        return [Row("sdpa math", sdpa_by(SDPBackend.MATH), dense=True), *rows]
    rows = [
        Row("sdpa cudnn", sdpa_by(SDPBackend.CUDNN_ATTENTION), dense=True),
        Row("sdpa flash", sdpa_by(SDPBackend.FLASH_ATTENTION), dense=True),
        *rows,
    ]
    if with_flex:
        from torch.nn.attention.flex_attention import flex_attention

        torch._dynamo.reset()  # noqa: SLF001 - every shape is compiled by itself
        compiled = torch.compile(flex_attention, mode="max-autotune-no-cudagraphs", dynamic=False)
        rows.append(Row("flex attention", flex(compiled)))
    return rows
