"""The Triton kernel of one token for each of N sequences through all of a layer that lies between its projections.

States are changed in place. README.md beside this file has the formulas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core.one_token import read_write, unit
from interlace.ops.core.tiles import sigmoid, softplus


@triton.jit
def convolved(now, taps, window, cols, keep, CHANNELS: tl.constexpr, W: tl.constexpr):
    """Return SiLU(the convolution) of some channels, whose window [W - 1, CHANNELS] moves on by one token."""
    x0 = tl.load(now + cols, mask=keep, other=0.0)
    x1 = tl.load(window + (W - 2) * CHANNELS + cols, mask=keep & (W > 1), other=0.0)
    x2 = tl.load(window + (W - 3) * CHANNELS + cols, mask=keep & (W > 2), other=0.0)
    x3 = tl.load(window + (W - 4) * CHANNELS + cols, mask=keep & (W > 3), other=0.0)
    y = x0.to(tl.float32) * tl.load(taps + cols * W + W - 1, mask=keep, other=0.0).to(tl.float32)
    y += x1.to(tl.float32) * tl.load(taps + cols * W + W - 2, mask=keep & (W > 1), other=0.0).to(tl.float32)
    y += x2.to(tl.float32) * tl.load(taps + cols * W + W - 3, mask=keep & (W > 2), other=0.0).to(tl.float32)
    y += x3.to(tl.float32) * tl.load(taps + cols * W + W - 4, mask=keep & (W > 3), other=0.0).to(tl.float32)
    tl.debug_barrier()  # threads that share an element have all read it
    tl.store(window + (W - 2) * CHANNELS + cols, x0, mask=keep & (W > 1))
    tl.store(window + (W - 3) * CHANNELS + cols, x1, mask=keep & (W > 2))
    tl.store(window + (W - 4) * CHANNELS + cols, x2, mask=keep & (W > 3))
    return y * sigmoid(y)


@triton.jit
def mixer_step(
    projected, taps, norm, A_log, dt_bias, window, memory, raw, out, row, scale, strongest, eps,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, KP: tl.constexpr,
    BV: tl.constexpr,
):  # fmt: skip
    """Convolution, SiLU, unit keys and queries, gates, the rule, gated norm: a program is a sequence and a key head.

    raw: float32 [N, G, V], room for the rule's output before its norm. strongest: the largest write strength.
    """
    CHANNELS: tl.constexpr = 2 * H * K + G * V
    GROUP: tl.constexpr = G // H
    n = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    now = projected + n * row
    window += n * (W - 1) * CHANNELS
    k_cols = tl.arange(0, KP)
    q = unit(convolved(now, taps, window, h * K + k_cols, k_cols < K, CHANNELS, W), True)
    k = unit(convolved(now, taps, window, H * K + h * K + k_cols, k_cols < K, CHANNELS, W), True)
    for i in range(0, GROUP):
        g = h * GROUP + i
        x = tl.load(now + CHANNELS + G * V + g).to(tl.float32) + tl.load(dt_bias + g)
        decay = tl.exp(-tl.exp(tl.load(A_log + g)) * softplus(x))
        strength = strongest * sigmoid(tl.load(now + CHANNELS + G * V + G + g).to(tl.float32))
        lane = n * G + g
        squares = tl.sum(tl.zeros((BV,), tl.float32), 0)
        for at in range(0, V, BV):
            v_cols = at + tl.arange(0, BV)
            inside = (k_cols < K)[:, None] & (v_cols < V)[None, :]
            v = convolved(now, taps, window, 2 * H * K + g * V + v_cols, v_cols < V, CHANNELS, W)
            place = memory + lane * K * V + k_cols[:, None] * V + v_cols[None, :]
            S, read = read_write(tl.load(place, mask=inside, other=0.0), k, q, v, decay, strength, True)
            tl.store(place, S, mask=inside)
            read = tl.where(v_cols < V, scale * read, 0.0)
            squares += tl.sum(read * read, 0)
            tl.store(raw + lane * V + v_cols, read, mask=v_cols < V)
        tl.debug_barrier()  # what other threads wrote is read below
        inverse = tl.rsqrt(squares / V + eps)
        for at in range(0, V, BV):
            v_cols = at + tl.arange(0, BV)
            keep = v_cols < V
            gate = tl.load(now + CHANNELS + g * V + v_cols, mask=keep, other=0.0).to(tl.float32)
            y = tl.load(norm + v_cols, mask=keep, other=0.0).to(tl.float32) * inverse
            y *= tl.load(raw + lane * V + v_cols, mask=keep, other=0.0) * gate * sigmoid(gate)
            tl.store(out + lane * V + v_cols, y.to(out.dtype.element_ty), mask=keep)
