"""Triton kernels of block-sparse attention: forward, dQ, and dK/dV; pointer loads, no atomics.

They know tiles, strides and lists of spans; nothing of grids, selection or autograd. A span packs where a
block's tokens lie into one integer (`partition.py`), so that one load is enough to address a tile: every
further dependent load would lengthen the pipeline's critical path.

Scores, softmax and accumulators are float32; P and dS are rounded to the input's dtype before their product,
as a fused dense kernel does. Log-sum-exp is kept in base 2. Runs on Triton 3.6 to 3.9 and in its interpreter.
"""
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - a kernel's arguments are its launch interface, untyped by Triton's rule

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _window(span, tile_index, num_tokens, SPAN_BASE: tl.constexpr, BLOCK: tl.constexpr):
    """Where to read one tile of a block, and which of the rows read are the block's: [low, high).

    A short block is read together with its neighbours' rows, moved back from the end of the tokens where
    there are none behind it: loads without a mask, whose predicates cost 90 registers at head width 128.
    """
    start = span // SPAN_BASE + tile_index * BLOCK
    length = span % SPAN_BASE - tile_index * BLOCK
    window = tl.minimum(start, num_tokens - BLOCK)
    low = start - window
    return window.to(tl.int64), low, low + length


@triton.jit
def _load_tile(base_ptr, rows, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of one head as [rows, BLOCK_D]; zero beyond the head's width."""
    cols = tl.arange(0, BLOCK_D)
    pointers = base_ptr + (rows[:, None] * stride + cols[None, :])
    if BLOCK_D == HEAD_DIM:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=cols[None, :] < HEAD_DIM, other=0.0)
    return tile


