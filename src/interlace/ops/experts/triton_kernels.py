"""Triton kernels of experts: products grouped by expert, and sums over a token's choices.

A pair is a token with one of its choices; pairs are sorted by expert. `tiles` [count, 3] holds of each tile the expert,
its first pair and one past its last; a tile past the last one is empty. `tokens` is the token of each pair.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS, dot, sigmoid

NONE, SWIGLU, RELU2 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def read(place, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr, STRIDE: tl.constexpr, WHOLE: tl.constexpr):
    """Return the tile [rows, cols] of a matrix [ROWS, COLS], 0 outside of it; WHOLE: no tile reaches outside."""
    places = place + (rows[:, None] * STRIDE + cols[None, :])
    if WHOLE:
        return tl.load(places)
    return tl.load(places, mask=(rows < ROWS)[:, None] & (cols < COLS)[None, :], other=0.0)


@triton.jit
def weights_of(
    place, n, k, N: tl.constexpr, K: tl.constexpr, ACROSS: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    """Return the tile [k, n] of an expert's matrix, which lies as [K, N] if ACROSS, else as [N, K]."""
    if ACROSS:
        return read(place, k, n, K, N, N, WHOLE)
    return tl.trans(read(place, n, k, N, K, K, WHOLE))


@triton.jit(do_not_specialize=COUNTS)
def rows_of(a, pairs, end, tokens, K: tl.constexpr, GATHER: tl.constexpr):
    """Return the row of each pair in a [., K]: its token's if GATHER; pairs past the end repeat the last one."""
    row = tl.minimum(pairs, end - 1)
    if GATHER:
        row = tl.load(tokens + row)
    return a + row.to(tl.int64)[:, None] * K


@triton.jit
def columns_of(rows, k, K: tl.constexpr, WHOLE: tl.constexpr):
    """Return the columns k of the rows, 0 from K on."""
    if WHOLE:
        return tl.load(rows + k[None, :])
    return tl.load(rows + k[None, :], mask=(k < K)[None, :], other=0.0)


