"""Triton kernels of the norm: each operand is read once, each result written once.

A program's tile holds ROWS rows of D channels, in COLS columns. A token is HEADS rows beside each other; tokens of an
operand lie `*_ROW` elements apart. With PER_HEAD, a program sees one head only, so that it reads one row of weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS, sigmoid


@triton.jit
def rows_of(block, HEADS: tl.constexpr, ROWS: tl.constexpr, PER_HEAD: tl.constexpr):
    """Return a block's first token in int64, and of each row the token, counted from there, and the head."""
    rows = tl.arange(0, ROWS)
    if PER_HEAD:
        return (block // HEADS).to(tl.int64) * ROWS, rows, rows * 0 + block % HEADS
    start = block.to(tl.int64) * ROWS
    first = start // HEADS
    rows += (start - first * HEADS).to(tl.int32)
    return first, rows // HEADS, rows % HEADS


@triton.jit
def opened_by(gate, SIGMOID: tl.constexpr):
    """Return the activation of a gate and its slope."""
    share = sigmoid(gate)
    if SIGMOID:
        return share, share * (1.0 - share)
    return gate * share, share * (1.0 + gate * (1.0 - share))


@triton.jit(do_not_specialize=COUNTS)
def forward(
    x, before, gate, after, weight, out, total, inverse, tokens, eps, offset,
    D: tl.constexpr, HEADS: tl.constexpr, X_ROW: tl.constexpr, BEFORE_ROW: tl.constexpr, GATE_ROW: tl.constexpr,
    AFTER_ROW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PER_HEAD: tl.constexpr, BEFORE: tl.constexpr,
    GATE: tl.constexpr, AFTER: tl.constexpr, SIGMOID: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Write out, s = x + before, and 1 / sqrt(mean(s^2) + eps) of each row."""
    block = tl.program_id(0)
    first, token, head = rows_of(block, HEADS, ROWS, PER_HEAD)
    cols = tl.arange(0, COLS)[None, :]
    written = (token * HEADS + head)[:, None]
    exists = first + token < tokens
    there = exists[:, None] & (cols < D)
    place = head[:, None] * D + cols
    token = token[:, None]

    s = tl.load(x + first * X_ROW + (token * X_ROW + place), mask=there, other=0.0).to(tl.float32)
    if BEFORE:
        s += tl.load(before + first * BEFORE_ROW + (token * BEFORE_ROW + place), mask=there, other=0.0).to(tl.float32)
        rounded = s.to(total.dtype.element_ty)
        tl.store(total + first * (HEADS * D) + (written * D + cols), rounded, mask=there)
        s = rounded.to(tl.float32)
    opened = s
    if GATE:
        g = tl.load(gate + first * GATE_ROW + (token * GATE_ROW + place), mask=there, other=0.0).to(tl.float32)
        opened, _ = opened_by(g, SIGMOID)
        if FIRST:
            s *= opened
    scale = tl.rsqrt(tl.sum(s * s, 1) / D + eps)
    tl.store(inverse + first * HEADS + tl.reshape(written, (ROWS,)), scale, mask=exists)
    w = weight + cols
    if PER_HEAD:
        w += block % HEADS * D
    y = (tl.load(w, mask=cols < D, other=0.0).to(tl.float32) + offset) * (s * scale[:, None])
    if GATE:
        if not FIRST:
            y *= opened
    if AFTER:
        y += tl.load(after + first * AFTER_ROW + (token * AFTER_ROW + place), mask=there, other=0.0).to(tl.float32)
    tl.store(out + first * (HEADS * D) + (written * D + cols), y.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=COUNTS)
def backward(
    d_out, d_sum, s, gate, weight, inverse, d_x, d_before, d_gate, partial, tokens, turns, programs, offset,
    D: tl.constexpr, HEADS: tl.constexpr, X_ROW: tl.constexpr, GATE_ROW: tl.constexpr, D_GATE_ROW: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr, PER_HEAD: tl.constexpr, SUM: tl.constexpr,
    BEFORE: tl.constexpr, GATE: tl.constexpr, SIGMOID: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the rows, and the program's part of the weight's: program p takes blocks p + i programs.

    STAGES: one more than the blocks that it loads ahead. BEFORE: whether `before` has a gradient of its own dtype.
    """
    program = tl.program_id(0)
    cols = tl.arange(0, COLS)[None, :]
    w = weight + cols
    if PER_HEAD:
        w += program % HEADS * D
    w = tl.load(w, mask=cols < D, other=0.0).to(tl.float32) + offset
    d_weight = tl.zeros((ROWS, COLS), tl.float32)
    for turn in tl.range(0, turns, num_stages=STAGES):
        first, token, head = rows_of(program + turn * programs, HEADS, ROWS, PER_HEAD)
        row = token * HEADS + head
        exists = first + token < tokens
        there = exists[:, None] & (cols < D)
        place = head[:, None] * D + cols
        token = token[:, None]
        here = first * (HEADS * D)
        written = row[:, None] * D + cols

        due = tl.load(d_out + here + written, mask=there, other=0.0).to(tl.float32)
        y = tl.load(s + first * X_ROW + (token * X_ROW + place), mask=there, other=0.0).to(tl.float32)
        scale = tl.load(inverse + first * HEADS + row, mask=exists, other=0.0)[:, None]
        if GATE:
            g = tl.load(gate + first * GATE_ROW + (token * GATE_ROW + place), mask=there, other=0.0).to(tl.float32)
            opened, slope = opened_by(g, SIGMOID)
            if FIRST:
                d_opened = y * slope
                y *= opened
            else:
                d_opened = due * w * (y * scale) * slope
                due *= opened
        n = y * scale
        d_weight += due * n
        due *= w
        d = (due - n * (tl.sum(due * n, 1) / D)[:, None]) * scale
        if GATE:
            if FIRST:
                d_opened *= d
                d *= opened
            to = d_gate + first * D_GATE_ROW + (token * D_GATE_ROW + place)
            tl.store(to, d_opened.to(d_gate.dtype.element_ty), mask=there)
        if SUM:
            d += tl.load(d_sum + here + written, mask=there, other=0.0).to(tl.float32)
        tl.store(d_x + here + written, d.to(d_x.dtype.element_ty), mask=there)
        if BEFORE:
            tl.store(d_before + here + written, d.to(d_before.dtype.element_ty), mask=there)
    found = tl.sum(d_weight, 0)[None, :]
    tl.store(partial + program.to(tl.int64) * D + cols, found, mask=cols < D)
