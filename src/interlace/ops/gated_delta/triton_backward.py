"""Triton kernels of the backward pass: states again, gradients of states in reverse, and the gradients of each chunk.

README.md beside this file derives the lines; names are those there, and those of `triton_forward`. No kernel transposes
what a product left in registers: on Hopper, Triton 3.4 to 3.7 got such transposes wrong
(fla-org/flash-linear-attention#640, #984).
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS, dot, read_rows, read_state, stretch_of, write_state
from interlace.ops.gated_delta.triton_forward import (
    BETA,
    HIGH,
    KEYS,
    LEAVES,
    LOW,
    QUERIES,
    READS,
    ROWS,
    TAKES,
)


@triton.jit(do_not_specialize=COUNTS)
def reverse(
    query, key, d_out, T, M, decays, sequences, offsets, stretch, d_border, d_final, d_state, d_exit, d_right,
    q_row, k_row, H, G,
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
        at = start + (chunk - before) * C
        tile = chunk.to(tl.int64) * G + g
        table = decays + tile * ROWS * C
        k_at = key + at * k_row + h * K
        if not SPLIT:
            write_state(d_exit + (tile * V + v_cols[:, None]) * K, 1, k1, k2, in1, in2, dS1, dS2, K2)
        ka = read_rows(k_at, nearest, k_row, 0, K1, K)
        read = dot(dS1.to(ka.dtype), tl.trans(ka))
        if K2 > 0:
            kb = read_rows(k_at, nearest, k_row, K1, K2, K)
            read += dot(dS2.to(kb.dtype), tl.trans(kb))
        place = d_out + (at * G + g) * V + nearest[:, None] * (G * V) + v_cols[None, :]
        due = tl.load(place, mask=v_there[None, :], other=0.0)
        square = rows[:, None] * C + rows[None, :]
        m = tl.load(M + tile * C * C + square)
        dU = dot(tl.trans(due), m) + read * tl.load(table + LEAVES * C + rows)[None, :]
        across = tl.exp(tl.load(table + HIGH * C + C - 1) + tl.load(table + LOW * C + C - 1))
        reads = (tl.trans(due).to(tl.float32) * tl.load(table + READS * C + rows)[None, :]).to(ka.dtype)
        qa = read_rows(query + at * q_row + h * K, nearest, q_row, 0, K1, K)
        more1 = dot(reads, qa)
        if K2 > 0:
            qb = read_rows(query + at * q_row + h * K, nearest, q_row, K1, K2, K)
            more2 = dot(reads, qb)
        t = tl.load(T + tile * C * C + square)
        dX = dot(dU.to(t.dtype), t)
        if not SPLIT:
            tl.store(
                d_right + (at * G + g) * V + rows[None, :] * (G * V) + v_cols[:, None],
                dX.to(d_right.dtype.element_ty),
                mask=v_there[:, None] & (rows < left)[None, :],
            )
        takes = (dX * -tl.load(table + TAKES * C + rows)[None, :]).to(ka.dtype)
        # One sum only: for Blackwell, Triton 3.6 and 3.7 read an accumulator before the second of two products into it
        # is done (triton-lang/triton#10821).
        dS1 = dS1 * across + (more1 + dot(takes, ka))
        if K2 > 0:
            dS2 = dS2 * across + (more2 + dot(takes, kb))

    if SPLIT:
        if first < last:
            to = d_border + ((slot.to(tl.int64) * G + g) * V + v_cols[:, None]) * K
            write_state(to, 1, k1, k2, in1, in2, dS1, dS2, K2)
    elif STATE:
        starts = slot < 0
        write_state(d_state + memory, V, k1, k2, in1 & starts, in2 & starts, dS1, dS2, K2)


@triton.jit(do_not_specialize=COUNTS)
def gradients(
    query, key, value, d_out, decays, chunks, entry, d_exit, written, d_right, dq, dk, dv, dg, db,
    q_row, k_row, v_row, dv_row, H, G, total, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """Write a chunk's gradients for BK channels of its keys: dq, dk, and shares of dg and db; with the first, dv."""
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    chunk = lane // G
    g = lane % G
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    count = (tl.load(chunks + 2 * chunk + 1) - first).to(tl.int32)
    rows = tl.arange(0, C)
    there = rows < count
    cols = block * BK + tl.arange(0, BK)
    inside = there[:, None] & (cols < K)[None, :]
    tile = lane.to(tl.int64)
    table = decays + tile * ROWS * C + rows
    beta = tl.load(table + BETA * C)

    dM = tl.zeros((C, C), tl.float32)
    dM_turned = tl.zeros((C, C), tl.float32)
    dA = tl.zeros((C, C), tl.float32)
    dA_turned = tl.zeros((C, C), tl.float32)
    reads = tl.zeros((C, BK), tl.float32)
    takes = tl.zeros((C, BK), tl.float32)
    writes = tl.zeros((C, BK), tl.float32)
    d_across = tl.zeros((BV, BK), tl.float32)
    strength = tl.zeros((C,), tl.float32)
    itself = tl.zeros((C,), tl.float32)
    for at in range(0, V, BV):
        v_cols = at + tl.arange(0, BV)
        keep = there[:, None] & (v_cols < V)[None, :]
        place = (first * G + g) * V + rows[:, None] * (G * V) + v_cols[None, :]
        due = tl.load(d_out + place, mask=keep, other=0.0)
        dx = tl.load(d_right + place, mask=keep, other=0.0)
        u = tl.load(written + place, mask=keep, other=0.0)
        square = (tile * V + v_cols[:, None]) * K + cols[None, :]
        held = (v_cols < V)[:, None] & (cols < K)[None, :]
        s = tl.load(entry + square, mask=held, other=0.0)
        ds = tl.load(d_exit + square, mask=held, other=0.0)
        dM += dot(due, tl.trans(u))
        dM_turned += dot(u, tl.trans(due))
        dA -= dot(dx, tl.trans(u))
        dA_turned -= dot(u, tl.trans(dx))
        reads += dot(due, s)
        takes -= dot(dx, s)
        writes += dot(u, ds)
        itself += tl.sum(due.to(tl.float32) * u.to(tl.float32), 1)
        d_across += s.to(tl.float32) * ds.to(tl.float32)
        if block == 0:
            wide = dx.to(tl.float32)
            read = value + first * v_row + g * V + rows[:, None] * v_row + v_cols[None, :]
            strength += tl.sum(wide * tl.load(read, mask=keep, other=0.0).to(tl.float32), 1)
            to = dv + first * dv_row + g * V + rows[:, None] * dv_row + v_cols[None, :]
            tl.store(to, (wide * beta[:, None]).to(dv.dtype.element_ty), mask=keep)

    high, low = tl.load(table + HIGH * C), tl.load(table + LOW * C)
    pair = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    later = rows[:, None] > rows[None, :]
    earlier = rows[:, None] < rows[None, :]
    D = tl.where(later, tl.exp(tl.where(later, pair, 0.0)), 0.0)
    D_turned = tl.where(earlier, tl.exp(tl.where(earlier, -pair, 0.0)), 0.0)

    h = g // (G // H)
    k = tl.load(key + first * k_row + h * K + rows[:, None] * k_row + cols[None, :], mask=inside, other=0.0)
    q = tl.load(query + first * q_row + h * K + rows[:, None] * q_row + cols[None, :], mask=inside, other=0.0)
    if NORMALISE:
        k = (k.to(tl.float32) * tl.load(table + KEYS * C)[:, None]).to(key.dtype.element_ty)
        q = (q.to(tl.float32) * tl.load(table + QUERIES * C)[:, None]).to(query.dtype.element_ty)
    k_wide, q_wide = k.to(tl.float32), q.to(tl.float32)
    into = tl.exp(high + low)
    end = decays + tile * ROWS * C + C - 1
    high_end, low_end = tl.load(end + HIGH * C), tl.load(end + LOW * C)
    reads = reads * (scale * into)[:, None] + dot((scale * dM * D).to(k.dtype), k)
    takes = takes * into[:, None] + dot((dA * D).to(k.dtype), k)
    strength += tl.sum(takes * k_wide, 1)
    takes = takes * beta[:, None]
    writes = writes * tl.exp((high_end - high) + (low_end - low))[:, None]
    carried = tl.sum(writes * k_wide, 1)
    within = dot((scale * dM_turned * D_turned).to(k.dtype), q)
    within += dot((dA_turned * D_turned * beta[None, :]).to(k.dtype), k)

    # A row's gate decays what later rows see of earlier ones, and what earlier rows leave to the exit state.
    across = tl.exp(high_end + low_end) * tl.sum(tl.sum(d_across, 1), 0)
    d_total = tl.sum(reads * q_wide + (takes - within) * k_wide, 1) + tl.where(rows == C - 1, across, 0.0)
    d_gate = tl.cumsum(d_total, 0, reverse=True) + (tl.cumsum(carried, 0) - carried)
    share = (block.to(tl.int64) * total + first + rows) * G + g
    tl.store(dg + share, d_gate, mask=there)
    tl.store(db + share, strength, mask=there)

    to_keys = (first * G + g) * K + rows[:, None] * (G * K) + cols[None, :]
    own = (scale * itself)[:, None]  # a row's product with itself knows no decay
    tl.store(dq + to_keys, (reads + own * k_wide).to(dq.dtype.element_ty), mask=inside)
    tl.store(dk + to_keys, (takes + writes + within + own * q_wide).to(dk.dtype.element_ty), mask=inside)
