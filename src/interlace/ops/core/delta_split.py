"""The kernel that joins the stretches of a sequence which the delta rules went through at once.

A stretch is a run of chunks of one sequence. The state S' after it is affine in the state S before it: S' = P S + B,
with P [K, K]. All stretches find P and B at once, and this kernel goes from border to border.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS, dot


@triton.jit(do_not_specialize=COUNTS)
def carry(
    border, transition, sequences,
    G,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    REVERSE: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """Turn B of each border into the state there: S <- B + P S of the border before, transposed; all in float32.

    In REVERSE, gradients of states go back through the transposed P of the border after. NARROW: products are of
    bfloat16, with the rest of each factor taken too, so that 16 bits count.

    Args:
        border: [borders, G, V, K]: B, and for a sequence's first border (in REVERSE its last) the state itself.
        transition: [borders, G, K, K]: of the stretch before each border, transposed; none before the first.
        sequences: as in `tables.Chunks`.
    """
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % BLOCKS
    lane = tl.program_id(0) // BLOCKS
    g = lane % G
    slot = tl.load(sequences + 4 * (lane // G) + 2)
    borders = tl.load(sequences + 4 * (lane // G) + 3)
    v_cols = block * BV + tl.arange(0, BV)
    v_there = (v_cols < V)[:, None]
    rows = tl.arange(0, KP)
    for i in range(1, borders):
        source = slot + i - 1
        target = slot + i
        stretch = target
        if REVERSE:
            source = slot + borders - i
            target = source - 1
            stretch = source
        from_state = border + ((source.to(tl.int64) * G + g) * V + v_cols[:, None]) * K
        to_state = border + ((target.to(tl.int64) * G + g) * V + v_cols[:, None]) * K
        P = transition + (stretch.to(tl.int64) * G + g) * K * K
        S = tl.load(from_state + rows[None, :], mask=v_there & (rows < K)[None, :], other=0.0)
        S_high = S
        if NARROW:
            S_high = S.to(tl.bfloat16)
        for at in range(0, K, BK):
            cols = at + tl.arange(0, BK)
            inside = v_there & (cols < K)[None, :]
            both = (rows < K)[:, None] & (cols < K)[None, :]
            if REVERSE:
                p = tl.load(P + cols[None, :] * K + rows[:, None], mask=both, other=0.0)
            else:
                p = tl.load(P + rows[:, None] * K + cols[None, :], mask=both, other=0.0)
            new = tl.load(to_state + cols[None, :], mask=inside, other=0.0)
            if NARROW:
                p_high = p.to(tl.bfloat16)
                new += dot(S_high, (p - p_high.to(tl.float32)).to(tl.bfloat16))
                new += dot((S - S_high.to(tl.float32)).to(tl.bfloat16), p_high)
                new += dot(S_high, p_high)
            else:
                new += dot(S, p)
            tl.store(to_state + cols[None, :], new, mask=inside)
        tl.debug_barrier()  # the next border reads what all threads wrote
