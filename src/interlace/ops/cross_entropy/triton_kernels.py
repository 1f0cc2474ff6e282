"""The Triton kernel of cross-entropy. A program is one row of D logits, which it reads in tiles of COLS."""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)  # below any finite logit that counts; differences from it stay finite


@triton.jit
def losses(
    logits, targets, factors, found, ignored, factor,
    D: tl.constexpr, ROW: tl.constexpr, COLS: tl.constexpr, EACH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write log sum exp(z) - z_y of each row, and (softmax(z) - onehot(y)) factor in place of z.

    EACH: each row has a factor of its own. STAGES: one more than the tiles that are loaded ahead. The second time, a
    row is read backwards: its end is still in the cache. A target outside the row makes all of it NaN.
    """
    TILES: tl.constexpr = (D + COLS - 1) // COLS
    row = tl.program_id(0).to(tl.int64)
    z = logits + row * ROW
    cols = tl.arange(0, COLS)
    target = tl.load(targets + row)
    counts = target != ignored
    inside = (target >= 0) & (target < D)
    at_target = tl.load(z + target, mask=counts & inside, other=0.0).to(tl.float32)

    largest = tl.sum(tl.zeros((COLS,), tl.float32), 0) + LOWEST
    total = tl.zeros((COLS,), tl.float32)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        there = (tile * COLS + cols < D) & counts
        x = tl.load(z + (tile * COLS + cols), mask=there, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - higher) + tl.exp(x - higher)
        largest = higher
    summed = tl.where(counts, tl.sum(total, 0), 1.0)
    loss = tl.where(inside, tl.log(summed) + (largest - at_target), float("nan"))
    tl.store(found + row, tl.where(counts, loss, 0.0))

    scale = tl.where(inside, factor, float("nan"))
    if EACH:
        scale = tl.where(inside, tl.load(factors + row).to(tl.float32), float("nan"))
    share = scale / summed
    for turn in tl.range(0, TILES, num_stages=STAGES):
        first = (TILES - 1 - turn) * COLS
        there = first + cols < D
        x = tl.load(z + (first + cols), mask=there & counts, other=float("-inf")).to(tl.float32)
        d = tl.exp(x - largest) * share - tl.where(first + cols == target, scale, 0.0)
        d = tl.where(counts, d, 0.0)
        tl.store(z + (first + cols), d.to(logits.dtype.element_ty), mask=there)
