"""Triton kernels of the forward pass: tables of decays, the states at the borders of stretches, and the outputs.

README.md beside this file derives the lines; names are those there. A stretch is a run of chunks of one sequence. What
a stretch adds to a state does not depend on the state, so `collect` forms it for all stretches at once, `carry` goes
from border to border, and `scan` goes through all stretches at once. Transposed states S [V, K] lie in registers. Heads
of K channels are read as KP columns, a power of two. Rows past a sequence's end repeat its last token and count for
nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS, dot, read_rows, stretch_of

FORGOTTEN = tl.constexpr(-2000.0)  # exp of it is 0 even in float64, and sums of it stay finite
# Rows of a chunk's table [ROWS, C] in float32: scale exp(G) as a query reads, s exp(G_C - G) as a key writes,
# exp(G_C - G), s, and G in two parts. All but G are 0 past the sequence's end.
ROWS = tl.constexpr(6)
READS, WRITES, LEAVES, STRENGTH, HIGH, LOW = (tl.constexpr(i) for i in range(6))


@triton.jit(do_not_specialize=COUNTS)
def prepare(log_decay, strength, chunks, decays, G, scale, C: tl.constexpr, HEADS: tl.constexpr):
    """Write the table of decays of a chunk for HEADS value heads."""
    blocks = (G + HEADS - 1) // HEADS
    chunk = tl.program_id(0) // blocks
    heads = (tl.program_id(0) % blocks) * HEADS + tl.arange(0, HEADS)
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    count = (tl.load(chunks + 2 * chunk + 1) - first).to(tl.int32)
    rows = tl.arange(0, C)
    here = (heads < G)[None, :]
    there = (rows < count)[:, None] & here

    at = (first + rows[:, None]) * G + heads[None, :]
    gate = tl.load(log_decay + at, mask=there, other=0.0).to(tl.float32)
    s = tl.load(strength + at, mask=there, other=0.0).to(tl.float32)
    total = tl.cumsum(tl.maximum(gate, FORGOTTEN).to(tl.float64), 0)
    high = total.to(tl.float32)
    low = (total - high.to(tl.float64)).to(tl.float32)
    end = tl.sum(tl.where((rows == C - 1)[:, None], total, 0.0), 0)
    leaves = tl.where(there, tl.exp((end[None, :] - total).to(tl.float32)), 0.0)
    table = decays + (chunk.to(tl.int64) * G + heads[None, :]) * ROWS * C + rows[:, None]
    tl.store(table + READS * C, tl.where(there, scale * tl.exp(high + low), 0.0), mask=here)
    tl.store(table + WRITES * C, s * leaves, mask=here)
    tl.store(table + LEAVES * C, leaves, mask=here)
    tl.store(table + STRENGTH * C, s, mask=here)
    tl.store(table + HIGH * C, high, mask=here)
    tl.store(table + LOW * C, low, mask=here)


@triton.jit(do_not_specialize=COUNTS)
def collect(
    rows_of, columns_of, decays, sequences, offsets, stretch, border, given, each, last_state,
    H, G,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, WEIGHT: tl.constexpr,
    REVERSE: tl.constexpr, EACH: tl.constexpr, GIVEN: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Go through a stretch: S' = exp(G_C) S + sum of columns_of x (row WEIGHT of the table) x rows_of.

    Forward these are values, WRITES and keys; in REVERSE, gradients of outputs, READS and queries. Without EACH, S
    begins at 0, and the end is written to `border`. With EACH, S begins at the border before, or at `given` [K, V] if
    GIVEN, and is written before every chunk; LAST: what the sequence ends with is written to `last_state` [K, V].
    """
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    g = lane % G
    first = tl.load(stretch + 4 * (lane // G))
    last = tl.load(stretch + 4 * (lane // G) + 1)
    slot = tl.load(stretch + 4 * (lane // G) + 2)
    n = tl.load(stretch + 4 * (lane // G) + 3)
    before = tl.load(sequences + 4 * n)
    after = tl.load(sequences + 4 * n + 1)
    end_slot = tl.where(slot >= 0, slot + 1, tl.load(sequences + 4 * n + 2))
    start = tl.load(offsets + n).to(tl.int64)
    length = (tl.load(offsets + n + 1) - start).to(tl.int32)
    rows = tl.arange(0, C)
    v_cols = block * BV + tl.arange(0, BV)
    v_there = v_cols < V
    k_cols = tl.arange(0, KP)
    inside = v_there[:, None] & (k_cols < K)[None, :]
    inner = v_cols[:, None] * K + k_cols[None, :]
    outer = (n.to(tl.int64) * G + g) * K * V + k_cols[None, :] * V + v_cols[:, None]
    if REVERSE:
        source, begins, target, goes_on = end_slot, last == after, slot, slot >= 0
    else:
        source, begins, target, goes_on = slot, slot < 0, end_slot, last < after

    S = tl.zeros((BV, KP), tl.float32)
    count = last - first
    if EACH:
        left_off = border + (source.to(tl.int64) * G + g) * V * K
        S = tl.load(left_off + inner, mask=inside & (begins == 0), other=0.0).to(tl.float32)
        if GIVEN:
            S += tl.load(given + outer, mask=inside & begins, other=0.0)
    else:
        count = tl.where(goes_on, count, 0)

    for i in range(0, count):
        chunk = first + i
        if REVERSE:
            chunk = last - 1 - i
        left = length - (chunk - before) * C
        nearest = tl.minimum(rows, left - 1)
        at = start + (chunk - before) * C
        tile = chunk.to(tl.int64) * G + g
        table = decays + tile * ROWS * C
        if EACH:
            tl.store(each + tile * V * K + inner, S.to(each.dtype.element_ty), mask=inside)
        x = read_rows(rows_of + (at * H + g // (G // H)) * K, nearest, H * K, 0, KP, K)
        place = columns_of + (at * G + g) * V + nearest[:, None] * (G * V) + v_cols[None, :]
        y = tl.load(place, mask=v_there[None, :], other=0.0)
        write = (tl.trans(y).to(tl.float32) * tl.load(table + WEIGHT * C + rows)[None, :]).to(x.dtype)
        across = tl.exp(tl.load(table + HIGH * C + C - 1) + tl.load(table + LOW * C + C - 1))
        S = S * across + dot(write, x)

    if EACH:
        if LAST:
            tl.store(last_state + outer, S, mask=inside & (goes_on == 0))
    else:
        to = border + (target.to(tl.int64) * G + g) * V * K
        tl.store(to + inner, S.to(border.dtype.element_ty), mask=inside & goes_on)


@triton.jit(do_not_specialize=COUNTS)
def carry(
    decays, sequences, border, given,
    G,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, PERIOD: tl.constexpr,
    REVERSE: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Turn what each stretch of a sequence adds into the state at its end; in REVERSE, at its start."""
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    n = lane // G
    g = lane % G
    first = tl.load(sequences + 4 * n)
    last = tl.load(sequences + 4 * n + 1)
    slot = tl.load(sequences + 4 * n + 2)
    v_cols = block * BV + tl.arange(0, BV)
    k_cols = tl.arange(0, KP)
    inside = (v_cols < V)[:, None] & (k_cols < K)[None, :]
    inner = v_cols[:, None] * K + k_cols[None, :]
    S = tl.zeros((BV, KP), tl.float32)
    if GIVEN:
        outer = lane.to(tl.int64) * K * V + k_cols[None, :] * V + v_cols[:, None]
        S = tl.load(given + outer, mask=inside, other=0.0)
    borders = (last - first + PERIOD - 1) // PERIOD - 1
    for i in range(0, borders):
        j = i
        passed = i
        if REVERSE:
            j = borders - 1 - i
            passed = j + 1
        chunks = first + passed * PERIOD + tl.arange(0, PERIOD)
        ends = decays + (chunks.to(tl.int64) * G + g) * ROWS * C + C - 1
        high = tl.load(ends + HIGH * C, mask=chunks < last, other=0.0).to(tl.float64)
        low = tl.load(ends + LOW * C, mask=chunks < last, other=0.0).to(tl.float64)
        across = tl.exp(tl.sum(high + low, 0).to(tl.float32))
        at = border + ((slot + j).to(tl.int64) * G + g) * V * K + inner
        S = S * across + tl.load(at, mask=inside, other=0.0).to(tl.float32)
        tl.store(at, S.to(border.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def scan(
    query, key, value, decays, sequences, offsets, stretch, border, state, out, final,
    H, G, scale,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """Go through a stretch's chunks: O = scale exp(G) Q S + M W, and S' from S and W."""
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    g = lane % G
    first, last, slot, n, before, after, start, length = stretch_of(stretch, sequences, offsets, lane // G)
    rows = tl.arange(0, C)
    v_cols = block * BV + tl.arange(0, BV)
    v_there = v_cols < V
    k_cols = tl.arange(0, KP)
    inside = v_there[:, None] & (k_cols < K)[None, :]
    outer = (n.to(tl.int64) * G + g) * K * V + k_cols[None, :] * V + v_cols[:, None]
    seen = rows[:, None] <= rows[None, :]

    left_off = border + (slot.to(tl.int64) * G + g) * V * K
    S = tl.load(left_off + v_cols[:, None] * K + k_cols[None, :], mask=inside & (slot >= 0), other=0.0).to(tl.float32)
    if STATE:
        S += tl.load(state + outer, mask=inside & (slot < 0), other=0.0)

    for c in range(0, last - first):
        chunk = first + c
        left = length - (chunk - before) * C
        nearest = tl.minimum(rows, left - 1)
        at = start + (chunk - before) * C
        table = decays + (chunk.to(tl.int64) * G + g) * ROWS * C
        base = (at * H + g // (G // H)) * K
        k = read_rows(key + base, nearest, H * K, 0, KP, K)
        q = read_rows(query + base, nearest, H * K, 0, KP, K)
        place = value + (at * G + g) * V + nearest[:, None] * (G * V) + v_cols[None, :]
        v = tl.load(place, mask=v_there[None, :], other=0.0)
        high, low = tl.load(table + HIGH * C + rows), tl.load(table + LOW * C + rows)
        pair = (high[None, :] - high[:, None]) + (low[None, :] - low[:, None])
        strength = tl.load(table + STRENGTH * C + rows) * scale
        D = tl.where(seen, tl.exp(tl.where(seen, pair, 0.0)), 0.0) * strength[:, None]
        m = (D * dot(k, tl.trans(q))).to(v.dtype)  # M b with the later token along the columns
        O = dot(S.to(q.dtype), tl.trans(q)) * tl.load(table + READS * C + rows)[None, :]
        O += dot(tl.trans(v), m)
        across = tl.exp(tl.load(table + HIGH * C + C - 1) + tl.load(table + LOW * C + C - 1))
        write = tl.trans(v).to(tl.float32) * tl.load(table + WRITES * C + rows)[None, :]
        S = S * across + dot(write.to(k.dtype), k)

        tl.store(
            out + (at * G + g) * V + rows[None, :] * (G * V) + v_cols[:, None],
            O.to(out.dtype.element_ty),
            mask=v_there[:, None] & (rows < left)[None, :],
        )

    tl.store(final + outer, S, mask=inside & (last == after))
