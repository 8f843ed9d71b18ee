"""Which key blocks a query block chooses: counts, ties, thresholds, memory; torch and Triton alike."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longcat_tune.model.block_sparse import select_blocks, selection
from longcat_tune.model.block_sparse.lists import BlockLists, columns
from longcat_tune.model.block_sparse.selection import SelectionRule, select_lists, select_mask
from tests.model.block_sparse.blocks import DEVICE, cut, random_heads

CHUNK = (4, 4, 4)


@pytest.mark.parametrize(
    ("sparsity", "blocks", "kept"),
    [(0.9375, 15, 1), (0.9375, 16, 1), (0.9375, 624, 39), (0.9, 10, 1), (0.8, 5, 1), (0.5, 8, 4), (0, 7, 7)],
)
def test_count_is_the_floor_of_the_kept_part_and_never_none(sparsity: float, blocks: int, kept: int) -> None:
    assert SelectionRule(sparsity).count(blocks) == kept


def test_rules_that_choose_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="both None"):
        SelectionRule(None, None)
    with pytest.raises(ValueError, match="below 1"):
        SelectionRule(1.0)


def test_equal_scores_go_to_the_lower_block() -> None:
    scores = torch.tensor([[[1.0, 2.0, 1.0, 2.0, 2.0, -1.0]], [[-0.0, 0.0, -3.0, 0.0, -0.0, -5.0]]])
    assert selection._best(scores, 2).tolist() == [[[1, 3]], [[0, 1]]]
    assert selection._best(scores, 4).tolist() == [[[0, 1, 3, 4]], [[0, 1, 3, 4]]]


def test_equal_tokens_choose_the_first_blocks() -> None:
    q = torch.ones(1, 1, 512, 16)
    kept = select_blocks(q, q, grid_q=(8, 8, 8), grid_k=(8, 8, 8), sparsity=0.5)
    assert kept[..., :4].all()
    assert not kept[..., 4:].any()


def test_lists_hold_the_blocks_of_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = cut((5, 9, 6), CHUNK), cut((7, 9, 6), CHUNK)
    q, k, *_ = random_heads(queries, keys, heads=2, batch=2)
    for at_once in (1 << 21, 100, 20):
        monkeypatch.setattr(selection, "SCORES_AT_ONCE", at_once)
        for rule in (SelectionRule(0.6), SelectionRule(None, 0.7), SelectionRule(0.9, 0.5)):
            mask = select_mask(q, k, queries, keys, rule)
            expected = BlockLists.of_mask(mask, keys)
            made = select_lists(q, k, queries, keys, rule)
            assert torch.equal(made.pointers, expected.pointers)
            assert torch.equal(made.spans_E, expected.spans_E)


def test_threshold_keeps_the_best_that_sum_to_at_most_it() -> None:
    scores = torch.tensor([[[0.5, 0.3, 0.15, 0.05], [0.05, 0.9, 0.03, 0.02]]]).log()
    assert selection._within_cdf(scores, 1.0, 0.85, 0).tolist() == [[[True, True, False, False], [False] * 4]]
    assert selection._within_cdf(scores, 1.0, 0.85, 1)[0, 1].tolist() == [False, True, False, False]


def test_autocast_does_not_round_the_scores() -> None:
    queries = cut((7, 11, 12), CHUNK)
    q, k, *_ = random_heads(queries, queries, heads=2, head_dim=32)
    rule = SelectionRule(0.8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = select_mask(q, k, queries, queries, rule)
    assert torch.equal(under_autocast, select_mask(q, k, queries, queries, rule))


def test_choice_has_no_gradient() -> None:
    queries = cut((4, 8, 8), CHUNK)
    q, k, *_ = random_heads(queries, queries)
    lists = select_lists(q.requires_grad_(), k.requires_grad_(), queries, queries, SelectionRule(0.5))
    assert not lists.spans_E.requires_grad


@pytest.mark.parametrize("count", [1, 3, 11, 37])
def test_kernel_chooses_what_torch_chooses(count: int) -> None:
    pytest.importorskip("triton")
    from longcat_tune.model.block_sparse.launches import best_spans

    generator = torch.Generator().manual_seed(count)
    scores = torch.randn(2, 3, 37, generator=generator)
    scores[0] = scores[0].round()  # ties, 0.0 and -0.0 among them
    scores[1, 0] = -scores[1, 0].abs() * 1e30
    spans = torch.arange(37, dtype=torch.int32) * 1024 + 64
    chosen = best_spans(scores.to(DEVICE), spans.to(DEVICE), count)
    assert torch.equal(chosen.cpu(), spans[selection._best(scores, count)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernel_pools_what_torch_pools(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    from longcat_tune.model.block_sparse.launches import block_means

    queries = cut((5, 6, 7), CHUNK)
    q = random_heads(queries, queries, heads=3, head_dim=24, batch=2)[0].to(dtype)
    strided = q.transpose(1, 2).contiguous().transpose(1, 2)
    expected = selection._means(q, queries)
    assert expected.dtype == torch.float32
    there = cut((5, 6, 7), CHUNK, DEVICE)
    for tokens in (q, strided):
        means = block_means(tokens.to(DEVICE), there)
        assert torch.allclose(means.cpu(), expected, rtol=1e-6, atol=1e-6)
    by_loop = torch.stack([part.float().mean(1) for part in q[1].split(queries.lengths().tolist(), 1)], 1)
    assert torch.allclose(expected[3:], by_loop, rtol=1e-6, atol=1e-6)


class PeakBytes(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.peak = max(self.peak, sum(self.alive.values()))
        weakref.finalize(storage, self.alive.pop, key, None)


def test_selection_and_lists_at_720p_of_48_frames_stay_below_100_mb() -> None:
    # One head of 32 is measured; what all of them keep is added by arithmetic. Width 2: scores have no width.
    grid, heads = (48, 44, 80), 32
    whole = cut(grid, CHUNK)
    tokens = torch.randn(1, 1, whole.num_tokens, 2, generator=torch.Generator().manual_seed(0))
    selecting = PeakBytes()
    with selecting:
        lists = select_lists(tokens, tokens, whole, whole, SelectionRule(0.9375))
    turning = PeakBytes()
    with turning:
        (group,) = columns(lists, whole, whole)
    entries = whole.num_blocks * 165
    assert lists.spans_E.numel() == group.spans_E.numel() == entries
    kept = heads * (lists.spans_E.nbytes + lists.pointers.nbytes)
    assert selecting.peak > 4 * selection.SCORES_AT_ONCE, "the meter misses the scores"
    heads_at_once = max(1, (1 << 20) // entries)
    assert kept / 1e6 < 57
    assert (kept + selecting.peak) / 1e6 < 100
    assert (kept + heads_at_once * turning.peak) / 1e6 < 100
