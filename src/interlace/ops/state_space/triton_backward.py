"""Triton kernels of the backward pass: the gradients of each chunk's values and gates, and of its keys and queries.

README.md beside this file derives the lines; names are those there, and those of `triton_forward`, whose `collect` and
`carry` bring the entry state and the exit state's gradient of each chunk. No kernel transposes what a product left in
registers: on Hopper, Triton 3.4 to 3.7 got such transposes wrong (fla-org/flash-linear-attention#640, #984).
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS, dot, read_rows
from interlace.ops.state_space.triton_forward import HIGH, LEAVES, LOW, READS, ROWS, STRENGTH, WRITES


@triton.jit(do_not_specialize=COUNTS)
def value_gradients(
    query, key, value, d_out, decays, chunks, entry, d_exit, dv, dg, ds,
    H, G, total, scale,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Write dv of a chunk, a value head and BV columns, and these columns' shares of dg and ds.

    Squares [C, C] have the earlier token along the rows.
    """
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    chunk = lane // G
    g = lane % G
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    count = (tl.load(chunks + 2 * chunk + 1) - first).to(tl.int32)
    rows = tl.arange(0, C)
    there = rows < count
    nearest = tl.minimum(rows, count - 1)
    k_cols = tl.arange(0, KP)
    v_cols = block * BV + tl.arange(0, BV)
    tile = lane.to(tl.int64)
    table = decays + tile * ROWS * C + rows
    strength = tl.load(table + STRENGTH * C)
    held = (v_cols < V)[:, None] & (k_cols < K)[None, :]
    state = v_cols[:, None] * K + k_cols[None, :]
    keep = there[:, None] & (v_cols < V)[None, :]
    corner = (first * G + g) * V
    place = rows[:, None] * (G * V) + v_cols[None, :]
    base = (first * H + g // (G // H)) * K
    k = read_rows(key + base, nearest, H * K, 0, KP, K)
    q = read_rows(query + base, nearest, H * K, 0, KP, K)
    S = tl.load(entry + tile * V * K + state, mask=held, other=0.0)
    dS = tl.load(d_exit + tile * V * K + state, mask=held, other=0.0)
    v = tl.load(value + corner + place, mask=keep, other=0.0)
    due = tl.load(d_out + corner + place, mask=keep, other=0.0)

    # A row's gate decays what later rows see of earlier ones, and what earlier rows leave to the exit state.
    end = decays + tile * ROWS * C + C - 1
    kept = tl.sum(S.to(tl.float32) * dS.to(tl.float32), 1)
    across = tl.exp(tl.load(end + HIGH * C) + tl.load(end + LOW * C)) * tl.sum(kept, 0)
    read = tl.sum(dot(q, tl.trans(S)) * due.to(tl.float32), 1) * tl.load(table + READS * C)
    wide = v.to(tl.float32)
    dW = dot(k, tl.trans(dS)) * tl.load(table + LEAVES * C)[:, None]
    carried = tl.sum(dW * wide, 1) * strength

    high, low = tl.load(table + HIGH * C), tl.load(table + LOW * C)
    seen = rows[:, None] <= rows[None, :]
    pair = (high[None, :] - high[:, None]) + (low[None, :] - low[:, None])
    M = tl.where(seen, tl.exp(tl.where(seen, pair, 0.0)), 0.0) * scale * dot(k, tl.trans(q))
    dW += dot(M.to(k.dtype), due)
    tl.store(dv + corner + place, (dW * strength[:, None]).to(dv.dtype.element_ty), mask=keep)
    # A token's product with itself knows no decay.
    E = tl.where(rows[:, None] < rows[None, :], dot(v, tl.trans(due)) * M, 0.0) * strength[:, None]
    d_total = tl.sum(E, 0) - tl.sum(E, 1) + read + tl.where(rows == C - 1, across, 0.0)
    share = (block.to(tl.int64) * total + first + rows) * G + g
    tl.store(dg + share, tl.cumsum(d_total, 0, reverse=True) + (tl.cumsum(carried, 0) - carried), mask=there)
    tl.store(ds + share, tl.sum(dW * wide, 1), mask=there)


@triton.jit(do_not_specialize=COUNTS)
def key_gradients(
    query, key, value, d_out, decays, chunks, entry, d_exit, dq, dk,
    H, G, total, heads, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Write dq and dk of a chunk and BK channels, summed over `heads` value heads of one group.

    Squares [C, C] have the earlier token along the rows, dq its channels.
    """
    VBLOCKS: tl.constexpr = (V + BV - 1) // BV
    KBLOCKS: tl.constexpr = (K + BK - 1) // BK
    group = G // H
    parts = (group + heads - 1) // heads
    block = tl.program_id(0) % KBLOCKS
    part = tl.program_id(0) // KBLOCKS % parts
    lane = tl.program_id(0) // KBLOCKS // parts
    chunk = lane // H
    h = lane % H
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    count = (tl.load(chunks + 2 * chunk + 1) - first).to(tl.int32)
    rows = tl.arange(0, C)
    there = rows < count
    k_cols = block * BK + tl.arange(0, BK)
    seen = rows[:, None] <= rows[None, :]

    reads = tl.zeros((BK, C), tl.float32)
    writes = tl.zeros((C, BK), tl.float32)
    d_kq = tl.zeros((C, C), tl.float32)
    for i in range(0, tl.minimum(heads, group - part * heads) * VBLOCKS):
        g = h * group + part * heads + i // VBLOCKS
        v_cols = (i % VBLOCKS) * BV + tl.arange(0, BV)
        tile = chunk.to(tl.int64) * G + g
        table = decays + tile * ROWS * C + rows
        keep = there[:, None] & (v_cols < V)[None, :]
        corner = (first * G + g) * V
        place = rows[:, None] * (G * V) + v_cols[None, :]
        v = tl.load(value + corner + place, mask=keep, other=0.0)
        due = tl.load(d_out + corner + place, mask=keep, other=0.0)
        held = (v_cols < V)[:, None] & (k_cols < K)[None, :]
        state = v_cols[:, None] * K + k_cols[None, :]
        S = tl.load(entry + tile * V * K + state, mask=held, other=0.0)
        dS = tl.load(d_exit + tile * V * K + state, mask=held, other=0.0)
        reads += dot(tl.trans(S), (tl.trans(due).to(tl.float32) * tl.load(table + READS * C)[None, :]).to(S.dtype))
        writes += dot((v.to(tl.float32) * tl.load(table + WRITES * C)[:, None]).to(S.dtype), dS)
        high, low = tl.load(table + HIGH * C), tl.load(table + LOW * C)
        pair = (high[None, :] - high[:, None]) + (low[None, :] - low[:, None])
        D = tl.where(seen, tl.exp(tl.where(seen, pair, 0.0)), 0.0)
        d_kq += dot(v, tl.trans(due)) * tl.load(table + STRENGTH * C)[:, None] * D

    base = (first * H + h) * K
    straight = rows[:, None] * (H * K) + k_cols[None, :]
    inside = there[:, None] & (k_cols < K)[None, :]
    k = tl.load(key + base + straight, mask=inside, other=0.0)
    q = tl.load(query + base + straight, mask=inside, other=0.0)
    due_kq = (d_kq * scale).to(k.dtype)
    reads += dot(tl.trans(k), due_kq)
    writes += dot(due_kq, q)
    to = part.to(tl.int64) * total * H * K + base
    turned = rows[None, :] * (H * K) + k_cols[:, None]
    tl.store(dq + to + turned, reads.to(dq.dtype.element_ty), mask=there[None, :] & (k_cols < K)[:, None])
    tl.store(dk + to + straight, writes.to(dk.dtype.element_ty), mask=inside)
