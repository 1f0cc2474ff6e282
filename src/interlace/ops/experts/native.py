"""Experts by the compiled kernel, which reads a chosen expert once for every row that chose it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import kernels
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.kernels import DTYPES, address, floats
from interlace.ops.core.quantised import Quantised
from interlace.ops.experts import sorted
from interlace.ops.experts.sorted import Expert


def refuses(x: Tensor, chosen: Tensor, weights: Tensor, first: Expert, second: Expert, _: str) -> str | None:
    """Return why the kernel cannot serve a call, or None."""
    return kernels.refuses(x, *(w for w in (first, second) if isinstance(w, Tensor)))


def of_one_dtype(x: Tensor, chosen: Tensor, weights: Tensor, first: Expert, *_: Any) -> bool:
    """Return whether the experts need not be cast; a cast costs more than the kernel saves."""
    return isinstance(first, Quantised) or first.dtype == x.dtype


def immediately(x: Tensor, chosen: Tensor, weights: Tensor, first: Expert, second: Expert, activation: str) -> Tensor:
    """Call the kernel without autograd."""
    x, chosen, weights = x.contiguous(), chosen.contiguous(), floats(weights)
    out = x.new_empty(x.shape[0], second.shape[1])
    sizes = [DTYPES[x.dtype], *chosen.shape, x.shape[1], first.shape[1], second.shape[2], second.shape[1]]
    sizes += [activation == "swiglu", torch.get_num_threads(), first.shape[0]]
    operands = [address(y) for y in (x, chosen, weights)]
    if isinstance(first, Quantised) and isinstance(second, Quantised):
        (parts, how), (more, _) = kernels.quantised(first), kernels.quantised(second)
        good = kernels.module().experts_quantised(operands, parts, more, how, sizes, address(out))
    else:
        assert isinstance(first, Tensor)
        assert isinstance(second, Tensor)
        first, second = first.to(x.dtype).contiguous(), second.to(x.dtype).contiguous()
        good = kernels.module().experts(operands, address(first), address(second), sizes, address(out))
    if not good:
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
