"""The convolution as W shifted multiply-adds, a block of rows at a time so that the block stays in cache.

Segments never mix: each is cut from the flat axis as a view, with its own history. Equal segments are one view.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.views import views
from interlace.ops.short_convolution.operands import GRADIENTS, INPUTS, Convolution, shapes


def convolve(x: Tensor, taps: Tensor, past: Tensor | None, out: Tensor) -> None:
    """out [rows, T, D] = sum_j taps[W-1-j] x shifted by j, reading `past` [rows, W-1, D] (zeros if None) before x."""
    T, W = x.shape[1], taps.shape[0]
    torch.mul(x, taps[-1], out=out)
    for j in range(1, W):
        if j < T:
            out[:, j:].addcmul_(x[:, : T - j], taps[W - 1 - j])
        if past is not None:
            reach = min(j, T)
            out[:, :reach].addcmul_(past[:, W - 1 - j : W - 1 - j + reach], taps[W - 1 - j])


def convolve_back(
    d: Tensor, x: Tensor, taps: Tensor, past: Tensor | None, dx: Tensor, dtaps: Tensor, dpast: Tensor | None
) -> None:
    """The adjoint of `convolve`: fills dx, adds to dtaps [W, D] and dpast."""
    T, W = x.shape[1], taps.shape[0]
    torch.mul(d, taps[-1], out=dx)
    dtaps[-1] += (d * x).sum((0, 1))
    for j in range(1, W):
        tap = W - 1 - j
        if j < T:
            dx[:, : T - j].addcmul_(d[:, j:], taps[tap])
            dtaps[tap] += (d[:, j:] * x[:, : T - j]).sum((0, 1))
        if past is not None and dpast is not None:
            reach = min(j, T)
            dpast[:, tap : tap + reach].addcmul_(d[:, :reach], taps[tap])
            dtaps[tap] += (d[:, :reach] * past[:, tap : tap + reach]).sum((0, 1))


def last_rows(x: Tensor, past: Tensor | None, history: int) -> Tensor:
    """Return the window [rows, W-1, D] that the next token will see."""
    T = x.shape[1]
    if history <= T:
        return x[:, T - history :]
    old = x.new_zeros(x.shape[0], history, x.shape[2]) if past is None else past
    return torch.cat((old[:, T:], x), dim=1)


def forward(*operands: Any) -> tuple[Tensor, Tensor]:
    """Return (out [total, D], windows [N, W-1, D]); arithmetic in float32 at least. `operands` are a Convolution's."""
    c = Convolution(*operands)
    y = linear(c)
    windows = [
        last_rows(view, None if c.state is None else c.state[rows].to(c.x.dtype), c.history)
        for rows, view in views(c.x, c.offsets, c.time)
    ]
    return (silu(y) if c.activated else y).to(c.x.dtype), torch.cat(windows).clone()


def linear(c: Convolution) -> Tensor:
    """Return the convolution before its activation, [total, D] in float32 at least."""
    x, columns = c.x.to(c.dtype), c.weight.to(c.dtype).T.contiguous()
    taps = columns[: columns.shape[0] - c.biased]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for (rows, source), (_, target) in zip(views(x, c.offsets, c.time), views(y, c.offsets, c.time), strict=True):
        convolve(source, taps, None if c.state is None else c.state[rows].to(c.dtype), target)
    return y.add_(columns[-1]) if c.biased else y


def backward(d_out: Tensor, d_windows: Tensor | None, *operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of x, weight and state (empty if None); the pre-activation is computed again."""
    c = Convolution(*operands)
    dtype, state = c.dtype, c.state
    d = d_out.to(dtype)
    if c.activated:
        d = torch.ops.aten.silu_backward(d, linear(c))
    source, columns = c.x.to(dtype), c.weight.to(dtype).T.contiguous()
    dx, dcolumns = torch.empty_like(source, memory_format=torch.contiguous_format), torch.zeros_like(columns)
    taps, dtaps = (y[: y.shape[0] - c.biased] for y in (columns, dcolumns))
    if c.biased:
        dcolumns[-1] = d.sum(0)
    dpast = None if state is None else torch.zeros_like(state, dtype=dtype)
    parts = zip(*(views(z, c.offsets, c.time) for z in (d.contiguous(), source, dx)), strict=True)
    for (rows, dv), (_, xv), (_, dxv) in parts:
        past = None if state is None else state[rows].to(dtype)
        convolve_back(dv, xv, taps, past, dxv, dtaps, None if dpast is None else dpast[rows])
        if d_windows is not None:
            T = xv.shape[1]
            kept = min(c.history, T)
            dxv[:, T - kept :] += d_windows[rows, c.history - kept :]
            if dpast is not None and c.history > T:
                dpast[rows, T:] += d_windows[rows, : c.history - T]
    d_state = c.x.new_zeros(0) if dpast is None or state is None else dpast.to(state.dtype)
    return dx.to(c.x.dtype), dcolumns.T.contiguous().to(c.weight.dtype), d_state


_operator = custom_op("short_convolution", Signature(INPUTS, GRADIENTS), forward, backward, shapes)


def run(c: Convolution) -> tuple[Tensor, Tensor]:
    """`short_convolution` on any device."""
    if c.time != 1 or torch.is_grad_enabled() or c.state is None or torch.compiler.is_compiling():
        return _operator(*c)
    window = torch.cat((c.state, c.x.unsqueeze(1)), dim=1)
    taps = c.weight[:, : c.weight.shape[1] - c.biased]
    y = (window * taps.T).sum(1, dtype=c.dtype)
    y = y + c.weight[:, -1] if c.biased else y
    return (silu(y) if c.activated else y).to(c.x.dtype), window[:, 1:]
