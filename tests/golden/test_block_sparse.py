"""Block-sparse attention against golden numbers; kernels run on a GPU or in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longcat_tune.model.block_sparse import block_sparse_attention, select_blocks
from longcat_tune.model.block_sparse.lists import BlockLists
from longcat_tune.model.block_sparse.partition import Partition, partition
from longcat_tune.model.block_sparse.reference import masked_attention
from tests.golden.block_sparse_cases import CASES, SMALL, BlockSparseCase
from tests.golden.cases import Case, parametrize

CPU = torch.device("cpu")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda") if GPU else CPU
"""Where kernels run."""

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
small_cases = pytest.mark.parametrize(
    "case", [case for case in CASES if case.entry["file"] in SMALL], ids=lambda case: case.name
)


def cuts_of(case: BlockSparseCase, device: torch.device = CPU) -> tuple[Partition, Partition]:
    grids = case.grids
    return (
        partition((grids["grid_q"],), grids["chunk_q"], device),
        partition((grids["grid_k"],), grids["chunk_k"], device),
    )


def in_blocks(case: BlockSparseCase, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and the output's gradient in block order."""
    tensors, (queries, keys) = case.tensors(), cuts_of(case)
    order = {"q": queries, "k": keys, "v": keys, "do": queries}
    return [tensors[name].to(dtype).index_select(2, cut.order_N) for name, cut in order.items()]


def by_frame(case: BlockSparseCase, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Results in block order, tokens frame by frame again."""
    queries, keys = cuts_of(case)
    return {
        name: tensor.index_select(2, (keys if name in {"dk", "dv"} else queries).order_N.argsort())
        for name, tensor in results.items()
    }


def check_kernels(case: BlockSparseCase, dtype: torch.dtype, precision: str) -> None:
    pytest.importorskip("triton")
    from longcat_tune.model.block_sparse.function import attend_by_kernel
    from longcat_tune.model.block_sparse.launches import LOG2_E, attend

    queries, keys = cuts_of(case, DEVICE)
    q, k, v, dout = (tensor.to(DEVICE) for tensor in in_blocks(case, dtype))
    lists = BlockLists.of_mask(case.tensors()["block_mask"].bool().to(DEVICE), keys)
    heads = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = attend_by_kernel(*heads, lists, queries, keys)
    dq, dk, dv = torch.autograd.grad(out, heads, dout)
    results = by_frame(case, {"out": out.detach().cpu(), "dq": dq.cpu(), "dk": dk.cpu(), "dv": dv.cpu()})
    case.check(results, precision)
    if dtype == torch.float32:
        with torch.no_grad():
            lse = attend(q, k, v, lists, queries, keys)[1] / LOG2_E
        case.check_lse(by_frame(case, {"lse": lse.cpu()})["lse"], precision)


@every_case
def test_selection_equals_golden(case: BlockSparseCase) -> None:
    if case.entry["explicit_mask"]:
        pytest.skip("its mask is given")
    tensors = case.tensors()
    mask = select_blocks(tensors["q"].float(), tensors["k"].float(), **case.grids, **case.rule)
    assert torch.equal(mask, tensors["block_mask"].bool())
    mask = select_blocks(tensors["q"], tensors["k"], **case.grids, **case.rule)
    assert torch.equal(mask, tensors["block_mask"].bool()), "bfloat16 inputs choose other blocks"


@every_case
def test_definition_equals_golden(case: BlockSparseCase) -> None:
    tensors = case.tensors()
    heads = [tensors[name].float().requires_grad_() for name in "qkv"]
    if case.entry["explicit_mask"]:
        out = block_sparse_attention(*heads, **case.grids, block_mask=tensors["block_mask"].bool())
    else:
        out = block_sparse_attention(*heads, **case.grids, **case.rule)
    dq, dk, dv = torch.autograd.grad(out, heads, tensors["do"].float())
    case.check({"out": out, "dq": dq, "dk": dk, "dv": dv}, "float32")
    queries, keys = cuts_of(case)
    q, k, v, _ = in_blocks(case, torch.float64)
    lse = masked_attention(q, k, v, tensors["block_mask"].bool(), queries, keys)[1]
    case.check_lse(by_frame(case, {"lse": lse})["lse"], "float64")


@every_case
def test_kernels_equal_golden_in_float32(case: BlockSparseCase) -> None:
    check_kernels(case, torch.float32, "float32")


@every_case
def test_kernels_equal_golden_in_float16(case: BlockSparseCase) -> None:
    check_kernels(case, torch.float16, "float16")


@small_cases
def test_kernels_equal_golden_in_bfloat16(case: BlockSparseCase) -> None:
    check_kernels(case, torch.bfloat16, "bfloat16" if GPU else "bfloat16_triton_interpreter")


@parametrize("bsa")
def test_block_sparse_attention_equals_official(case: Case) -> None:
    tensors, call = case.tensors(), case.call
    shape = {
        "grid_q": tuple(call["latent_shape_q"]),
        "grid_k": tuple(call["latent_shape_k"]),
        "chunk_q": tuple(call["chunk"]),
        "chunk_k": tuple(call["chunk"]),
        "sparsity": call["sparsity"],
    }
    mask = select_blocks(tensors["in.q"], tensors["in.k"], **shape)
    assert torch.equal(mask, tensors["out.block_mask"].bool())
    out = block_sparse_attention(tensors["in.q"], tensors["in.k"], tensors["in.v"], **shape)
    case.check(out, tensors["out.o"])
