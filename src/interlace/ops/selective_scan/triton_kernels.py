"""Triton kernels of the selective scan: the states at the borders of stretches, the outputs, and the gradients.

README.md beside this file derives the lines; names are those there. A tile is L tokens of one sequence, a stretch a run
of tiles. Arrays of a tile are [L, KP, BD]: channels lie along a warp's lanes, entries of the state across warps, and a
thread has all tokens of its entries. Tokens past a sequence's end have step 0: they keep the state and write nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS


@triton.jit
def _both(decay, value, later_decay, later_value):
    """Join two maps h -> decay h + value, the second one applied last."""
    return decay * later_decay, later_decay * value + later_value


@triton.jit
def collect(
    x, step, A, lines, sequences, offsets, stretch, border, lasted,
    D,
    K: tl.constexpr, KP: tl.constexpr, L: tl.constexpr, BD: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Go through a stretch from a state of zero, and write the end to `border` and the sum of steps to `lasted`.

    Forward x is x, lines are B and the end is h. In REVERSE x is the outputs' gradient, lines are C, and the end is the
    gradient of the state before the stretch.
    """
    blocks = (D + BD - 1) // BD
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    piece = tl.program_id(0) // blocks
    first, last = tl.load(stretch + 4 * piece), tl.load(stretch + 4 * piece + 1)
    slot, n = tl.load(stretch + 4 * piece + 2), tl.load(stretch + 4 * piece + 3)
    before, after = tl.load(sequences + 4 * n), tl.load(sequences + 4 * n + 1)
    start = tl.load(offsets + n).to(tl.int64)
    length = (tl.load(offsets + n + 1) - start).to(tl.int32)
    rows = tl.arange(0, L)
    k = tl.arange(0, KP)
    inside = (k < K)[:, None] & (d < D)[None, :]
    rate = tl.load(A + d[None, :] * K + k[:, None], mask=inside, other=0.0).to(tl.float32)
    if REVERSE:
        target, goes_on = slot, slot >= 0
    else:
        target, goes_on = tl.where(slot >= 0, slot + 1, tl.load(sequences + 4 * n + 2)), last < after

    h = tl.zeros((KP, BD), tl.float32)
    whole = tl.zeros((BD,), tl.float32)
    for i in range(0, tl.where(goes_on, last - first, 0)):
        tile = first + i
        if REVERSE:
            tile = last - 1 - i
        at = start + (tile - before) * L
        left = length - (tile - before) * L
        there = (rows < left)[:, None] & (d < D)[None, :]
        known = (rows < left)[:, None] & (k < K)[None, :]
        place = rows[:, None] * D + d[None, :]
        s = tl.load(step + at * D + place, mask=there, other=0.0).to(tl.float32)
        writes = tl.load(x + at * D + place, mask=there, other=0.0).to(tl.float32)
        line = tl.load(lines + at * K + rows[:, None] * K + k[None, :], mask=known, other=0.0).to(tl.float32)
        if REVERSE:
            passed = tl.cumsum(s, 0)  # steps from the tile's start to a token
        else:
            writes *= s
            follows = (rows < L - 1)[:, None] & (rows + 1 < left)[:, None] & (d < D)[None, :]
            later = tl.load(step + (at + 1) * D + place, mask=follows, other=0.0).to(tl.float32)
            passed = tl.cumsum(later, 0, reverse=True)  # steps from a token to the tile's end
        reach = tl.exp(passed[:, None, :] * rate[None, :, :])
        steps = tl.sum(s, 0)
        h = h * tl.exp(steps[None, :] * rate) + tl.sum(reach * writes[:, None, :] * line[:, :, None], 0)
        whole += steps
    to = border + target.to(tl.int64) * K * D
    tl.store(to + k[:, None] * D + d[None, :], h, mask=inside & goes_on)
    tl.store(lasted + target.to(tl.int64) * D + d, whole, mask=(d < D) & goes_on)


