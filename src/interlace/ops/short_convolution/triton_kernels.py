"""Triton kernels of the short convolution, SiLU fused.

A program is one chunk of a sequence and a block of channels. It goes from token to token with the last inputs in
registers, so each input is read once. It reads AHEAD tokens before it works on the first of them, so many reads are in
flight. Up to four taps; w0 is the tap of the current token.
"""

from __future__ import annotations

import triton
import triton.language as tl

AHEAD = tl.constexpr(4)


@triton.jit
def past(x, state, t, start, n, cols, stride, D, W: tl.constexpr, STATE: tl.constexpr, keep):
    """Return the inputs at token t, which may lie before the sequence's start: then the state's, or zeros."""
    found = tl.load(x + t * stride + cols, mask=keep & (t >= start), other=0.0).to(tl.float32)
    if STATE:
        row = W - 1 + t - start
        held = state + (n.to(tl.int64) * (W - 1) + row) * D + cols
        found += tl.load(held, mask=keep & (t < start) & (row >= 0), other=0.0).to(tl.float32)
    return found


@triton.jit
def tap(weight, lag, cols, keep, W: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the weights of the input `lag` tokens ago, zeros where there are fewer taps."""
    return tl.load(weight + cols * COLUMNS + W - 1 - lag, mask=keep & (lag < W), other=0.0).to(tl.float32)


@triton.jit
def forward(
    x, weight, state, out, windows, chunks, owners, offsets, stride, D,
    W: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the convolution of a chunk; the sequence's last chunk leaves the window that its next token will see."""
    blocks = (D + BLOCK - 1) // BLOCK
    chunk = tl.program_id(0) // blocks
    cols = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    keep = cols < D
    n = tl.load(owners + chunk)
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    last = tl.load(chunks + 2 * chunk + 1).to(tl.int64)
    start = tl.load(offsets + n).to(tl.int64)
    w0 = tap(weight, 0, cols, keep, W, W + BIAS)
    w1 = tap(weight, 1, cols, keep, W, W + BIAS)
    w2 = tap(weight, 2, cols, keep, W, W + BIAS)
    w3 = tap(weight, 3, cols, keep, W, W + BIAS)
    bias = tl.load(weight + cols * (W + BIAS) + W, mask=keep & (BIAS > 0), other=0.0).to(tl.float32)
    h1 = past(x, state, first - 1, start, n, cols, stride, D, W, STATE, keep)
    h2 = past(x, state, first - 2, start, n, cols, stride, D, W, STATE, keep)
    h3 = past(x, state, first - 3, start, n, cols, stride, D, W, STATE, keep)
    for i in range(0, (last - first).to(tl.int32), AHEAD):
        t = first + i
        ahead = (
            tl.load(x + t * stride + cols, mask=keep, other=0.0),
            tl.load(x + (t + 1) * stride + cols, mask=keep & (t + 1 < last), other=0.0),
            tl.load(x + (t + 2) * stride + cols, mask=keep & (t + 2 < last), other=0.0),
            tl.load(x + (t + 3) * stride + cols, mask=keep & (t + 3 < last), other=0.0),
        )
        for j in tl.static_range(AHEAD):
            now = ahead[j].to(tl.float32)
            y = w3 * h3 + w2 * h2 + w1 * h1 + w0 * now + bias
            if SILU:
                y = y / (1.0 + tl.exp(-y))
            there = t + j < last
            tl.store(out + (t + j) * D + cols, y.to(out.dtype.element_ty), mask=keep & there)
            h3 = tl.where(there, h2, h3)
            h2 = tl.where(there, h1, h2)
            h1 = tl.where(there, now, h1)
    if last == tl.load(offsets + n + 1):
        to = windows + n.to(tl.int64) * (W - 1) * D + cols
        dtype = windows.dtype.element_ty
        tl.store(to + (W - 2) * D, h1.to(dtype), mask=keep & (W > 1))
        tl.store(to + (W - 3) * D, h2.to(dtype), mask=keep & (W > 2))
        tl.store(to + (W - 4) * D, h3.to(dtype), mask=keep & (W > 3))


@triton.jit
def backward(
    x, weight, state, d_out, d_windows, dx, d_state, shares, chunks, owners, offsets, stride, D, dx_row,
    W: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, STATE: tl.constexpr, WINDOWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a chunk's inputs, of a state before it, and its share of the weights' [W + bias, D].

    An input W - 1 tokens ago has met all its outputs; so the loop runs W - 1 tokens past the chunk, and what comes out
    in its first W - 1 rounds belongs to the tokens before it: to the state, where the sequence starts.
    """
    blocks = (D + BLOCK - 1) // BLOCK
    chunk = tl.program_id(0) // blocks
    cols = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    keep = cols < D
    n = tl.load(owners + chunk)
    first = tl.load(chunks + 2 * chunk).to(tl.int64)
    last = tl.load(chunks + 2 * chunk + 1).to(tl.int64)
    start = tl.load(offsets + n).to(tl.int64)
    end = tl.load(offsets + n + 1).to(tl.int64)
    w0 = tap(weight, 0, cols, keep, W, W + BIAS)
    w1 = tap(weight, 1, cols, keep, W, W + BIAS)
    w2 = tap(weight, 2, cols, keep, W, W + BIAS)
    w3 = tap(weight, 3, cols, keep, W, W + BIAS)
    bias = tl.load(weight + cols * (W + BIAS) + W, mask=keep & (BIAS > 0), other=0.0).to(tl.float32)
    h1 = past(x, state, first - 1, start, n, cols, stride, D, W, STATE, keep)
    h2 = past(x, state, first - 2, start, n, cols, stride, D, W, STATE, keep)
    h3 = past(x, state, first - 3, start, n, cols, stride, D, W, STATE, keep)
    d1 = tl.zeros((BLOCK,), tl.float32)
    d2 = tl.zeros((BLOCK,), tl.float32)
    d3 = tl.zeros((BLOCK,), tl.float32)
    dw0 = tl.zeros((BLOCK,), tl.float32)
    dw1 = tl.zeros((BLOCK,), tl.float32)
    dw2 = tl.zeros((BLOCK,), tl.float32)
    dw3 = tl.zeros((BLOCK,), tl.float32)
    d_bias = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, (last - first).to(tl.int32) + W - 1, AHEAD):
        at = first + i
        ahead = (
            tl.load(x + at * stride + cols, mask=keep & (at < end), other=0.0),
            tl.load(x + (at + 1) * stride + cols, mask=keep & (at + 1 < end), other=0.0),
            tl.load(x + (at + 2) * stride + cols, mask=keep & (at + 2 < end), other=0.0),
            tl.load(x + (at + 3) * stride + cols, mask=keep & (at + 3 < end), other=0.0),
        )
        due = (
            tl.load(d_out + at * D + cols, mask=keep & (at < end), other=0.0),
            tl.load(d_out + (at + 1) * D + cols, mask=keep & (at + 1 < end), other=0.0),
            tl.load(d_out + (at + 2) * D + cols, mask=keep & (at + 2 < end), other=0.0),
            tl.load(d_out + (at + 3) * D + cols, mask=keep & (at + 3 < end), other=0.0),
        )
        for j in tl.static_range(AHEAD):
            t = at + j
            now = ahead[j].to(tl.float32)
            d0 = due[j].to(tl.float32)
            if SILU:
                y = w3 * h3 + w2 * h2 + w1 * h1 + w0 * now + bias
                opened = 1.0 / (1.0 + tl.exp(-y))
                d0 = d0 * opened * (1.0 + y * (1.0 - opened))
            if W == 1:
                gradient = w0 * d0
            elif W == 2:
                gradient = w1 * d0 + w0 * d1
            elif W == 3:
                gradient = w2 * d0 + w1 * d1 + w0 * d2
            else:
                gradient = w3 * d0 + w2 * d1 + w1 * d2 + w0 * d3
            source = t - (W - 1)
            if WINDOWS:
                row = source - end + W - 1
                held = d_windows + (n.to(tl.int64) * (W - 1) + row) * D + cols
                gradient += tl.load(held, mask=keep & (row >= 0) & (row < W - 1), other=0.0).to(tl.float32)
            mine = (source >= first) & (source < last)
            tl.store(dx + source * dx_row + cols, gradient.to(dx.dtype.element_ty), mask=keep & mine)
            if STATE:
                to = d_state + (n.to(tl.int64) * (W - 1) + i + j) * D + cols
                tl.store(to, gradient.to(d_state.dtype.element_ty), mask=keep & (source < start) & (first == start))
            counted = tl.where(t < last, d0, 0.0)
            dw0 += counted * now
            dw1 += counted * h1
            dw2 += counted * h2
            dw3 += counted * h3
            d_bias += counted
            h3 = h2
            h2 = h1
            h1 = now
            d3 = d2
            d2 = d1
            d1 = d0
    share = shares + chunk.to(tl.int64) * (W + BIAS) * D + cols
    tl.store(share + (W - 1) * D, dw0, mask=keep)
    tl.store(share + (W - 2) * D, dw1, mask=keep & (W > 1))
    tl.store(share + (W - 3) * D, dw2, mask=keep & (W > 2))
    tl.store(share + (W - 4) * D, dw3, mask=keep & (W > 3))
    tl.store(share + W * D, d_bias, mask=keep & (BIAS > 0))
