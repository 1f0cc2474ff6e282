"""Experts by the compiled kernel, which reads a chosen expert once for every row that chose it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import kernels
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.kernels import DTYPES, address, floats
from interlace.ops.experts import sorted


def refuses(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, _: str) -> str | None:
    """Return why the kernel cannot serve a call, or None."""
    return kernels.refuses(x, first, second)


def of_one_dtype(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, *_: Any) -> bool:
    """Return whether the experts need not be cast; a cast costs more than the kernel saves."""
    return first.dtype == x.dtype


def immediately(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    """Call the kernel without autograd."""
    x, chosen, weights = x.contiguous(), chosen.contiguous(), floats(weights)
    first, second = first.to(x.dtype).contiguous(), second.to(x.dtype).contiguous()
    out = x.new_empty(x.shape[0], second.shape[1])
    sizes = [DTYPES[x.dtype], *chosen.shape, x.shape[1], first.shape[1], second.shape[2], second.shape[1]]
    sizes += [activation == "swiglu", torch.get_num_threads(), first.shape[0]]
    operands = (x, chosen, weights, first, second)
    if not kernels.module().experts([address(y) for y in operands], sizes, address(out)):
        raise ShapeError(
            f"experts: chosen must lie in [0, {first.shape[0]}), got {int(chosen.min())} to {int(chosen.max())}"
        )
    return out


_operator = custom_op(
    "experts_native",
    Signature(sorted.INPUTS, sorted.GRADIENTS, outputs=1, device="cpu"),
    immediately,
    sorted.backward,
    sorted.shapes,
)


def run(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    """`experts` on CPU tensors of float32 or bfloat16."""
    call = _operator if kernels.wants_graph(x, weights, first, second) else immediately
    return call(x, chosen, weights, first, second, activation)
