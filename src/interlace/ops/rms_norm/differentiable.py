"""The norm as a differentiable custom operator of torch, made of a forward and a backward function.

Not by `core.custom_op`: of x and `before` only the sum is kept, and of `after` only its dtype. The schemas are written
out, since the shape checks of the tests wrap the functions and hide their annotations from torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interlace.ops.core.custom_op import define, differentiate

_FORM = "float eps, float offset, str activation, bool gate_first"
_INPUTS = f"Tensor x, Tensor weight, Tensor? before, Tensor? gate, Tensor? after, {_FORM}, ScalarType dtype"
_KEPT = (
    f"Tensor d_out, Tensor? d_sum, Tensor x, Tensor weight, Tensor? gate, Tensor inverse, ScalarType? before, {_FORM}"
)


def outputs(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, the sum (empty without `before`) and 1 / rms of each row, with nothing in them."""
    x, _, before, *_, dtype = inputs
    out = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    total = x.new_empty(0) if before is None else torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, total, x.new_empty(x.shape[:-1], dtype=torch.float32)


def gradients(d_out: Tensor, d_sum: Tensor | None, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, `before` (empty if it is x's), gate and weight (float32), with nothing in them."""
    x, weight, gate, _, before, *_ = inputs
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    d_before = x.new_empty(0) if before in (None, x.dtype) else torch.empty_like(d_x, dtype=before)
    d_gate = x.new_empty(0) if gate is None else torch.empty_like(gate, memory_format=torch.contiguous_format)
    return d_x, d_before, d_gate, torch.empty_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)


def differentiable(
    name: str, forward: Callable[..., Any], backward: Callable[..., Any], device: str | None = None
) -> Callable[..., Any]:
    """Register `interlace::NAME` and `interlace::NAME_backward`; return the operator.

    Args:
        forward: (x, weight, before, gate, after, *form, dtype) -> what `outputs` returns.
        backward: (d_out, d_sum, x or the sum, weight, gate, inverse, dtype of before or None, *form) -> what
            `gradients` returns.
        device: the type of device that they serve; None for any.
    """
    operator = define(name, f"({_INPUTS}) -> (Tensor, Tensor, Tensor)", forward, outputs, device)
    back = define(f"{name}_backward", f"({_KEPT}) -> (Tensor, Tensor, Tensor, Tensor)", backward, gradients, device)

    def autograd(ctx: Any, d_out: Tensor | None, d_sum: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        x, weight, gate, inverse = ctx.saved_tensors
        if d_out is None:
            d_before = None if ctx.before is None or d_sum is None else d_sum.to(ctx.before)
            return d_sum, None, d_before, *(None,) * 7
        d_sum = None if ctx.before is None else d_sum
        d_x, d_before, d_gate, d_weight = back(d_out, d_sum, x, weight, gate, inverse, ctx.before, *ctx.form)
        if ctx.before == x.dtype:
            d_before = d_x
        return (
            d_x,
            d_weight.to(weight.dtype),
            None if ctx.before is None else d_before,
            None if gate is None else d_gate,
            None if ctx.after is None else d_out.to(ctx.after),
            *(None,) * 5,
        )

    differentiate(name, autograd, _keep)
    return operator


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, before, gate, after, *ctx.form, _ = inputs
    _, total, inverse = output
    ctx.save_for_backward(x if before is None else total, weight, gate, inverse)
    ctx.before, ctx.after = (None if y is None else y.dtype for y in (before, after))
    ctx.mark_non_differentiable(inverse)
    ctx.set_materialize_grads(False)
