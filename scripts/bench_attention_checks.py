"""Block-sparse kernels against float64, some blocks at a time: sizes where a whole mask would not fit.

Outputs are poisoned before the kernels write them, and backward runs twice: both must be equal to the bit.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from longcat_tune.model.block_sparse.function import attend_by_kernel
from longcat_tune.model.block_sparse.launches import LOG2_E, attend
from longcat_tune.model.block_sparse.lists import BlockLists
from longcat_tune.model.block_sparse.partition import SPAN_BASE, Partition

HEADS = 2
BLOCKS = 8
BOUNDS = {"out": 4e-3, "lse": 2e-5, "dq": 6e-3, "dk": 6e-3, "dv": 6e-3}
LARGE_BOUNDS = {"out": 4e-3, "lse": 1e-4, "dq": 1.5e-2, "dk": 1.5e-2, "dv": 1.5e-2}
"""Where logits are nine times as large."""


class Exact:
    """Float64 attention of single query blocks, over the key blocks that they list."""

    def __init__(
        self, qkv: tuple[Tensor, Tensor, Tensor], dout: Tensor, cut: Partition, lists: BlockLists
    ) -> None:
        self.qkv = [tensor.detach()[0] for tensor in qkv]
        self.dout = dout[0]
        self.cut = cut
        self.lists = lists
        self.scale = dout.shape[-1] ** -0.5

    def tokens(self, spans: Tensor) -> Tensor:
        """All tokens of some blocks."""
        return torch.cat(
            [torch.arange(span // SPAN_BASE, span // SPAN_BASE + span % SPAN_BASE) for span in spans.tolist()]
        ).to(self.dout.device)

    def block(self, head: int, block: int) -> dict[str, Tensor]:
        """Everything of one query block; dk and dv are its contributions to the keys it lists."""
        row = head * self.cut.num_blocks + block
        first, last = self.lists.pointers[row : row + 2].tolist()
        mine, keys = (
            self.tokens(self.cut.spans_K[block : block + 1]),
            self.tokens(self.lists.spans_E[first:last]),
        )
        q, k, v = (x[head, at].double() for x, at in zip(self.qkv, (mine, keys, keys), strict=True))
        dout = self.dout[head, mine].double()
        scores = q @ k.T * self.scale
        lse = scores.logsumexp(-1)
        p = (scores - lse[:, None]).exp()
        out = p @ v
        ds = p * (dout @ v.T - (out * dout).sum(-1, keepdim=True))
        return {
            "mine": mine, "keys": keys, "out": out, "lse": lse, "dq": ds @ k * self.scale,
            "dk": ds.T @ q * self.scale, "dv": p.T @ dout,
        }  # fmt: skip

    def key_block(self, head: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of a key block and its dk and dv from all query blocks that list it."""
        span = self.cut.spans_K[block]
        mine = self.tokens(span[None])
        dk = torch.zeros(len(mine), self.dout.shape[-1], dtype=torch.float64, device=self.dout.device)
        dv = torch.zeros_like(dk)
        rows = self.lists.pointers[head * self.cut.num_blocks : (head + 1) * self.cut.num_blocks + 1].long()
        entries = self.lists.spans_E[rows[0] : rows[-1]]
        listing = torch.searchsorted(rows[1:] - rows[0], (entries == span).nonzero().flatten(), right=True)
        for query_block in listing.tolist():
            exact = self.block(head, query_block)
            at = torch.searchsorted(exact["keys"], mine)
            dk += exact["dk"][at]
            dv += exact["dv"][at]
        return mine, dk, dv


def check_against_float64(
    qkv: tuple[Tensor, Tensor, Tensor], dout: Tensor, cut: Partition, lists: BlockLists, *, large: bool
) -> dict[str, float]:
    """Relative Frobenius errors of sampled blocks (absolute for lse).

    Raises:
        AssertionError: an error is beyond its bound, or two runs differ.
    """
    torch.use_deterministic_algorithms(mode=True, warn_only=True)  # fills what is allocated with NaN
    runs = []
    for _ in range(2):
        out = attend_by_kernel(*qkv, lists, cut, cut)
        runs.append([out.detach(), *torch.autograd.grad(out, qkv, dout)])
    lse = attend(*(tensor.detach() for tensor in qkv), lists, cut, cut)[1] / LOG2_E
    torch.use_deterministic_algorithms(mode=False)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True)), "two runs differ"
    got = dict(zip(("out", "dq", "dk", "dv"), runs[0], strict=True))

    exact, chosen = Exact(qkv, dout, cut, lists), random.Random(0)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in BOUNDS}
    for head in chosen.sample(range(qkv[0].shape[1]), HEADS):
        for block in chosen.sample(range(cut.num_blocks), min(BLOCKS, cut.num_blocks)):
            right = exact.block(head, block)
            for name in ("out", "dq"):
                pairs[name].append((got[name][0, head, right["mine"]], right[name]))
            pairs["lse"].append((lse[0, head, right["mine"]], right["lse"]))
        for block in chosen.sample(range(cut.num_blocks), min(BLOCKS // HEADS, cut.num_blocks)):
            mine, dk, dv = exact.key_block(head, block)
            pairs["dk"].append((got["dk"][0, head, mine], dk))
            pairs["dv"].append((got["dv"][0, head, mine], dv))
    errors = {}
    for name, compared in pairs.items():
        mine, right = (torch.cat([pair[side].double() for pair in compared]) for side in (0, 1))
        error = (mine - right).abs().max() if name == "lse" else (mine - right).norm() / right.norm()
        errors[name] = error.item()
        bound = (LARGE_BOUNDS if large else BOUNDS)[name]
        assert errors[name] <= bound, f"{name} {errors[name]:.1e} > {bound:.1e}"
    return errors
