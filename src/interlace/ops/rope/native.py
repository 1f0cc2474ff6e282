"""Rotary positions by the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import kernels
from interlace.ops.core.custom_op import define, differentiate
from interlace.ops.core.kernels import DTYPES, address


def immediately(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """Call the kernel without autograd; back: turn the other way."""
    total, heads, dim = x.shape
    if x.stride(2) != 1 or x.stride(1) != dim:
        x = x.contiguous()
    cos, sin, out = cos.contiguous(), sin.contiguous(), _shapes(x, cos, sin, back)
    sizes = [total, heads, dim, cos.shape[1], x.stride(0)]
    kernels.module().rope(
        address(x), address(cos), address(sin), DTYPES[x.dtype], sizes, back, torch.get_num_threads(), address(out)
    )
    return out


def _shapes(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_operator = define(
    "rope_native", "(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor", immediately, _shapes, "cpu"
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])
    ctx.back = inputs[3]


def _backward(ctx: Any, due: Tensor) -> tuple[Tensor | None, ...]:
    return _operator(due, *ctx.saved_tensors, not ctx.back), None, None, None


differentiate("rope_native", _backward, _keep)


def run(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rope` on CPU tensors of float32 or bfloat16."""
    return _operator(x, cos, sin, False) if kernels.wants_graph(x) else immediately(x, cos, sin)
