"""Triton kernels of one decoded token: each key head's cache is read once, in stretches that run at once.

A program of `attend` is a sequence, a key head and a stretch of SPAN slots, for all query heads that read the key head.
Stretches do not depend on the batch, on the capacity, or on how much of it is used: so neither do the sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import dot

LOWEST = tl.constexpr(-1.0e30)  # below every score; the difference of two is 0, and not NaN


@triton.jit
def held_and_slot(place, WINDOW: tl.constexpr):
    """Return how many slots hold a token once the one at `place` is written, and its slot."""
    if WINDOW > 0:
        return tl.minimum(place + 1, WINDOW).to(tl.int32), (place % WINDOW).to(tl.int32)
    return (place + 1).to(tl.int32), place.to(tl.int32)


@triton.jit(do_not_specialize=["capacity", "stretches"])
def attend(
    query, key, value, keys, values, places, out, parts, sums, q_row, k_row, v_row, capacity, stretches, scale,
    J: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr,
    ROWS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Attend to a stretch; the first one also attends to the new token, and writes it into the cache.

    WHOLE: there is one stretch, and its result is the output. Else each leaves its sum, and its highest score and sum
    of weights.
    """
    stretch = tl.program_id(0) % stretches
    lane = (tl.program_id(0) // stretches).to(tl.int64)
    n = lane // J
    j = lane % J
    held, slot = held_and_slot(tl.load(places + n), WINDOW)
    first = stretch * SPAN
    if first >= held:
        return
    rows = tl.arange(0, ROWS)
    in_k = tl.arange(0, KP)
    in_v = tl.arange(0, VP)
    real = (rows < GROUP)[:, None]
    q_at = query + n * q_row + j * (GROUP * K) + rows[:, None] * K + in_k[None, :]
    q = tl.load(q_at, mask=real & (in_k < K)[None, :], other=0.0)

    top = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, VP), tl.float32)
    start = (n * capacity + first) * J + j
    k_base = keys + start * K
    v_base = values + start * V
    for begin in range(0, tl.minimum(SPAN, held - first), BLOCK):
        tokens = begin + tl.arange(0, BLOCK)
        seen = (first + tokens < held) & (first + tokens != slot)  # another program may be writing the new token
        k = tl.load(k_base + tokens[:, None] * (J * K) + in_k[None, :], mask=seen[:, None] & (in_k < K), other=0.0)
        v = tl.load(v_base + tokens[:, None] * (J * V) + in_v[None, :], mask=seen[:, None] & (in_v < V), other=0.0)
        scores = tl.where(seen[None, :], dot(q, tl.trans(k)) * scale, LOWEST)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.where(seen[None, :], tl.exp(scores - higher[:, None]), 0.0)
        shrunk = tl.exp(top - higher)
        total = total * shrunk + tl.sum(weights, 1)
        acc = acc * shrunk[:, None] + dot(weights.to(v.dtype), v)
        top = higher

    if stretch == 0:
        new_k = tl.load(key + n * k_row + j * K + in_k, mask=in_k < K, other=0.0)
        new_v = tl.load(value + n * v_row + j * V + in_v, mask=in_v < V, other=0.0)
        own = (n * capacity + slot) * J + j
        tl.store(keys + own * K + in_k, new_k, mask=in_k < K)
        tl.store(values + own * V + in_v, new_v, mask=in_v < V)
        score = tl.sum(q.to(tl.float32) * new_k.to(tl.float32)[None, :], 1) * scale
        higher = tl.maximum(top, score)
        shrunk = tl.exp(top - higher)
        weight = tl.exp(score - higher)
        total = total * shrunk + weight
        acc = acc * shrunk[:, None] + weight[:, None] * new_v.to(tl.float32)[None, :]
        top = higher

    if WHOLE:
        to = out + (lane * GROUP + rows[:, None]) * V + in_v[None, :]
        tl.store(to, (acc / total[:, None]).to(out.dtype.element_ty), mask=real & (in_v < V)[None, :])
    else:
        part = (lane * stretches + stretch) * GROUP + rows
        tl.store(parts + part[:, None] * V + in_v[None, :], acc, mask=real & (in_v < V)[None, :])
        tl.store(sums + 2 * part, top, mask=rows < GROUP)
        tl.store(sums + 2 * part + 1, total, mask=rows < GROUP)


@triton.jit(do_not_specialize=["stretches"])
def join(
    parts, sums, places, out, stretches,
    J: tl.constexpr, GROUP: tl.constexpr, V: tl.constexpr, VP: tl.constexpr,
    SPAN: tl.constexpr, MANY: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Join the stretches of a sequence and query head, MANY at a time, in order."""
    lane = (tl.program_id(0) // GROUP).to(tl.int64)
    row = tl.program_id(0) % GROUP
    held, _ = held_and_slot(tl.load(places + lane // J), WINDOW)
    in_v = tl.arange(0, VP)
    top = tl.full((), LOWEST, tl.float32)
    total = tl.zeros((), tl.float32)
    acc = tl.zeros((VP,), tl.float32)
    count = (held + SPAN - 1) // SPAN
    for begin in range(0, count, MANY):
        some = begin + tl.arange(0, MANY)
        there = some < count
        part = (lane * stretches + some) * GROUP + row
        tops = tl.load(sums + 2 * part, mask=there, other=LOWEST)
        totals = tl.load(sums + 2 * part + 1, mask=there, other=0.0)
        place = parts + part[:, None] * V + in_v[None, :]
        values = tl.load(place, mask=there[:, None] & (in_v < V)[None, :], other=0.0)
        higher = tl.maximum(top, tl.max(tops, 0))
        weights = tl.where(there, tl.exp(tops - higher), 0.0)
        shrunk = tl.exp(top - higher)
        total = total * shrunk + tl.sum(totals * weights, 0)
        acc = acc * shrunk + tl.sum(values * weights[:, None], 0)
        top = higher
    to = out + (lane * GROUP + row) * V + in_v
    tl.store(to, (acc / total).to(out.dtype.element_ty), mask=in_v < V)
