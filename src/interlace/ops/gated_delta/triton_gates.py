"""Triton kernels of the gates: log decay and write strength of each token and value head, and their gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.tiles import sigmoid, softplus


@triton.jit
def read_gates(projected, A_log, dt_bias, rows, cols, keep, row, G):
    """Return exp(A_log), the argument of softplus, and the logits of beta; decay and beta lie side by side."""
    place = projected + rows[:, None] * row + cols[None, :]
    rate = tl.exp(tl.load(A_log + cols, mask=cols < G, other=0.0).to(tl.float32))[None, :]
    x = tl.load(place, mask=keep, other=0.0).to(tl.float32)
    x += tl.load(dt_bias + cols, mask=cols < G, other=0.0).to(tl.float32)[None, :]
    return rate, x, tl.load(place + G, mask=keep, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["total"])
def gates(
    projected, A_log, dt_bias, log_decay, beta, row, total, strongest,
    G: tl.constexpr, GP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """log_decay = -exp(A_log) softplus(decay + dt_bias);  beta = strongest sigmoid(logits)."""
    rows = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    cols = tl.arange(0, GP)
    keep = (rows < total)[:, None] & (cols < G)[None, :]
    rate, x, logits = read_gates(projected, A_log, dt_bias, rows, cols, keep, row, G)
    to = rows[:, None] * G + cols[None, :]
    tl.store(log_decay + to, -rate * softplus(x), mask=keep)
    tl.store(beta + to, strongest * sigmoid(logits), mask=keep)


@triton.jit(do_not_specialize=["total"])
def gates_backward(
    projected, A_log, dt_bias, log_decay, d_log_decay, d_beta, d_projected, shares, row, d_row, total, strongest,
    G: tl.constexpr, GP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Write the gradients of decay and of beta's logits, and a share [2, G] of those of A_log and dt_bias."""
    rows = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    cols = tl.arange(0, GP)
    keep = (rows < total)[:, None] & (cols < G)[None, :]
    rate, x, logits = read_gates(projected, A_log, dt_bias, rows, cols, keep, row, G)
    from_place = rows[:, None] * G + cols[None, :]
    due = tl.load(d_log_decay + from_place, mask=keep, other=0.0)
    d_x = -rate * due * sigmoid(x)
    opened = sigmoid(logits)
    d_logits = tl.load(d_beta + from_place, mask=keep, other=0.0) * strongest * opened * (1.0 - opened)
    to = d_projected + rows[:, None] * d_row + cols[None, :]
    tl.store(to, d_x.to(d_projected.dtype.element_ty), mask=keep)
    tl.store(to + G, d_logits.to(d_projected.dtype.element_ty), mask=keep)
    d_rate = tl.sum(due * tl.load(log_decay + from_place, mask=keep, other=0.0), 0)
    share = shares + tl.program_id(0).to(tl.int64) * 2 * G + cols
    tl.store(share, d_rate, mask=cols < G)
    tl.store(share + G, tl.sum(d_x, 0), mask=cols < G)