@triton.jit(do_not_specialize=COUNTS)
def product(
    a, w, out, tiles, tokens,
    N: tl.constexpr, K: tl.constexpr, ACT: tl.constexpr, GATHER: tl.constexpr, ACROSS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out [pairs, N] = act(a w_e), of one expert's pairs in each program; for SWIGLU w_e is 2 N wide, gate then up."""
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    WHOLE: tl.constexpr = (N % BN == 0) & (K % BK == 0)
    tile = tiles + 3 * (tl.program_id(0) // BLOCKS)
    expert = tl.load(tile).to(tl.int64)
    first = tl.load(tile + 1)
    end = tl.load(tile + 2)
    if first < end:
        pairs = first + tl.arange(0, BM)
        rows = rows_of(a, pairs, end, tokens, K, GATHER)
        n = tl.program_id(0) % BLOCKS * BN + tl.arange(0, BN)
        sum1 = tl.zeros((BM, BN), tl.float32)
        if ACT == SWIGLU:
            place = w + expert * (2 * N * K)
            sum2 = tl.zeros((BM, BN), tl.float32)
            for start in range(0, K, BK):
                k = start + tl.arange(0, BK)
                x = columns_of(rows, k, K, K % BK == 0)
                sum1 += dot(x, weights_of(place, n, k, N, K, ACROSS, WHOLE))
                sum2 += dot(x, weights_of(place + N * K, n, k, N, K, ACROSS, WHOLE))
            sum1 = sum1 * sigmoid(sum1) * sum2
        else:
            place = w + expert * (N * K)
            for start in range(0, K, BK):
                k = start + tl.arange(0, BK)
                x = columns_of(rows, k, K, K % BK == 0)
                sum1 += dot(x, weights_of(place, n, k, N, K, ACROSS, WHOLE))
            if ACT == RELU2:
                sum1 = tl.maximum(sum1, 0.0)
                sum1 = sum1 * sum1
        to = out + pairs.to(tl.int64)[:, None] * N + n[None, :]
        tl.store(to, sum1.to(out.dtype.element_ty), mask=(pairs < end)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=COUNTS)
def hidden_backward(
    d_out, w, hidden, shares, d_hidden, weighted, partial, tiles, tokens, count,
    N: tl.constexpr, K: tl.constexpr, ACT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """From due = d_out w_e [pairs, N], w_e [K, N], write the gradient of the hidden layer before its activation.

    weighted: share act(hidden). partial [blocks of columns, pairs]: parts of due . act(hidden), the share's gradient.
    """
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    WHOLE: tl.constexpr = (N % BN == 0) & (K % BK == 0)
    tile = tiles + 3 * (tl.program_id(0) // BLOCKS)
    block = tl.program_id(0) % BLOCKS
    expert = tl.load(tile).to(tl.int64)
    first = tl.load(tile + 1)
    end = tl.load(tile + 2)
    if first < end:
        pairs = first + tl.arange(0, BM)
        rows = rows_of(d_out, pairs, end, tokens, K, True)
        n = block * BN + tl.arange(0, BN)
        place = w + expert * (N * K)
        due = tl.zeros((BM, BN), tl.float32)
        for start in range(0, K, BK):
            k = start + tl.arange(0, BK)
            due += dot(columns_of(rows, k, K, K % BK == 0), weights_of(place, n, k, N, K, True, WHOLE))
        there = (pairs < end)[:, None] & (n < N)[None, :]
        share = tl.load(shares + pairs, mask=pairs < end, other=0.0)[:, None]
        long = pairs.to(tl.int64)
        if ACT == SWIGLU:
            h = long[:, None] * (2 * N) + n[None, :]
            g = tl.load(hidden + h, mask=there, other=0.0).to(tl.float32)
            u = tl.load(hidden + h + N, mask=there, other=0.0).to(tl.float32)
            s = sigmoid(g)
            y = g * s * u
            d_g = share * due * u * s * (1.0 + g * (1.0 - s))
            tl.store(d_hidden + h, d_g.to(d_hidden.dtype.element_ty), mask=there)
            tl.store(d_hidden + h + N, (share * due * g * s).to(d_hidden.dtype.element_ty), mask=there)
        else:
            h = long[:, None] * N + n[None, :]
            g = tl.maximum(tl.load(hidden + h, mask=there, other=0.0).to(tl.float32), 0.0)
            y = g * g
            tl.store(d_hidden + h, (2.0 * share * due * g).to(d_hidden.dtype.element_ty), mask=there)
        to = weighted + long[:, None] * N + n[None, :]
        tl.store(to, (share * y).to(weighted.dtype.element_ty), mask=there)
        tl.store(partial + block.to(tl.int64) * count + pairs, tl.sum(due * y, 1), mask=pairs < end)


@triton.jit(do_not_specialize=COUNTS)
def weight_gradients(
    a, b, out, offsets, tokens,
    M: tl.constexpr, N: tl.constexpr, GATHER_A: tl.constexpr, GATHER_B: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out [experts, M, N]: the sum of a^T b over each expert's pairs; 0 where there are none."""
    ACROSS: tl.constexpr = (N + BN - 1) // BN
    BLOCKS: tl.constexpr = ACROSS * ((M + BM - 1) // BM)
    expert = tl.program_id(0) // BLOCKS
    block = tl.program_id(0) % BLOCKS
    first = tl.load(offsets + expert)
    end = tl.load(offsets + expert + 1)
    m = block // ACROSS * BM + tl.arange(0, BM)
    n = block % ACROSS * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for turn in range(0, (end - first + BK - 1) // BK):
        pairs = first + turn * BK + tl.arange(0, BK)
        there = (pairs < end)[:, None]
        x = tl.load(rows_of(a, pairs, end, tokens, M, GATHER_A) + m[None, :], mask=there & (m < M)[None, :], other=0.0)
        y = tl.load(rows_of(b, pairs, end, tokens, N, GATHER_B) + n[None, :], mask=there & (n < N)[None, :], other=0.0)
        total += dot(tl.trans(x), y)
    to = out + expert.to(tl.int64) * (M * N) + (m[:, None] * N + n[None, :])
    tl.store(to, total.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=COUNTS)
def combine(
    pairs, places, chosen, shares, out, tokens, experts,
    D: tl.constexpr, TOP: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """out [tokens, D]: the sum of each token's TOP pairs, in the order of its choices; NaN if one names no expert.

    places: where each choice's pair is in `pairs` [., D]. WEIGHTED: times its share.
    """
    ACROSS: tl.constexpr = (D + COLS - 1) // COLS
    first = (tl.program_id(0) // ACROSS).to(tl.int64) * ROWS
    token = first + tl.arange(0, ROWS)
    col = (tl.program_id(0) % ACROSS * COLS + tl.arange(0, COLS))[None, :]
    there = (token < tokens)[:, None] & (col < D)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for i in range(0, TOP):
        choice = token * TOP + i
        named = tl.load(chosen + choice, mask=token < tokens, other=0)
        good = (named >= 0) & (named < experts)
        place = tl.load(places + choice, mask=token < tokens, other=0).to(tl.int64)
        share = tl.where(good, 1.0, float("nan"))
        if WEIGHTED:
            share *= tl.load(shares + choice, mask=token < tokens, other=0.0)
        y = tl.load(pairs + place[:, None] * D + col, mask=there & good[:, None], other=0.0).to(tl.float32)
        total += share[:, None] * y
    tl.store(out + token[:, None] * D + col, total.to(out.dtype.element_ty), mask=there)