@triton.jit
def _store_tile(base_ptr, tile, rows, stride, low, high, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write the rows [low, high) of [rows, BLOCK_D] in the output's dtype."""
    cols = tl.arange(0, BLOCK_D)
    pointers = base_ptr + (rows[:, None] * stride + cols[None, :])
    own = (rows[:, None] >= low) & (rows[:, None] < high) & (cols[None, :] < HEAD_DIM)
    tl.store(pointers, tile.to(base_ptr.dtype.element_ty), mask=own)


@triton.jit
def _product(a, b, UPCAST: tl.constexpr):
    """Matrix product in float32; UPCAST is for the interpreter, which multiplies the bits of bfloat16."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    row_ptr,
    row_spans_ptr,
    own_spans_ptr,
    num_blocks,
    num_heads,
    num_queries,
    num_keys,
    q_stride_b,
    q_stride_a,
    q_stride_n,
    k_stride_b,
    k_stride_a,
    k_stride_n,
    v_stride_b,
    v_stride_a,
    v_stride_n,
    out_stride_b,
    out_stride_a,
    out_stride_n,
    scale_log2,
    SPAN_BASE: tl.constexpr,
    TILES_M: tl.constexpr,
    TILES_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTIAL: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program: one tile of one query block against the key blocks its row lists."""
    block = tl.program_id(0) // TILES_M
    head = tl.program_id(1)
    batch_index = (head // num_heads).to(tl.int64)
    head_index = (head % num_heads).to(tl.int64)

    own = tl.load(own_spans_ptr + block)
    start, low, high = _window(own, tl.program_id(0) % TILES_M, num_queries, SPAN_BASE, BLOCK_M)
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_N)

    q_base = q_ptr + batch_index * q_stride_b + head_index * q_stride_a + start * q_stride_n
    k_base = k_ptr + batch_index * k_stride_b + head_index * k_stride_a
    v_base = v_ptr + batch_index * v_stride_b + head_index * v_stride_a
    q = _load_tile(q_base, rows, q_stride_n, HEAD_DIM, BLOCK_D)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first = tl.load(row_ptr + head * num_blocks + block)
    last = tl.load(row_ptr + head * num_blocks + block + 1)
    for step in range(first * TILES_N, last * TILES_N):
        span = tl.load(row_spans_ptr + step // TILES_N)
        key_start, key_low, key_high = _window(span, step % TILES_N, num_keys, SPAN_BASE, BLOCK_N)
        k = _load_tile(k_base + key_start * k_stride_n, cols, k_stride_n, HEAD_DIM, BLOCK_D)
        scores = _product(q, tl.trans(k), UPCAST)
        if PARTIAL:
            # A listed block has a token and its first tile comes first, so that top is finite from there on.
            scores = tl.where((cols >= key_low)[None, :] & (cols < key_high)[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
        p = tl.exp2(scores * scale_log2 - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        v = _load_tile(v_base + key_start * v_stride_n, cols, v_stride_n, HEAD_DIM, BLOCK_D)
        acc += _product(p.to(v.dtype), v, UPCAST)
        top = new_top

    # An empty row: out 0, log-sum-exp -inf; log2 of 1 keeps the interpreter's numpy from warning.
    filled = tl.where(total > 0, total, 1.0)
    lse = top + tl.log2(filled)
    acc = acc / filled[:, None]
    lse_at = lse_ptr + head.to(tl.int64) * num_queries + start + rows
    out_base = out_ptr + batch_index * out_stride_b + head_index * out_stride_a + start * out_stride_n
    tl.store(lse_at, lse, mask=(rows >= low) & (rows < high))
    _store_tile(out_base, acc, rows, out_stride_n, low, high, HEAD_DIM, BLOCK_D)


@triton.jit
def dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    dout_ptr,
    dq_ptr,
    lse_ptr,
    delta_ptr,
    row_ptr,
    row_spans_ptr,
    own_spans_ptr,
    num_blocks,
    num_heads,
    num_queries,
    num_keys,
    q_stride_b,
    q_stride_a,
    q_stride_n,
    k_stride_b,
    k_stride_a,
    k_stride_n,
    v_stride_b,
    v_stride_a,
    v_stride_n,
    out_stride_b,
    out_stride_a,
    out_stride_n,
    dout_stride_b,
    dout_stride_a,
    dout_stride_n,
    dq_stride_b,
    dq_stride_a,
    dq_stride_n,
    scale,
    scale_log2,
    SPAN_BASE: tl.constexpr,
    TILES_M: tl.constexpr,
    TILES_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTIAL: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program: dQ of one tile of a query block; also writes delta = sum(out * dout) for `dkdv_kernel`."""
    block = tl.program_id(0) // TILES_M
    head = tl.program_id(1)
    batch_index = (head // num_heads).to(tl.int64)
    head_index = (head % num_heads).to(tl.int64)

    own = tl.load(own_spans_ptr + block)
    start, low, high = _window(own, tl.program_id(0) % TILES_M, num_queries, SPAN_BASE, BLOCK_M)
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_N)

    q_base = q_ptr + batch_index * q_stride_b + head_index * q_stride_a + start * q_stride_n
    out_base = out_ptr + batch_index * out_stride_b + head_index * out_stride_a + start * out_stride_n
    dout_base = dout_ptr + batch_index * dout_stride_b + head_index * dout_stride_a + start * dout_stride_n
    k_base = k_ptr + batch_index * k_stride_b + head_index * k_stride_a
    v_base = v_ptr + batch_index * v_stride_b + head_index * v_stride_a

    out = _load_tile(out_base, rows, out_stride_n, HEAD_DIM, BLOCK_D)
    dout = _load_tile(dout_base, rows, dout_stride_n, HEAD_DIM, BLOCK_D)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    per_token = head.to(tl.int64) * num_queries + start + rows
    tl.store(delta_ptr + per_token, delta, mask=(rows >= low) & (rows < high))
    lse = tl.load(lse_ptr + per_token, mask=(rows >= low) & (rows < high), other=float("inf"))
    q = _load_tile(q_base, rows, q_stride_n, HEAD_DIM, BLOCK_D)

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first = tl.load(row_ptr + head * num_blocks + block)
    last = tl.load(row_ptr + head * num_blocks + block + 1)
    for step in range(first * TILES_N, last * TILES_N):
        span = tl.load(row_spans_ptr + step // TILES_N)
        key_start, key_low, key_high = _window(span, step % TILES_N, num_keys, SPAN_BASE, BLOCK_N)
        k = _load_tile(k_base + key_start * k_stride_n, cols, k_stride_n, HEAD_DIM, BLOCK_D)
        v = _load_tile(v_base + key_start * v_stride_n, cols, v_stride_n, HEAD_DIM, BLOCK_D)
        p = tl.exp2(_product(q, tl.trans(k), UPCAST) * scale_log2 - lse[:, None])
        if PARTIAL:
            p = tl.where((cols >= key_low)[None, :] & (cols < key_high)[None, :], p, 0.0)
        dp = _product(dout, tl.trans(v), UPCAST)
        ds = p * (dp - delta[:, None])
        dq += _product(ds.to(k.dtype), k, UPCAST)

    dq_base = dq_ptr + batch_index * dq_stride_b + head_index * dq_stride_a + start * dq_stride_n
    _store_tile(dq_base, dq * scale, rows, dq_stride_n, low, high, HEAD_DIM, BLOCK_D)


@triton.jit
def dkdv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    dk_ptr,
    dv_ptr,
    lse_ptr,
    delta_ptr,
    column_ptr,
    column_spans_ptr,
    own_spans_ptr,
    order_ptr,
    first_head,
    num_blocks,
    num_heads,
    num_queries,
    num_keys,
    q_stride_b,
    q_stride_a,
    q_stride_n,
    k_stride_b,
    k_stride_a,
    k_stride_n,
    v_stride_b,
    v_stride_a,
    v_stride_n,
    dout_stride_b,
    dout_stride_a,
    dout_stride_n,
    dk_stride_b,
    dk_stride_a,
    dk_stride_n,
    dv_stride_b,
    dv_stride_a,
    dv_stride_n,
    scale,
    scale_log2,
    SPAN_BASE: tl.constexpr,
    TILES_M: tl.constexpr,
    TILES_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTIAL: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program: dK and dV of one tile of a key block, over the query blocks that list it.

    `order` starts the most listed key blocks first: columns are uneven, and the longest must not come last.
    """
    column_head = tl.program_id(1)
    head = first_head + column_head
    block = tl.load(order_ptr + column_head * num_blocks + tl.program_id(0) // TILES_N)
    batch_index = (head // num_heads).to(tl.int64)
    head_index = (head % num_heads).to(tl.int64)

    own = tl.load(own_spans_ptr + block)
    start, low, high = _window(own, tl.program_id(0) % TILES_N, num_keys, SPAN_BASE, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_N)

    k_base = k_ptr + batch_index * k_stride_b + head_index * k_stride_a + start * k_stride_n
    v_base = v_ptr + batch_index * v_stride_b + head_index * v_stride_a + start * v_stride_n
    q_base = q_ptr + batch_index * q_stride_b + head_index * q_stride_a
    dout_base = dout_ptr + batch_index * dout_stride_b + head_index * dout_stride_a
    per_head = head.to(tl.int64) * num_queries
    k = _load_tile(k_base, cols, k_stride_n, HEAD_DIM, BLOCK_D)
    v = _load_tile(v_base, cols, v_stride_n, HEAD_DIM, BLOCK_D)

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    first = tl.load(column_ptr + column_head * num_blocks + block)
    last = tl.load(column_ptr + column_head * num_blocks + block + 1)
    for step in range(first * TILES_M, last * TILES_M):
        span = tl.load(column_spans_ptr + step // TILES_M)
        query_start, query_low, query_high = _window(span, step % TILES_M, num_queries, SPAN_BASE, BLOCK_M)
        q = _load_tile(q_base + query_start * q_stride_n, rows, q_stride_n, HEAD_DIM, BLOCK_D)
        dout = _load_tile(dout_base + query_start * dout_stride_n, rows, dout_stride_n, HEAD_DIM, BLOCK_D)
        per_token = per_head + query_start + rows
        if PARTIAL:
            # Rows of other blocks: +inf makes their p zero.
            here = (rows >= query_low) & (rows < query_high)
            lse = tl.load(lse_ptr + per_token, mask=here, other=float("inf"))
            delta = tl.load(delta_ptr + per_token, mask=here, other=0.0)
        else:
            lse = tl.load(lse_ptr + per_token)
            delta = tl.load(delta_ptr + per_token)
        p_t = tl.exp2(_product(k, tl.trans(q), UPCAST) * scale_log2 - lse[None, :])
        dv += _product(p_t.to(dout.dtype), dout, UPCAST)
        dp_t = _product(v, tl.trans(dout), UPCAST)
        ds_t = p_t * (dp_t - delta[None, :])
        dk += _product(ds_t.to(q.dtype), q, UPCAST)

    dk_base = dk_ptr + batch_index * dk_stride_b + head_index * dk_stride_a + start * dk_stride_n
    dv_base = dv_ptr + batch_index * dv_stride_b + head_index * dv_stride_a + start * dv_stride_n
    _store_tile(dk_base, dk * scale, cols, dk_stride_n, low, high, HEAD_DIM, BLOCK_D)
    _store_tile(dv_base, dv, cols, dv_stride_n, low, high, HEAD_DIM, BLOCK_D)
