"""One token of each of N sequences by a Triton kernel, for every rule whose state is a matrix [K, V] for each head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from interlace.ops.core import gpu, normalise
from interlace.ops.core.gpu import power
from interlace.ops.core.operands import Recurrence
from interlace.ops.core.tiles import COUNTS

COLUMNS, WARPS = 32, 4  # value columns of a program
L2_EPS = tl.constexpr(normalise.L2_EPS)


@triton.jit
def read_write(S, k, q, v, decay, strength, DELTA: tl.constexpr):
    """Return the state [K, V] after a token, and what its query reads there; DELTA: write what v differs by."""
    S = S * decay
    write = strength * v
    if DELTA:
        write = strength * (v - tl.sum(S * k[:, None], 0))
    S += k[:, None] * write[None, :]
    return S, tl.sum(S * q[:, None], 0)


@triton.jit
def unit(x, NORMALISE: tl.constexpr):
    """Return x divided by its length, if asked for."""
    if NORMALISE:
        return x * tl.rsqrt(tl.sum(x * x, 0) + L2_EPS)
    return x


@triton.jit(do_not_specialize=COUNTS)
def step(
    query, key, value, log_decay, strengths, state, after, out, q_row, k_row, v_row, H, G, scale,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, BV: tl.constexpr, NORMALISE: tl.constexpr,
    CHANNELS: tl.constexpr, DELTA: tl.constexpr,
):  # fmt: skip
    """Take one token: a program is a sequence, a value head and a block of value columns.

    CHANNELS: log decays are [N, G, K], not [N, G]. after: takes the states, and may be `state`.
    """
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    lane = tl.program_id(0) // BLOCKS
    n = (lane // G).to(tl.int64)
    g = lane % G
    h = g // (G // H)
    k_cols = tl.arange(0, KP)
    v_cols = tl.program_id(0) % BLOCKS * BV + tl.arange(0, BV)
    inside = (k_cols < K)[:, None] & (v_cols < V)[None, :]
    k = unit(tl.load(key + n * k_row + h * K + k_cols, mask=k_cols < K, other=0.0).to(tl.float32), NORMALISE)
    q = unit(tl.load(query + n * q_row + h * K + k_cols, mask=k_cols < K, other=0.0).to(tl.float32), NORMALISE)
    v = tl.load(value + n * v_row + g * V + v_cols, mask=v_cols < V, other=0.0).to(tl.float32)
    if CHANNELS:
        gate = tl.load(log_decay + (n * G + g) * K + k_cols, mask=k_cols < K, other=0.0)[:, None]
    else:
        gate = tl.load(log_decay + n * G + g)
    strength = tl.load(strengths + n * G + g).to(tl.float32)
    place = lane.to(tl.int64) * K * V + k_cols[:, None] * V + v_cols[None, :]
    S = tl.load(state + place, mask=inside, other=0.0)
    S, read = read_write(S, k, q, v, tl.exp(gate.to(tl.float32)), strength, DELTA)
    tl.store(after + place, S, mask=inside)
    tl.store(out + lane.to(tl.int64) * V + v_cols, (scale * read).to(out.dtype.element_ty), mask=v_cols < V)


def take(x: Recurrence, state: Tensor, after: Tensor, *, delta: bool) -> Tensor:
    """Take one token of each of N sequences; return [N, G, V].

    Args:
        x: the call; its state is not looked at.
        state: float32 [N, G, K, V], contiguous: what each sequence starts from.
        after: takes the states, as `state`, which it may be.
        delta: whether a token writes what its value differs by from what its key reads, or its value.
    """
    dtype = x.value.dtype
    query, key, value = (gpu.rows(y.to(dtype)) for y in (x.query, x.key, x.value))
    (N, H, K), (_, G, V) = query.shape, value.shape
    out = torch.empty_like(value, memory_format=torch.contiguous_format)
    columns = min(COLUMNS, power(V))
    tensors = (query, key, value, x.log_decay.contiguous(), x.strength.contiguous(), state, after, out)
    gpu.launch(
        step,
        N * G * -(-V // columns),
        (*tensors, query.stride(0), key.stride(0), value.stride(0), H, G, x.scale),
        {"K": K, "V": V, "KP": power(K), "BV": columns}
        | {"NORMALISE": x.normalise, "CHANNELS": x.log_decay.dim() == 3, "DELTA": delta},
        WARPS,
    )
    return out


def run(x: Recurrence, *, delta: bool) -> tuple[Tensor, Tensor]:
    """Return what a call of one token gives: [N, G, V], and the states after it."""
    assert x.state is not None
    state = x.state.to(torch.float32).contiguous()
    after = torch.empty_like(state)
    return take(x, state, after, delta=delta), after
