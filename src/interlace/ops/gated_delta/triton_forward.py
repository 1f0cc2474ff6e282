"""Triton kernels of the forward pass: what needs no state, for all chunks at once, and the scan over chunks.

README.md beside this file derives the lines; names are those there. A program of `prepare` is one chunk and value head.
A program of `scan` and `states` is a stretch of a sequence, a value head and a block of value columns, with its state S
transposed in registers. Heads of K channels are read as K1 + K2 columns, powers of two. Rows past a sequence's end
repeat its last token and count nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core import normalise
from interlace.ops.core.tiles import COUNTS, dot, inverse, read_rows, read_state, stretch_of, write_state

FORGOTTEN = tl.constexpr(-2000.0)  # exp of it is 0 even in float64, and sums of it stay finite
# Rows of a chunk's table [ROWS, C] in float32: scale exp(G) |q|, as a query reads; b exp(G) |k|, as a key reads;
# exp(G_C - G) |k|, as a key writes; b; G in two parts; |q| and |k|, which stand for what normalises a query or key, or
# for 1. The first four are 0 past the sequence's end.
ROWS = tl.constexpr(8)
READS, TAKES, LEAVES, BETA, HIGH, LOW, QUERIES, KEYS = (tl.constexpr(i) for i in range(8))
L2_EPS = tl.constexpr(normalise.L2_EPS)


@triton.jit(do_not_specialize=COUNTS)
def prepare(
    query, key, log_decay, beta, chunks, T, M, decays, q_row, k_row, H, G, scale,
    K: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr,
    NARROW: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """Write T = (I + A)^-1 without beta on its columns, M, and the table of decays of each chunk and value head."""
    chunk = tl.program_id(0) // G
    g = tl.program_id(0) % G
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    count = (tl.load(chunks + 2 * chunk + 1) - first).to(tl.int32)
    rows = tl.arange(0, C)
    there = rows < count
    nearest = tl.minimum(rows, count - 1)

    gate = tl.load(log_decay + (first + nearest) * G + g).to(tl.float32)
    strength = tl.where(there, tl.load(beta + (first + nearest) * G + g).to(tl.float32), 0.0)
    total = tl.cumsum(tl.where(there, tl.where(gate < FORGOTTEN, FORGOTTEN, gate), 0.0).to(tl.float64), 0)
    high = total.to(tl.float32)
    low = (total - high.to(tl.float64)).to(tl.float32)
    end = tl.sum(tl.where(rows == C - 1, total, 0.0), 0)
    h = g // (G // H)
    k = read_rows(key + first * k_row + h * K, nearest, k_row, 0, K1, K)
    q = read_rows(query + first * q_row + h * K, nearest, q_row, 0, K1, K)
    k_length = tl.full((C,), 1.0, tl.float32)
    q_length = tl.full((C,), 1.0, tl.float32)
    if NORMALISE:
        k_length = tl.sum(k.to(tl.float32) * k.to(tl.float32), 1)
        q_length = tl.sum(q.to(tl.float32) * q.to(tl.float32), 1)
    if K2 > 0:
        k2 = read_rows(key + first * k_row + h * K, nearest, k_row, K1, K2, K)
        q2 = read_rows(query + first * q_row + h * K, nearest, q_row, K1, K2, K)
        if NORMALISE:
            k_length += tl.sum(k2.to(tl.float32) * k2.to(tl.float32), 1)
            q_length += tl.sum(q2.to(tl.float32) * q2.to(tl.float32), 1)
    kk = dot(k, tl.trans(k))
    if K2 > 0:
        kk += dot(k2, tl.trans(k2))
    qk = dot(q, tl.trans(k))
    if K2 > 0:
        qk += dot(q2, tl.trans(k2))
    if NORMALISE:
        k_length = tl.rsqrt(k_length + L2_EPS)
        q_length = tl.rsqrt(q_length + L2_EPS)
        kk = kk * k_length[:, None] * k_length[None, :]
        qk = qk * q_length[:, None] * k_length[None, :]

    into = tl.exp(high + low)
    table = decays + (chunk.to(tl.int64) * G + g) * ROWS * C + rows
    tl.store(table + READS * C, tl.where(there, scale * into * q_length, 0.0))
    tl.store(table + TAKES * C, strength * into * k_length)
    tl.store(table + LEAVES * C, tl.where(there, tl.exp((end - total).to(tl.float32)) * k_length, 0.0))
    tl.store(table + BETA * C, strength)
    tl.store(table + HIGH * C, high)
    tl.store(table + LOW * C, low)
    tl.store(table + QUERIES * C, q_length)
    tl.store(table + KEYS * C, k_length)

    earlier = (rows[:, None] > rows[None, :]) & there[:, None]
    pair = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    D = tl.exp(tl.where(earlier, pair, 0.0))
    N = tl.where(earlier, -strength[:, None] * D * kk, 0.0)
    seen = (rows[:, None] >= rows[None, :]) & there[:, None]
    corner = (chunk.to(tl.int64) * G + g) * C * C + rows[:, None] * C + rows[None, :]
    tl.store(M + corner, tl.where(seen, scale * D * qk, 0.0).to(M.dtype.element_ty))
    inverted = inverse(N, C, LEVELS, NARROW)
    tl.store(T + corner, tl.where(seen, inverted, 0.0).to(T.dtype.element_ty))


@triton.jit(do_not_specialize=COUNTS)
def scan(
    query, key, value, T, M, decays, sequences, offsets, stretch, border, state, out, final, kept,
    q_row, k_row, v_row, H, G,
    K: tl.constexpr, V: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
    STATE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Go through a stretch's chunks: O = scale exp(G) Q S + M U with U = T b (V - exp(G) K S), and S' from S and U.

    KEEP: write the state every so many chunks; 0 for never.
    """
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    g = lane % G
    h = g // (G // H)
    first, last, slot, n, before, after, start, length = stretch_of(stretch, sequences, offsets, lane // G)
    rows = tl.arange(0, C)
    v_cols = block * BV + tl.arange(0, BV)
    v_there = v_cols < V
    memory = (n.to(tl.int64) * G + g) * K * V + v_cols[:, None]
    k1 = tl.arange(0, K1)
    k2 = K1 + tl.arange(0, K2 if K2 > 0 else 16)
    in1 = v_there[:, None] & (k1 < K)[None, :]
    in2 = v_there[:, None] & (k2 < K)[None, :]

    inner = border + ((slot.to(tl.int64) * G + g) * V + v_cols[:, None]) * K
    S1, S2 = read_state(inner, 1, k1, k2, in1 & (slot >= 0), in2 & (slot >= 0), K2)
    if STATE:
        given1, given2 = read_state(state + memory, V, k1, k2, in1 & (slot < 0), in2 & (slot < 0), K2)
        S1 += given1
        S2 += given2

    for i in range(0, last - first):
        chunk = first + i
        c = chunk - before
        if KEEP > 0:
            if (c > 0) & (c % KEEP == 0):
                to = tl.load(sequences + 4 * n + 2) + c // KEEP - 1
                at = kept + ((to.to(tl.int64) * G + g) * V + v_cols[:, None]) * K
                write_state(at, 1, k1, k2, in1, in2, S1, S2, K2)
        left = length - c * C
        nearest = tl.minimum(rows, left - 1)
        at = start + c * C
        tile = chunk.to(tl.int64) * G + g
        table = decays + tile * ROWS * C
        k_at = key + at * k_row + h * K

        ka = read_rows(k_at, nearest, k_row, 0, K1, K)
        read = dot(S1.to(ka.dtype), tl.trans(ka))
        if K2 > 0:
            kb = read_rows(k_at, nearest, k_row, K1, K2, K)
            read += dot(S2.to(kb.dtype), tl.trans(kb))
        place = value + at * v_row + g * V + nearest[:, None] * v_row + v_cols[None, :]
        v = tl.load(place, mask=v_there[None, :], other=0.0)
        X = tl.trans(v).to(tl.float32) * tl.load(table + BETA * C + rows)[None, :]
        X -= read * tl.load(table + TAKES * C + rows)[None, :]
        square = rows[:, None] * C + rows[None, :]
        t = tl.load(T + tile * C * C + square)
        U = dot(X.to(t.dtype), tl.trans(t))

        qa = read_rows(query + at * q_row + h * K, nearest, q_row, 0, K1, K)
        read = dot(S1.to(qa.dtype), tl.trans(qa))
        if K2 > 0:
            qb = read_rows(query + at * q_row + h * K, nearest, q_row, K1, K2, K)
            read += dot(S2.to(qb.dtype), tl.trans(qb))
        m = tl.load(M + tile * C * C + square)
        O = read * tl.load(table + READS * C + rows)[None, :] + dot(U.to(m.dtype), tl.trans(m))
        tl.store(
            out + (at * G + g) * V + rows[None, :] * (G * V) + v_cols[:, None],
            O.to(out.dtype.element_ty),
            mask=v_there[:, None] & (rows < left)[None, :],
        )

        across = tl.exp(tl.load(table + HIGH * C + C - 1) + tl.load(table + LOW * C + C - 1))
        write = (U * tl.load(table + LEAVES * C + rows)[None, :]).to(ka.dtype)
        S1 = S1 * across + dot(write, ka)
        if K2 > 0:
            S2 = S2 * across + dot(write, kb)

    if last == after:
        write_state(final + memory, V, k1, k2, in1, in2, S1, S2, K2)


@triton.jit(do_not_specialize=COUNTS)
def states(
    key, value, T, decays, sequences, offsets, stretch, state, kept, entry, written, border, transition,
    k_row, v_row, H, G,
    K: tl.constexpr, V: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
    STATE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Write each chunk's entry state S [V, K] and what its tokens write, U; a program goes through one stretch.

    SPLIT: write only, to the border after a stretch, what the stretch makes of no state (the first one, of the given
    state); and to `transition`, what it makes of each unit state without values.
    """
    VALUES: tl.constexpr = (V + BV - 1) // BV
    BLOCKS: tl.constexpr = VALUES + (K + BV - 1) // BV * SPLIT
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    g = lane % G
    h = g // (G // H)
    first, last, slot, n, before, after, start, length = stretch_of(stretch, sequences, offsets, lane // G)
    rows = tl.arange(0, C)
    unit = block >= VALUES  # never without SPLIT
    v_cols = (block - tl.where(unit, VALUES, 0)) * BV + tl.arange(0, BV)
    v_there = v_cols < tl.where(unit, K, V)
    valued = v_there & (block < VALUES)
    k1 = tl.arange(0, K1)
    k2 = K1 + tl.arange(0, K2 if K2 > 0 else 16)
    in1 = v_there[:, None] & (k1 < K)[None, :]
    in2 = v_there[:, None] & (k2 < K)[None, :]

    if SPLIT:
        last = tl.where((last == after) | (unit & (slot < 0)), first, last)
        S1 = tl.where(unit & (v_cols[:, None] == k1[None, :]), 1.0, 0.0)
        S2 = tl.where(unit & (v_cols[:, None] == k2[None, :]), 1.0, 0.0)
    else:
        left_off = kept + ((slot.to(tl.int64) * G + g) * V + v_cols[:, None]) * K
        S1, S2 = read_state(left_off, 1, k1, k2, in1 & (slot >= 0), in2 & (slot >= 0), K2)
    if STATE:
        given = state + (n.to(tl.int64) * G + g) * K * V + v_cols[:, None]
        new = valued[:, None] & (slot < 0)
        given1, given2 = read_state(given, V, k1, k2, in1 & new, in2 & new, K2)
        S1 += given1
        S2 += given2

    for i in range(0, last - first):
        chunk = first + i
        left = length - (chunk - before) * C
        nearest = tl.minimum(rows, left - 1)
        at = start + (chunk - before) * C
        tile = chunk.to(tl.int64) * G + g
        table = decays + tile * ROWS * C
        k_at = key + at * k_row + h * K
        if not SPLIT:
            write_state(entry + (tile * V + v_cols[:, None]) * K, 1, k1, k2, in1, in2, S1, S2, K2)
        ka = read_rows(k_at, nearest, k_row, 0, K1, K)
        read = dot(S1.to(ka.dtype), tl.trans(ka))
        if K2 > 0:
            kb = read_rows(k_at, nearest, k_row, K1, K2, K)
            read += dot(S2.to(kb.dtype), tl.trans(kb))
        place = value + at * v_row + g * V + nearest[:, None] * v_row + v_cols[None, :]
        v = tl.load(place, mask=valued[None, :], other=0.0)
        X = tl.trans(v).to(tl.float32) * tl.load(table + BETA * C + rows)[None, :]
        X -= read * tl.load(table + TAKES * C + rows)[None, :]
        t = tl.load(T + tile * C * C + rows[:, None] * C + rows[None, :])
        U = dot(X.to(t.dtype), tl.trans(t))
        if not SPLIT:
            tl.store(
                written + (at * G + g) * V + rows[None, :] * (G * V) + v_cols[:, None],
                U.to(written.dtype.element_ty),
                mask=v_there[:, None] & (rows < left)[None, :],
            )
        across = tl.exp(tl.load(table + HIGH * C + C - 1) + tl.load(table + LOW * C + C - 1))
        write = (U * tl.load(table + LEAVES * C + rows)[None, :]).to(ka.dtype)
        S1 = S1 * across + dot(write, ka)
        if K2 > 0:
            S2 = S2 * across + dot(write, kb)

    if SPLIT:
        if first < last:
            target = tl.where(slot < 0, tl.load(sequences + 4 * n + 2), slot + 1).to(tl.int64) * G + g
            to = tl.where(unit, transition + target * K * K, border + target * V * K) + v_cols[:, None] * K
            write_state(to, 1, k1, k2, in1, in2, S1, S2, K2)
