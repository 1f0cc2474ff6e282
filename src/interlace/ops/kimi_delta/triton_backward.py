"""Triton kernels of the backward pass: states again, gradients of states in reverse, and the gradients of each chunk.

README.md beside this file derives the lines; names are those there, and those of `triton_forward`. No kernel transposes
what a product left in registers: on Hopper, Triton 3.4 to 3.7 got such transposes wrong
(fla-org/flash-linear-attention#640, #984).
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS, dot, read_rows, read_state, stretch_of, write_state
from interlace.ops.kimi_delta.triton_forward import anchored, largest_entry, read_decays


@triton.jit(do_not_specialize=COUNTS)
def reverse(
    d_out, beta, T, M, q_in, k_in, k_out, high, sequences, offsets, stretch, d_border, d_final, d_state, d_exit,
    d_right, G,
    K: tl.constexpr, V: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
    FINAL: tl.constexpr, STATE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Go back through a stretch's chunks; write the gradients dS' [V, K] of each exit state, and dX = T^T dU.

    SPLIT: begin at no gradient, but in a sequence's last stretch; write only what comes out, to the border before it.
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

    dS1 = tl.zeros((BV, K1), tl.float32)
    dS2 = tl.zeros((BV, K2 if K2 > 0 else 16), tl.float32)
    if SPLIT:
        first = tl.where(slot < 0, last, first)
    else:
        goes_on = last < after
        following = tl.where(slot < 0, tl.load(sequences + 4 * n + 2), slot + 1).to(tl.int64) * G + g
        inner = d_border + (following * V + v_cols[:, None]) * K
        dS1, dS2 = read_state(inner, 1, k1, k2, in1 & goes_on, in2 & goes_on, K2)
    if FINAL:
        ends = last == after
        given1, given2 = read_state(d_final + memory, V, k1, k2, in1 & ends, in2 & ends, K2)
        dS1 += given1
        dS2 += given2

    for i in range(0, last - first):
        chunk = last - 1 - i
        left = length - (chunk - before) * C
        nearest = tl.minimum(rows, left - 1)
        lane_at = (start + (chunk - before) * C) * G + g
        tile = chunk.to(tl.int64) * G + g
        if not SPLIT:
            write_state(d_exit + (tile * V + v_cols[:, None]) * K, 1, k1, k2, in1, in2, dS1, dS2, K2)
        ka = read_rows(k_out + lane_at * K, nearest, G * K, 0, K1, K)
        read = dot(dS1.to(ka.dtype), tl.trans(ka))
        if K2 > 0:
            kb = read_rows(k_out + lane_at * K, nearest, G * K, K1, K2, K)
            read += dot(dS2.to(kb.dtype), tl.trans(kb))
        place = d_out + lane_at * V + rows[:, None] * (G * V) + v_cols[None, :]
        due = tl.trans(tl.load(place, mask=(rows < left)[:, None] & v_there[None, :], other=0.0))
        square = rows[:, None] * C + rows[None, :]
        m = tl.load(M + tile * C * C + square)
        dU = read + dot(due, m)
        end = high + lane_at * K + (tl.minimum(left, C) - 1) * (G * K)
        across1 = tl.exp2(tl.load(end + k1, mask=k1 < K, other=0.0))
        qa = read_rows(q_in + lane_at * K, nearest, G * K, 0, K1, K)
        more1 = dot(due, qa)
        if K2 > 0:
            qb = read_rows(q_in + lane_at * K, nearest, G * K, K1, K2, K)
            across2 = tl.exp2(tl.load(end + k2, mask=k2 < K, other=0.0))
            more2 = dot(due, qb)
        t = tl.load(T + tile * C * C + square)
        dX = dot(dU.to(t.dtype), t)
        if not SPLIT:
            tl.store(
                d_right + lane_at * V + rows[None, :] * (G * V) + v_cols[:, None],
                dX.to(d_right.dtype.element_ty),
                mask=v_there[:, None] & (rows < left)[None, :],
            )
        b = tl.load(beta + lane_at + nearest * G).to(tl.float32)
        takes = (dX * -b[None, :]).to(ka.dtype)
        ka = read_rows(k_in + lane_at * K, nearest, G * K, 0, K1, K)
        # One sum only; see gated_delta/triton_backward.py.
        dS1 = dS1 * across1[None, :] + (more1 + dot(takes, ka))
        if K2 > 0:
            kb = read_rows(k_in + lane_at * K, nearest, G * K, K1, K2, K)
            dS2 = dS2 * across2[None, :] + (more2 + dot(takes, kb))

    if SPLIT:
        if first < last:
            to = d_border + ((slot.to(tl.int64) * G + g) * V + v_cols[:, None]) * K
            write_state(to, 1, k1, k2, in1, in2, dS1, dS2, K2)
    elif STATE:
        starts = slot < 0
        write_state(d_state + memory, V, k1, k2, in1 & starts, in2 & starts, dS1, dS2, K2)


@triton.jit(do_not_specialize=COUNTS)
def pairs(
    value, beta, d_out, chunks, written, d_right, d_M, d_A, largest, dv, db,
    G, scale,
    V: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """Write scale dM and dA below the diagonal and mirrored above it, dv, and the first share of db.

    NARROW: in float16, divided by the largest entry, which is written too.
    """
    chunk = tl.program_id(0) // G
    g = tl.program_id(0) % G
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    count = (tl.load(chunks + 2 * chunk + 1) - first).to(tl.int32)
    rows = tl.arange(0, C)
    there = rows < count
    lane_at = first * G + g
    beta_rows = tl.load(beta + lane_at + rows * G, mask=there, other=0.0).to(tl.float32)

    dM = tl.zeros((C, C), tl.float32)
    dM_turned = tl.zeros((C, C), tl.float32)
    dA = tl.zeros((C, C), tl.float32)
    dA_turned = tl.zeros((C, C), tl.float32)
    strength = tl.zeros((C,), tl.float32)
    for at in range(0, V, BV):
        v_cols = at + tl.arange(0, BV)
        keep = there[:, None] & (v_cols < V)[None, :]
        place = lane_at * V + rows[:, None] * (G * V) + v_cols[None, :]
        due = tl.load(d_out + place, mask=keep, other=0.0)
        dx = tl.load(d_right + place, mask=keep, other=0.0)
        u = tl.load(written + place, mask=keep, other=0.0)
        dM += dot(due, tl.trans(u))
        dM_turned += dot(u, tl.trans(due))
        dA -= dot(dx, tl.trans(u))
        dA_turned -= dot(u, tl.trans(dx))
        wide = dx.to(tl.float32)
        strength += tl.sum(wide * tl.load(value + place, mask=keep, other=0.0).to(tl.float32), 1)
        tl.store(dv + place, (wide * beta_rows[:, None]).to(dv.dtype.element_ty), mask=keep)

    i, j = rows[:, None], rows[None, :]
    to = (chunk.to(tl.int64) * G + g) * C * C + i * C + j
    dM = scale * tl.where(i > j, dM, dM_turned)
    dA = tl.where(i > j, dA, dA_turned)
    M_most, A_most = largest_entry(dM, NARROW), largest_entry(dA, NARROW)
    tl.store(d_M + to, (dM / M_most).to(d_M.dtype.element_ty))
    tl.store(d_A + to, (dA / A_most).to(d_A.dtype.element_ty))
    tl.store(largest + 2 * tl.program_id(0), M_most)
    tl.store(largest + 2 * tl.program_id(0) + 1, A_most)
    tl.store(db + lane_at + rows * G, strength, mask=there)


@triton.jit(do_not_specialize=COUNTS)
def gradients(
    query, key, beta, d_out, high, low, chunks, entry, d_exit, written, d_right, d_M, d_A, largest, dq, dk, dg, db,
    H, G, total, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, LEVELS: tl.constexpr,
    NARROW: tl.constexpr,
):  # fmt: skip
    """Write a chunk's gradients for BK channels of its keys: dq, dk, dg, and a share of db."""
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    chunk = lane // G
    g = lane % G
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    count = (tl.load(chunks + 2 * chunk + 1) - first).to(tl.int32)
    rows = tl.arange(0, C)
    there = rows < count
    nearest = tl.minimum(rows, count - 1)
    cols = block * BK + tl.arange(0, BK)
    inside = there[:, None] & (cols < K)[None, :]
    tile = lane.to(tl.int64)
    lane_at = first * G + g

    reads = tl.zeros((C, BK), tl.float32)
    takes = tl.zeros((C, BK), tl.float32)
    writes = tl.zeros((C, BK), tl.float32)
    d_across = tl.zeros((BV, BK), tl.float32)
    itself = tl.zeros((C,), tl.float32)
    for at in range(0, V, BV):
        v_cols = at + tl.arange(0, BV)
        keep = there[:, None] & (v_cols < V)[None, :]
        place = lane_at * V + rows[:, None] * (G * V) + v_cols[None, :]
        due = tl.load(d_out + place, mask=keep, other=0.0)
        dx = tl.load(d_right + place, mask=keep, other=0.0)
        u = tl.load(written + place, mask=keep, other=0.0)
        square = (tile * V + v_cols[:, None]) * K + cols[None, :]
        held = (v_cols < V)[:, None] & (cols < K)[None, :]
        s = tl.load(entry + square, mask=held, other=0.0)
        ds = tl.load(d_exit + square, mask=held, other=0.0)
        reads += dot(due, s)
        takes -= dot(dx, s)
        writes += dot(u, ds)
        itself += tl.sum(due.to(tl.float32) * u.to(tl.float32), 1)
        d_across += s.to(tl.float32) * ds.to(tl.float32)

    base = (first * H + g // (G // H)) * K + rows[:, None] * (H * K) + cols[None, :]
    k = tl.load(key + base, mask=inside, other=0.0)
    q = tl.load(query + base, mask=inside, other=0.0)
    b = tl.load(beta + lane_at + rows * G, mask=there, other=0.0).to(tl.float32)[:, None]
    high += lane_at * K
    low += lane_at * K
    G_high, G_low = read_decays(high, low, nearest, cols, G * K, K, not NARROW)
    end_high, end_low = read_decays(high, low, count - 1 + tl.arange(0, 1), cols, G * K, K, not NARROW)
    into = tl.exp2(G_high)
    reads = reads * into * scale
    takes = takes * into
    writes = writes * tl.exp2((end_high - G_high) + (end_low - G_low))
    strength = tl.sum(takes * k.to(tl.float32), 1)
    takes = takes * b
    d_total = reads * q.to(tl.float32) + takes * k.to(tl.float32)
    carried = writes * k.to(tl.float32)
    writes += takes

    i, j = rows[:, None], rows[None, :]
    corner = tile * C * C + i * C + j
    dM = tl.load(d_M + corner)
    dA = tl.load(d_A + corner)
    q_most, k_most = largest_entry(q, NARROW), largest_entry(k, NARROW)
    M_most = tl.load(largest + 2 * lane) * k_most
    A_most = tl.load(largest + 2 * lane + 1) * k_most
    for level in range(0, LEVELS):
        factor = anchored(G_high, G_low, high, low, rows, count - 1, cols, G * K, level, K, not NARROW)
        later = ((rows >> level) & 1)[:, None] == 1
        across = ((i ^ j) >> level) == 1
        ks = k.to(tl.float32) * (factor / k_most)
        qs = tl.where(later, q.to(tl.float32) * (factor / q_most), ks).to(dM.dtype)
        bs = tl.where(later, b * ks, ks).to(dM.dtype)
        by_M = dot(tl.where(across, dM, 0.0).to(dM.dtype), qs)
        by_A = dot(tl.where(across, dA, 0.0).to(dM.dtype), bs)
        # Both rows of a pair take the same product, rounded as it was, so that in sums over both it cancels.
        paired = qs.to(tl.float32) * by_M * (M_most * q_most) + bs.to(tl.float32) * by_A * (A_most * k_most)
        d_total += tl.where(later, paired, -paired)
        strength += tl.sum(tl.where(later, ks * by_A * (A_most * k_most), 0.0), 1)
        by_M *= factor
        by_A *= factor * A_most
        reads += tl.where(later, by_M * M_most, 0.0)
        writes += tl.where(later, b * by_A, by_A + by_M * (M_most * q_most / k_most))

    # A row's gate decays what later rows see of earlier ones, and what earlier rows leave to the exit state.
    at_end = tl.exp2(end_high) * tl.sum(d_across, 0)[None, :]
    d_total += tl.where((rows == C - 1)[:, None], at_end, 0.0)
    d_gate = tl.cumsum(d_total, 0, reverse=True) + (tl.cumsum(carried, 0) - carried)
    to = lane_at * K + rows[:, None] * (G * K) + cols[None, :]
    tl.store(dg + to, d_gate, mask=inside)
    tl.store(db + ((block + 1).to(tl.int64) * total + first + rows) * G + g, strength, mask=there)
    own = (scale * itself)[:, None]  # a row's product with itself knows no decay
    tl.store(dq + to, (reads + own * k.to(tl.float32)).to(dq.dtype.element_ty), mask=inside)
    tl.store(dk + to, (writes + own * q.to(tl.float32)).to(dk.dtype.element_ty), mask=inside)