@triton.jit
def carry(
    A, sequences, border, lasted, given,
    D,
    K: tl.constexpr, KP: tl.constexpr, BD: tl.constexpr, PERIOD: tl.constexpr, REVERSE: tl.constexpr,
    GIVEN: tl.constexpr,
):  # fmt: skip
    """Turn what each stretch of a sequence leaves from zero into the state at its end; in REVERSE, at its start."""
    blocks = (D + BD - 1) // BD
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    n = tl.program_id(0) // blocks
    slot = tl.load(sequences + 4 * n + 2)
    borders = (tl.load(sequences + 4 * n + 1) - tl.load(sequences + 4 * n) + PERIOD - 1) // PERIOD - 1
    k = tl.arange(0, KP)
    inside = (k < K)[:, None] & (d < D)[None, :]
    rate = tl.load(A + d[None, :] * K + k[:, None], mask=inside, other=0.0).to(tl.float32)
    h = tl.zeros((KP, BD), tl.float32)
    if GIVEN:
        h = tl.load(given + n.to(tl.int64) * D * K + d[None, :] * K + k[:, None], mask=inside, other=0.0)
    for i in range(0, borders):
        j = slot + i
        if REVERSE:
            j = slot + borders - 1 - i
        at = border + j.to(tl.int64) * K * D + k[:, None] * D + d[None, :]
        steps = tl.load(lasted + j.to(tl.int64) * D + d, mask=d < D, other=0.0)
        h = h * tl.exp(steps[None, :] * rate) + tl.load(at, mask=inside, other=0.0)
        tl.store(at, h, mask=inside)


