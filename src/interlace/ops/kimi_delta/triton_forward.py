"""Triton kernels of the forward pass: all decays, what needs no state in each chunk, and the scan over chunks.

README.md beside this file derives the lines; names are those there. A program of `decay` and `prepare` is one chunk and
value head. A program of `scan` and `states` is a stretch of a sequence, a value head and a block of value columns. Its
state S lies in registers, transposed. The cumulated log decay G is in powers of two, so that exp2 serves. Rows past a
sequence's end repeat its last token and count nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS, dot, inverse, read_rows, read_state, stretch_of, write_state

FORGOTTEN = tl.constexpr(-104.0)  # exp of it is 0 in float32
POWERS = tl.constexpr(1.4426950408889634)  # 1 / log 2


@triton.jit(do_not_specialize=COUNTS)
def decay(
    query, key, log_decay, chunks, q_in, k_in, k_out, high, low, H, G, scale,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Write scale exp(G) Q, exp(G) K, exp(G_C - G) K and G for BK channels of a chunk; with EXACT, G in two parts."""
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    chunk = lane // G
    g = lane % G
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    count = (tl.load(chunks + 2 * chunk + 1) - first).to(tl.int32)
    rows = tl.arange(0, C)
    cols = block * BK + tl.arange(0, BK)
    inside = (rows < count)[:, None] & (cols < K)[None, :]
    to = (first * G + g) * K + rows[:, None] * (G * K) + cols[None, :]
    base = (first * H + g // (G // H)) * K + rows[:, None] * (H * K) + cols[None, :]

    gate = tl.load(log_decay + to, mask=inside, other=0.0)
    gate = tl.where(gate < FORGOTTEN, FORGOTTEN, gate).to(tl.float64)
    total = tl.cumsum(gate * POWERS, 0)
    end = tl.sum(tl.where((rows == C - 1)[:, None], total, 0.0), 0)
    into = tl.exp2(total.to(tl.float32))
    out_of = tl.exp2((end[None, :] - total).to(tl.float32))
    k = tl.load(key + base, mask=inside, other=0.0).to(tl.float32)
    q = tl.load(query + base, mask=inside, other=0.0).to(tl.float32)
    tl.store(q_in + to, (scale * into * q).to(q_in.dtype.element_ty), mask=inside)
    tl.store(k_in + to, (into * k).to(k_in.dtype.element_ty), mask=inside)
    tl.store(k_out + to, (out_of * k).to(k_out.dtype.element_ty), mask=inside)
    G_high = total.to(tl.float32)
    tl.store(high + to, G_high, mask=inside)
    if EXACT:
        tl.store(low + to, (total - G_high.to(tl.float64)).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def read_decays(high, low, rows, cols, stride, K: tl.constexpr, EXACT: tl.constexpr):
    """Return G [rows, cols] in two parts; the second is 0 unless EXACT."""
    place = rows[:, None] * stride + cols[None, :]
    keep = (cols < K)[None, :]
    G_high = tl.load(high + place, mask=keep, other=0.0)
    G_low = tl.zeros_like(G_high)
    if EXACT:
        G_low = tl.load(low + place, mask=keep, other=0.0)
    return G_high, G_low


@triton.jit(do_not_specialize=COUNTS)
def anchored(G_high, G_low, high, low, rows, last, cols, stride, level, K: tl.constexpr, EXACT: tl.constexpr):
    """Return exp(-|G - G_h|): h is the last row of the first half of a row's block of 2^(level + 1) rows."""
    half = rows >> level
    h = tl.minimum(((half | 1) << level) - 1, last)
    h_high, h_low = read_decays(high, low, h, cols, stride, K, EXACT)
    gap = G_high - h_high
    if EXACT:
        gap += G_low - h_low
    return tl.exp2(-tl.abs(gap))


@triton.jit
def largest_entry(x, NARROW: tl.constexpr):
    """Return what x is divided by for float16 to hold it: its largest entry; 1 if that is about 0, or not NARROW."""
    largest = 1.0
    if NARROW:
        most = tl.max(tl.abs(x.to(tl.float32)))
        largest = tl.where(most > 1e-30, most, 1.0)
    return largest


@triton.jit(do_not_specialize=COUNTS)
def prepare(
    query, key, high, low, beta, chunks, T, M, H, G, scale,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """Write T = (I + A)^-1 and M of each chunk and value head, C = 2^LEVELS.

    At each level, blocks of 2^(level + 1) rows are halved. A row lies in one half, so that it has one factor.
    """
    chunk = tl.program_id(0) // G
    g = tl.program_id(0) % G
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    count = (tl.load(chunks + 2 * chunk + 1) - first).to(tl.int32)
    rows = tl.arange(0, C)
    there = rows < count
    nearest = tl.minimum(rows, count - 1)
    i, j = rows[:, None], rows[None, :]
    apart = tl.where(i > j, i ^ j, 0)
    read = (first * H + g // (G // H)) * K
    gates = (first * G + g) * K

    qk = tl.zeros((C, C), tl.float32)
    kk = tl.zeros((C, C), tl.float32)
    itself = tl.zeros((C,), tl.float32)
    for at in range(0, K, BK):
        cols = at + tl.arange(0, BK)
        place = nearest[:, None] * (H * K) + cols[None, :]
        k = tl.load(key + read + place, mask=(cols < K)[None, :], other=0.0)
        q = tl.load(query + read + place, mask=(cols < K)[None, :], other=0.0)
        itself += tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)
        q_most, k_most = largest_entry(q, NARROW), largest_entry(k, NARROW)
        G_high, G_low = read_decays(high + gates, low + gates, nearest, cols, G * K, K, not NARROW)
        for level in range(0, LEVELS):
            factor = anchored(
                G_high, G_low, high + gates, low + gates, rows, count - 1, cols, G * K, level, K, not NARROW
            )
            later = ((rows >> level) & 1)[:, None] == 1
            corner = (apart >> level) == 1
            ks = k.to(tl.float32) * (factor / k_most)
            mixed = tl.where(later, q.to(tl.float32) * (factor / q_most), ks)
            if NARROW:
                ks = ks.to(tl.float16)
                mixed = mixed.to(tl.float16)
            qk += tl.where(corner, dot(mixed, tl.trans(mixed)) * (q_most * k_most), 0.0)
            kk += tl.where(corner, dot(ks, tl.trans(ks)) * (k_most * k_most), 0.0)

    strength = tl.load(beta + (first + nearest) * G + g).to(tl.float32)
    to = (chunk.to(tl.int64) * G + g) * C * C + i * C + j
    seen = (i >= j) & there[:, None]
    qk = tl.where(i == j, itself[:, None], qk)
    tl.store(M + to, tl.where(seen, scale * qk, 0.0).to(M.dtype.element_ty))
    inverted = inverse(tl.where(there[:, None], -strength[:, None] * kk, 0.0), C, LEVELS, NARROW)
    tl.store(T + to, tl.where(seen, inverted, 0.0).to(T.dtype.element_ty))


@triton.jit(do_not_specialize=COUNTS)
def scan(
    value, beta, T, M, q_in, k_in, k_out, high, sequences, offsets, stretch, border, state, out, final, kept,
    G,
    K: tl.constexpr, V: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
    STATE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Go through a stretch's chunks: O = Q_in S + M U with U = T b (V - K_in S), and S' from S and U.

    KEEP: write the state every so many chunks; 0 for never.
    """
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    g = lane % G
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
        lane_at = (start + c * C) * G + g
        tile = chunk.to(tl.int64) * G + g

        ka = read_rows(k_in + lane_at * K, nearest, G * K, 0, K1, K)
        read = dot(S1.to(ka.dtype), tl.trans(ka))
        if K2 > 0:
            kb = read_rows(k_in + lane_at * K, nearest, G * K, K1, K2, K)
            read += dot(S2.to(kb.dtype), tl.trans(kb))
        place = value + lane_at * V + nearest[:, None] * (G * V) + v_cols[None, :]
        v = tl.load(place, mask=v_there[None, :], other=0.0)
        b = tl.load(beta + lane_at + nearest * G).to(tl.float32)
        X = (tl.trans(v).to(tl.float32) - read) * b[None, :]
        square = rows[:, None] * C + rows[None, :]
        t = tl.load(T + tile * C * C + square)
        U = dot(X.to(t.dtype), tl.trans(t))

        qa = read_rows(q_in + lane_at * K, nearest, G * K, 0, K1, K)
        m = tl.load(M + tile * C * C + square)
        O = dot(S1.to(qa.dtype), tl.trans(qa)) + dot(U.to(m.dtype), tl.trans(m))
        if K2 > 0:
            qb = read_rows(q_in + lane_at * K, nearest, G * K, K1, K2, K)
            O += dot(S2.to(qb.dtype), tl.trans(qb))
        tl.store(
            out + lane_at * V + rows[None, :] * (G * V) + v_cols[:, None],
            O.to(out.dtype.element_ty),
            mask=v_there[:, None] & (rows < left)[None, :],
        )

        end = high + lane_at * K + (tl.minimum(left, C) - 1) * (G * K)
        ka = read_rows(k_out + lane_at * K, nearest, G * K, 0, K1, K)
        across1 = tl.exp2(tl.load(end + k1, mask=k1 < K, other=0.0))
        S1 = S1 * across1[None, :] + dot(U.to(ka.dtype), ka)
        if K2 > 0:
            kb = read_rows(k_out + lane_at * K, nearest, G * K, K1, K2, K)
            across2 = tl.exp2(tl.load(end + k2, mask=k2 < K, other=0.0))
            S2 = S2 * across2[None, :] + dot(U.to(kb.dtype), kb)

    if last == after:
        write_state(final + memory, V, k1, k2, in1, in2, S1, S2, K2)


@triton.jit(do_not_specialize=COUNTS)
def states(
    value, beta, T, k_in, k_out, high, sequences, offsets, stretch, state, kept, entry, written, border, transition,
    G,
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
        lane_at = (start + (chunk - before) * C) * G + g
        tile = chunk.to(tl.int64) * G + g
        if not SPLIT:
            write_state(entry + (tile * V + v_cols[:, None]) * K, 1, k1, k2, in1, in2, S1, S2, K2)
        ka = read_rows(k_in + lane_at * K, nearest, G * K, 0, K1, K)
        read = dot(S1.to(ka.dtype), tl.trans(ka))
        if K2 > 0:
            kb = read_rows(k_in + lane_at * K, nearest, G * K, K1, K2, K)
            read += dot(S2.to(kb.dtype), tl.trans(kb))
        place = value + lane_at * V + nearest[:, None] * (G * V) + v_cols[None, :]
        v = tl.load(place, mask=valued[None, :], other=0.0)
        b = tl.load(beta + lane_at + nearest * G).to(tl.float32)
        X = (tl.trans(v).to(tl.float32) - read) * b[None, :]
        t = tl.load(T + tile * C * C + rows[:, None] * C + rows[None, :])
        U = dot(X.to(t.dtype), tl.trans(t))
        if not SPLIT:
            tl.store(
                written + lane_at * V + rows[None, :] * (G * V) + v_cols[:, None],
                U.to(written.dtype.element_ty),
                mask=v_there[:, None] & (rows < left)[None, :],
            )
        end = high + lane_at * K + (tl.minimum(left, C) - 1) * (G * K)
        ka = read_rows(k_out + lane_at * K, nearest, G * K, 0, K1, K)
        across1 = tl.exp2(tl.load(end + k1, mask=k1 < K, other=0.0))
        S1 = S1 * across1[None, :] + dot(U.to(ka.dtype), ka)
        if K2 > 0:
            kb = read_rows(k_out + lane_at * K, nearest, G * K, K1, K2, K)
            across2 = tl.exp2(tl.load(end + k2, mask=k2 < K, other=0.0))
            S2 = S2 * across2[None, :] + dot(U.to(kb.dtype), kb)

    if SPLIT:
        if first < last:
            target = tl.where(slot < 0, tl.load(sequences + 4 * n + 2), slot + 1).to(tl.int64) * G + g
            to = tl.where(unit, transition + target * K * K, border + target * V * K) + v_cols[:, None] * K
            write_state(to, 1, k1, k2, in1, in2, S1, S2, K2)
