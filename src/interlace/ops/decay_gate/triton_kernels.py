"""Triton kernels of the gates of a decay. A program takes BT x LOOPS rows of BC channels."""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS, sigmoid, softplus


@triton.jit
def block_of(C: tl.constexpr, BC: tl.constexpr):
    """Return which block of rows and which channels the program takes."""
    ACROSS: tl.constexpr = (C + BC - 1) // BC
    return tl.program_id(0) // ACROSS, (tl.program_id(0) % ACROSS) * BC + tl.arange(0, BC)


@triton.jit(do_not_specialize=COUNTS)
def forward(
    x, dt_bias, A_log, log_decay, step, row, total, low, high,
    C: tl.constexpr, HEAD: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, DECAY: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """step = clamp(softplus(x + dt_bias));  log_decay = -exp(A_log) step. HEAD: channels of a head."""
    block, cols = block_of(C, BC)
    there = cols < C
    rows = block.to(tl.int64) * BT + tl.arange(0, BT)
    keep = (rows < total)[:, None] & there[None, :]
    y = tl.load(x + rows[:, None] * row + cols[None, :], mask=keep, other=0.0).to(tl.float32)
    y = softplus(y + tl.load(dt_bias + cols, mask=there, other=0.0).to(tl.float32)[None, :])
    y = tl.minimum(tl.maximum(y, low), high)
    to = rows[:, None] * C + cols[None, :]
    if STEP:
        tl.store(step + to, y, mask=keep)
    if DECAY:
        rate = tl.exp(tl.load(A_log + cols // HEAD, mask=there, other=0.0).to(tl.float32))
        tl.store(log_decay + to, -rate[None, :] * y, mask=keep)


@triton.jit(do_not_specialize=COUNTS)
def backward(
    x, dt_bias, A_log, d_log_decay, d_step, dx, shares, row, total, low, high,
    C: tl.constexpr, HEAD: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, LOOPS: tl.constexpr,
    DECAY: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Write dx, and the program's share [2, C] of the sums for dt_bias and A_log."""
    block, cols = block_of(C, BC)
    there = cols < C
    bias = tl.load(dt_bias + cols, mask=there, other=0.0).to(tl.float32)[None, :]
    rate = tl.zeros((BC,), tl.float32)
    if DECAY:
        rate = tl.exp(tl.load(A_log + cols // HEAD, mask=there, other=0.0).to(tl.float32))
    d_bias = tl.zeros((BC,), tl.float32)
    d_rate = tl.zeros((BC,), tl.float32)
    for i in range(0, LOOPS):
        rows = (block.to(tl.int64) * LOOPS + i) * BT + tl.arange(0, BT)
        keep = (rows < total)[:, None] & there[None, :]
        y = tl.load(x + rows[:, None] * row + cols[None, :], mask=keep, other=0.0).to(tl.float32) + bias
        step = softplus(y)
        to = rows[:, None] * C + cols[None, :]
        d = tl.zeros((BT, BC), tl.float32)
        if STEP:
            d = tl.load(d_step + to, mask=keep, other=0.0)
        if DECAY:
            due = tl.load(d_log_decay + to, mask=keep, other=0.0) * -rate[None, :]
            d += due
            d_rate += tl.sum(due * tl.minimum(tl.maximum(step, low), high), 0)
        d = tl.where((step >= low) & (step <= high), d * sigmoid(y), 0.0)
        d_bias += tl.sum(d, 0)
        tl.store(dx + to, d.to(dx.dtype.element_ty), mask=keep)
    share = shares + block.to(tl.int64) * 2 * C + cols
    tl.store(share, d_bias, mask=there)
    tl.store(share + C, d_rate, mask=there)