@triton.jit
def scan(
    x, step, A, B, C, sequences, offsets, stretch, border, state, out, final, entry,
    D,
    K: tl.constexpr, KP: tl.constexpr, L: tl.constexpr, BD: tl.constexpr, STATE: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Go through a stretch: with OUT write y and the final state, else the state before each tile."""
    blocks = (D + BD - 1) // BD
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    piece = tl.program_id(0) // blocks
    first, last = tl.load(stretch + 4 * piece), tl.load(stretch + 4 * piece + 1)
    slot, n = tl.load(stretch + 4 * piece + 2), tl.load(stretch + 4 * piece + 3)
    before, after = tl.load(sequences + 4 * n), tl.load(sequences + 4 * n + 1)
    start = tl.load(offsets + n).to(tl.int64)
    length = (tl.load(offsets + n + 1) - start).to(tl.int32)
    rows = tl.arange(0, L)
    k = tl.arange(0, KP)
    inside = (k < K)[:, None] & (d < D)[None, :]
    inner = k[:, None] * D + d[None, :]
    outer = n.to(tl.int64) * D * K + d[None, :] * K + k[:, None]
    rate = tl.load(A + d[None, :] * K + k[:, None], mask=inside, other=0.0).to(tl.float32)
    h = tl.load(border + slot.to(tl.int64) * K * D + inner, mask=inside & (slot >= 0), other=0.0)
    if STATE:
        h += tl.load(state + outer, mask=inside & (slot < 0), other=0.0)

    for i in range(0, last - first):
        tile = first + i
        at = start + (tile - before) * L
        left = length - (tile - before) * L
        there = (rows < left)[:, None] & (d < D)[None, :]
        known = (rows < left)[:, None] & (k < K)[None, :]
        place = rows[:, None] * D + d[None, :]
        line = rows[:, None] * K + k[None, :]
        s = tl.load(step + at * D + place, mask=there, other=0.0).to(tl.float32)
        writes = s * tl.load(x + at * D + place, mask=there, other=0.0).to(tl.float32)
        b = tl.load(B + at * K + line, mask=known, other=0.0).to(tl.float32)
        decay = tl.exp(s[:, None, :] * rate[None, :, :])
        reach, own = tl.associative_scan((decay, writes[:, None, :] * b[:, :, None]), 0, _both)
        if not OUT:
            tl.store(entry + tile.to(tl.int64) * K * D + inner, h, mask=inside)
        states = own + reach * h[None, :, :]
        h = tl.sum(tl.where((rows == L - 1)[:, None, None], states, 0.0), 0)
        if OUT:
            c = tl.load(C + at * K + line, mask=known, other=0.0).to(tl.float32)
            y = tl.sum(states * c[:, :, None], 1)
            tl.store(out + at * D + place, y.to(out.dtype.element_ty), mask=there)
    if OUT:
        tl.store(final + outer, h, mask=inside & (last == after))


@triton.jit(do_not_specialize=COUNTS)
def gradients(
    x, step, A, B, C, d_out, sequences, offsets, stretch, border, d_final, entry, dx, ds, dA, dB, dC, d_state,
    D, total,
    K: tl.constexpr, KP: tl.constexpr, L: tl.constexpr, BD: tl.constexpr, FINAL: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """Go back through a stretch: write dx, ds, the stretch's share of dA, and BD channels' shares of dB and dC.

    `due` is the gradient of the state that a tile leaves; kept is exp(s_t A) h_{t-1}.
    """
    blocks = (D + BD - 1) // BD
    block = tl.program_id(0) % blocks
    d = block * BD + tl.arange(0, BD)
    piece = tl.program_id(0) // blocks
    first, last = tl.load(stretch + 4 * piece), tl.load(stretch + 4 * piece + 1)
    slot, n = tl.load(stretch + 4 * piece + 2), tl.load(stretch + 4 * piece + 3)
    before, after = tl.load(sequences + 4 * n), tl.load(sequences + 4 * n + 1)
    end_slot = tl.where(slot >= 0, slot + 1, tl.load(sequences + 4 * n + 2))
    start = tl.load(offsets + n).to(tl.int64)
    length = (tl.load(offsets + n + 1) - start).to(tl.int32)
    rows = tl.arange(0, L)
    k = tl.arange(0, KP)
    inside = (k < K)[:, None] & (d < D)[None, :]
    inner = k[:, None] * D + d[None, :]
    outer = n.to(tl.int64) * D * K + d[None, :] * K + k[:, None]
    rate = tl.load(A + d[None, :] * K + k[:, None], mask=inside, other=0.0).to(tl.float32)
    due = tl.load(border + end_slot.to(tl.int64) * K * D + inner, mask=inside & (last < after), other=0.0)
    if FINAL:
        due += tl.load(d_final + outer, mask=inside & (last == after), other=0.0)
    d_rate = tl.zeros((KP, BD), tl.float32)

    for i in range(0, last - first):
        tile = last - 1 - i
        at = start + (tile - before) * L
        left = length - (tile - before) * L
        valid = rows < left
        there = valid[:, None] & (d < D)[None, :]
        known = valid[:, None] & (k < K)[None, :]
        place = rows[:, None] * D + d[None, :]
        line = rows[:, None] * K + k[None, :]
        s = tl.load(step + at * D + place, mask=there, other=0.0).to(tl.float32)
        decay = tl.exp(s[:, None, :] * rate[None, :, :])

        follows = (rows > 0)[:, None] & there
        wrote = tl.load(step + (at - 1) * D + place, mask=follows, other=0.0).to(tl.float32)
        wrote *= tl.load(x + (at - 1) * D + place, mask=follows, other=0.0).to(tl.float32)
        b = tl.load(B + (at - 1) * K + line, mask=(rows > 0)[:, None] & known, other=0.0).to(tl.float32)
        h = tl.load(entry + tile.to(tl.int64) * K * D + inner, mask=inside, other=0.0)
        reach, kept = tl.associative_scan((decay, decay * wrote[:, None, :] * b[:, :, None]), 0, _both)
        kept += reach * h[None, :, :]

        leads = ((rows < L - 1) & (rows + 1 < left))[:, None] & (d < D)[None, :]
        later = tl.load(step + (at + 1) * D + place, mask=leads, other=0.0).to(tl.float32)
        dy = tl.load(d_out + at * D + place, mask=there, other=0.0).to(tl.float32)
        c = tl.load(C + at * K + line, mask=known, other=0.0).to(tl.float32)
        back = tl.exp(later[:, None, :] * rate[None, :, :])
        reach, dh = tl.associative_scan((back, dy[:, None, :] * c[:, :, None]), 0, _both, reverse=True)
        dh += reach * due[None, :, :]
        due = tl.sum(tl.where((rows == 0)[:, None, None], decay * dh, 0.0), 0)

        inputs = tl.load(x + at * D + place, mask=there, other=0.0).to(tl.float32)
        b = tl.load(B + at * K + line, mask=known, other=0.0).to(tl.float32)
        d_log = dh * kept
        d_rate += tl.sum(d_log * s[:, None, :], 0)
        d_write = tl.sum(dh * b[:, :, None], 1)
        tl.store(dx + at * D + place, (s * d_write).to(dx.dtype.element_ty), mask=there)
        d_step = inputs * d_write + tl.sum(d_log * rate[None, :, :], 1)
        tl.store(ds + at * D + place, d_step.to(ds.dtype.element_ty), mask=there)
        writes = s * inputs
        share = (block.to(tl.int64) * total + at) * K + line
        tl.store(dB + share, tl.sum(dh * writes[:, None, :], 2), mask=known)
        states = kept + writes[:, None, :] * b[:, :, None]
        tl.store(dC + share, tl.sum(states * dy[:, None, :], 2), mask=known)

    tl.store(dA + piece.to(tl.int64) * K * D + inner, d_rate, mask=inside)
    if STATE:
        tl.store(d_state + outer, due, mask=inside & (slot < 0))
