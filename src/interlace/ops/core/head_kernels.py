"""Triton kernels of the queries and keys of the delta rules: made unit vectors, and their gradients put together.

A program takes BT tokens of one key head; heads of K channels are read as WIDE columns, a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core import normalise
from interlace.ops.core.tiles import COUNTS

L2_EPS = tl.constexpr(normalise.L2_EPS)


@triton.jit(do_not_specialize=COUNTS)
def unit_heads(x, out, x_row, H, total, K: tl.constexpr, WIDE: tl.constexpr, BT: tl.constexpr):
    """Write x / |x| of each head, [total, H, K]; rows of x may lie apart."""
    h = tl.program_id(0) % H
    rows = (tl.program_id(0) // H * BT + tl.arange(0, BT)).to(tl.int64)
    cols = tl.arange(0, WIDE)
    keep = (rows < total)[:, None] & (cols < K)[None, :]
    y = tl.load(x + rows[:, None] * x_row + h * K + cols[None, :], mask=keep, other=0.0).to(tl.float32)
    y = y * tl.rsqrt(tl.sum(y * y, 1) + L2_EPS)[:, None]
    tl.store(out + (rows[:, None] * H + h) * K + cols[None, :], y.to(out.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=COUNTS)
def collect(
    x, d_heads, dx, x_row, dx_row, H, G, total,
    K: tl.constexpr, WIDE: tl.constexpr, BT: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """Write the gradient of queries or keys: the sum of a group's, and back through the normalisation."""
    h = tl.program_id(0) % H
    rows = tl.program_id(0) // H * BT + tl.arange(0, BT)
    cols = tl.arange(0, WIDE)
    keep = (rows < total)[:, None] & (cols < K)[None, :]
    rows = rows.to(tl.int64)
    group = G // H
    d = tl.zeros((BT, WIDE), tl.float32)
    for i in range(group):
        place = (rows[:, None] * G + h * group + i) * K + cols[None, :]
        d += tl.load(d_heads + place, mask=keep, other=0.0).to(tl.float32)
    if NORMALISE:
        y = tl.load(x + rows[:, None] * x_row + h * K + cols[None, :], mask=keep, other=0.0).to(tl.float32)
        length = tl.rsqrt(tl.sum(y * y, 1) + L2_EPS)[:, None]
        y = y * length
        d = (d - y * tl.sum(y * d, 1)[:, None]) * length
    tl.store(dx + rows[:, None] * dx_row + h * K + cols[None, :], d.to(dx.dtype.element_ty), mask=keep)
