"""The short convolution by the compiled kernels, SiLU fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import kernels
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.kernels import DTYPES, address, rows
from interlace.ops.short_convolution.operands import GRADIENTS, INPUTS, Convolution, shapes


def prepare(c: Convolution) -> tuple[list[Tensor | None], list[int]]:
    """Return the tensors as the kernels read them, and sizes, strides and dtypes; the tensors must outlive the call."""
    x, weight = rows(c.x), c.weight.contiguous()
    state = None if c.state is None else c.state.to(x.dtype).contiguous()
    sizes = [c.offsets.shape[0] - 1, x.shape[1], c.history + 1, x.stride(0), DTYPES[x.dtype], DTYPES[weight.dtype]]
    sizes += [c.activated, c.biased, torch.get_num_threads()]
    return [x, weight, kernels.borders(c.offsets), state], sizes


def _forward(*operands: Any) -> tuple[Tensor, Tensor]:
    out, windows = shapes(*operands)
    tensors, sizes = prepare(Convolution(*operands))
    kernels.module().short_convolution_forward([address(t) for t in tensors], sizes, address(out), address(windows))
    return out, windows


def _backward(d_out: Tensor, d_windows: Tensor | None, *operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    c = Convolution(*operands)
    tensors, sizes = prepare(c)
    d_out = d_out.to(c.x.dtype).contiguous()
    d_windows = None if d_windows is None else d_windows.to(c.x.dtype).contiguous()
    dx = torch.empty_like(c.x, memory_format=torch.contiguous_format)
    d_weight = c.weight.new_empty(c.weight.shape, dtype=torch.float32)
    d_state = c.x.new_empty(0 if c.state is None else c.state.shape)
    given, to = [address(d_out), address(d_windows)], [address(dx), address(d_weight)]
    to.append(kernels.NONE if c.state is None else address(d_state))
    kernels.module().short_convolution_backward([address(t) for t in tensors], sizes, given, to)
    return dx, d_weight.to(c.weight.dtype), d_state if c.state is None else d_state.to(c.state.dtype)


_operator = custom_op(
    "short_convolution_native", Signature(INPUTS, GRADIENTS, device="cpu"), _forward, _backward, shapes
)


def refuses(c: Convolution) -> str | None:
    """Return why the kernels cannot serve a call, or None."""
    if c.history >= 64:
        return f"the kernels take at most 64 taps, not {c.history + 1}"
    return kernels.refuses(c.x, c.weight)


def run(c: Convolution) -> tuple[Tensor, Tensor]:
    """`short_convolution` on CPU tensors of float32 or bfloat16."""
    return _operator(*c) if kernels.wants_graph(c.x, c.weight, c.state) else _forward(*c)
