"""Triton kernels of SwiGLU. A program's tile holds ROWS rows of COLS columns of each half of a row, D wide."""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import COUNTS, sigmoid


@triton.jit(do_not_specialize=COUNTS)
def block_of(rows, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the first row of the program's block in int64, its rows counted from there, its columns, and which exist.

    Blocks of a row follow each other.
    """
    ACROSS: tl.constexpr = (D + COLS - 1) // COLS
    first = (tl.program_id(0) // ACROSS).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    col = (tl.program_id(0) % ACROSS * COLS + tl.arange(0, COLS))[None, :]
    return first, row, col, (first + row < rows) & (col < D)


@triton.jit(do_not_specialize=COUNTS)
def forward(
    gate_up, out, rows, D: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """out = SiLU(g) u; rows of gate_up lie STRIDE apart."""
    first, row, col, there = block_of(rows, D, ROWS, COLS)
    place = gate_up + first * STRIDE + (row * STRIDE + col)
    g = tl.load(place, mask=there, other=0.0).to(tl.float32)
    u = tl.load(place + D, mask=there, other=0.0).to(tl.float32)
    y = g * sigmoid(g) * u
    tl.store(out + first * D + (row * D + col), y.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=COUNTS)
def backward(
    d_out, gate_up, grad, rows, D: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """Write the gradients of g and u, side by side as they are."""
    first, row, col, there = block_of(rows, D, ROWS, COLS)
    place = gate_up + first * STRIDE + (row * STRIDE + col)
    g = tl.load(place, mask=there, other=0.0).to(tl.float32)
    u = tl.load(place + D, mask=there, other=0.0).to(tl.float32)
    due = tl.load(d_out + first * D + (row * D + col), mask=there, other=0.0).to(tl.float32)
    share = sigmoid(g)
    d_g = due * u * share * (1.0 + g * (1.0 - share))
    to = grad + first * (2 * D) + (row * (2 * D) + col)
    tl.store(to, d_g.to(grad.dtype.element_ty), mask=there)
    tl.store(to + D, (due * g * share).to(grad.dtype.element_ty), mask=there)
