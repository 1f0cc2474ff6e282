"""The short convolution by Triton kernels, SiLU fused, as a custom operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import gpu, tables
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.short_convolution import triton_kernels
from interlace.ops.short_convolution.operands import GRADIENTS, INPUTS, Convolution, shapes

CHUNK = 64  # tokens of a program: 2 x 3 of them are read twice
BLOCK = 256  # channels of a program: 4 bytes of bfloat16 for each of 128 threads, and few registers


def _prepared(c: Convolution) -> Convolution:
    """Return the call with rows as the kernels read them."""
    state = None if c.state is None else c.state.to(c.x.dtype).contiguous()
    return c._replace(x=gpu.rows(c.x), weight=c.weight.contiguous(), state=state)


def _launch(
    kernel: Any, c: Convolution, table: tables.Chunks, tensors: tuple[Tensor | None, ...], *more: int, **constants: bool
) -> None:
    D = c.x.shape[1]
    block = min(BLOCK, max(32, 1 << (D - 1).bit_length()))
    sizes = {"W": c.history + 1, "BIAS": int(c.biased), "SILU": c.activated, "STATE": c.state is not None}
    arguments = (*tensors, table.chunks, table.owners, table.offsets, c.x.stride(0), D, *more)
    programs = table.count * -(-D // block)
    gpu.launch(kernel, programs, arguments, {**sizes, **constants, "BLOCK": block}, max(1, block // 64))


def convolve(c: Convolution, out: Tensor, windows: Tensor) -> None:
    """Fill the outputs [total, D], contiguous, and the windows."""
    c = _prepared(c)
    table = tables.chunks(c.offsets, c.device, CHUNK, tables.PERIOD)
    _launch(triton_kernels.forward, c, table, (c.x, c.weight, c.state, out, windows))


def go_back(c: Convolution, d_out: Tensor, d_windows: Tensor | None, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Fill dx, whose rows may lie apart; return the gradients of weight and state (empty if there is none)."""
    given, c = c, _prepared(c)
    table = tables.chunks(c.offsets, c.device, CHUNK, tables.PERIOD)
    d_out = d_out.to(c.x.dtype).contiguous()
    d_windows = None if d_windows is None else d_windows.contiguous()
    d_state = c.x.new_empty(0 if c.state is None else c.state.shape)
    shares = c.x.new_empty(table.count, c.weight.shape[1], c.x.shape[1], dtype=torch.float32)
    tensors = (c.x, c.weight, c.state, d_out, d_windows, dx, d_state, shares)
    _launch(triton_kernels.backward, c, table, tensors, dx.stride(0), WINDOWS=d_windows is not None)
    d_weight = shares.sum(0).T.to(c.weight.dtype).contiguous()
    return d_weight, d_state if given.state is None else d_state.to(given.state.dtype)


def _forward(*operands: Any) -> tuple[Tensor, Tensor]:
    out, windows = shapes(*operands)
    convolve(Convolution(*operands), out, windows)
    return out, windows


def _backward(d_out: Tensor, d_windows: Tensor | None, *operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    c = Convolution(*operands)
    dx = torch.empty_like(c.x, memory_format=torch.contiguous_format)
    return dx, *go_back(c, d_out, d_windows, dx)


_operator = custom_op("short_convolution_triton", Signature(INPUTS, GRADIENTS), _forward, _backward, shapes)


def run(c: Convolution) -> tuple[Tensor, Tensor]:
    """`short_convolution` on tensors of float32 or bfloat16 on a GPU."""
    return _operator(*c)
