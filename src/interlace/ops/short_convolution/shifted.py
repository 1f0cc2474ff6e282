"""The convolution as W shifted multiply-adds, a block of rows at a time so that the block stays in cache.

Segments never mix: each is cut from the flat axis as a view, with its own history. Equal segments are one view.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def views(x: Tensor, offsets: Tensor, time: int) -> list[tuple[slice, Tensor]]:
    """(rows of the state, [rows, T, D] view of the flat axis) for all segments at once, or one by one."""
    N = offsets.shape[0] - 1
    if time:
        return [(slice(0, N), x.unflatten(0, (N, time)))]
    bounds = offsets.tolist()
    return [(slice(n, n + 1), x[bounds[n] : bounds[n + 1]].unsqueeze(0)) for n in range(N)]


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
    """The window [rows, W-1, D] that the next token will see."""
    T = x.shape[1]
    if history <= T:
        return x[:, T - history :]
    old = x.new_zeros(x.shape[0], history, x.shape[2]) if past is None else past
    return torch.cat((old[:, T:], x), dim=1)


def forward(
    x: Tensor, weight: Tensor, offsets: Tensor, state: Tensor | None, activated: bool, biased: bool, time: int
) -> tuple[Tensor, Tensor]:
    """(out [total, D], windows [N, W-1, D]); arithmetic in float32 at least."""
    y = linear(x, weight, offsets, state, biased, time)
    history = weight.shape[1] - biased - 1
    windows = [
        last_rows(view, None if state is None else state[rows].to(x.dtype), history)
        for rows, view in views(x, offsets, time)
    ]
    return (silu(y) if activated else y).to(x.dtype), torch.cat(windows).clone()


def linear(x: Tensor, weight: Tensor, offsets: Tensor, state: Tensor | None, biased: bool, time: int) -> Tensor:
    """The convolution before its activation, [total, D] in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, columns = x.to(dtype), weight.to(dtype).T.contiguous()
    taps = columns[: columns.shape[0] - biased]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for (rows, source), (_, target) in zip(views(x, offsets, time), views(y, offsets, time), strict=True):
        convolve(source, taps, None if state is None else state[rows].to(dtype), target)
    return y.add_(columns[-1]) if biased else y


def backward(
    d_out: Tensor,
    d_windows: Tensor | None,
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    state: Tensor | None,
    activated: bool,
    biased: bool,
    time: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and state (empty if None); the pre-activation is computed again."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    d = d_out.to(dtype)
    if activated:
        d = torch.ops.aten.silu_backward(d, linear(x, weight, offsets, state, biased, time))
    source, columns = x.to(dtype), weight.to(dtype).T.contiguous()
    dx, dcolumns = torch.empty_like(source, memory_format=torch.contiguous_format), torch.zeros_like(columns)
    taps, dtaps = (c[: c.shape[0] - biased] for c in (columns, dcolumns))
    if biased:
        dcolumns[-1] = d.sum(0)
    dpast = None if state is None else torch.zeros_like(state, dtype=dtype)
    parts = zip(*(views(z, offsets, time) for z in (d.contiguous(), source, dx)), strict=True)
    for (rows, dv), (_, xv), (_, dxv) in parts:
        past = None if state is None else state[rows].to(dtype)
        convolve_back(dv, xv, taps, past, dxv, dtaps, None if dpast is None else dpast[rows])
        if d_windows is not None:
            history, T = taps.shape[0] - 1, xv.shape[1]
            kept = min(history, T)
            dxv[:, T - kept :] += d_windows[rows, history - kept :]
            if dpast is not None and history > T:
                dpast[rows, T:] += d_windows[rows, : history - T]
    d_state = x.new_zeros(0) if dpast is None or state is None else dpast.to(state.dtype)
    return dx.to(x.dtype), dcolumns.T.contiguous().to(weight.dtype), d_state
