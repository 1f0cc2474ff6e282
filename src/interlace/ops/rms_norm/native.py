"""RMSNorm by the compiled kernels, as torch custom ops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import kernels
from interlace.ops.core.kernels import DTYPES, NONE, address, rows
from interlace.ops.rms_norm.operands import Form, Operands

# Not by `core.custom_op`: of x and `before` only the sum is kept, and of `after` only its dtype. The schemas are
# written out, since the shape checks of the tests wrap these functions and hide their annotations from torch.
_FORM = "float eps, float offset, str activation, bool gate_first"
_INPUTS = f"Tensor x, Tensor weight, Tensor? before, Tensor? gate, Tensor? after, {_FORM}, ScalarType dtype"


def refuses(operands: Operands) -> str | None:
    """Return why the kernels cannot serve a call, or None."""
    x, weight, before, gate, after, _, dtype = operands
    if dtype not in DTYPES:
        return f"the kernels write float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    return kernels.refuses(x, weight, before, gate, after)


def prepare(operands: Operands) -> tuple[list[Tensor | None], list[int]]:
    """Return the tensors as the kernels read them, dtypes, strides and sizes; the tensors must outlive the call."""
    x, weight, before, gate, after, form, dtype = operands
    heads = math.prod(x.shape[1:-1])
    read = [y if y is None else y.contiguous() if y.ndim == 1 else rows(y) for y in (x, before, after, gate)]
    dtypes = [0 if y is None else DTYPES[y.dtype] for y in (*read, weight)]
    strides = [0 if y is None or y.ndim == 1 else y.stride(0) for y in read]
    count = math.prod(x.shape[:-1])
    sizes = [*dtypes, DTYPES[dtype], *strides, count, heads, x.shape[-1], torch.get_num_threads()]
    sizes += [form.activation == "sigmoid", form.gate_first, weight.ndim == 2]
    return [*read, weight.contiguous()], sizes


@torch.library.custom_op(
    "interlace::rms_norm_native", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)", device_types="cpu"
)
def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, before, gate, after, *form, dtype = inputs
    return immediately(Operands(x, weight, before, gate, after, Form(*form), dtype))


@_forward.register_fake
def _shapes(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, _, before, *_, dtype = inputs
    out = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    total = x.new_empty(0) if before is None else torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, total, x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op(
    "interlace::rms_norm_native_backward",
    mutates_args=(),
    schema="(Tensor d_out, Tensor? d_sum, Tensor x, Tensor weight, Tensor? gate, Tensor inverse, ScalarType? before, "
    f"{_FORM}) -> (Tensor, Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def _backward(d_out: Tensor, d_sum: Tensor | None, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight, gate, inverse, before, *form = inputs
    grads = _gradients(d_out, d_sum, *inputs)
    tensors, sizes = prepare(Operands(x, weight, None, gate, None, Form(*form), d_out.dtype))
    sizes[1] = DTYPES[before or torch.float32]
    d_out, d_sum = d_out.contiguous(), None if d_sum is None else d_sum.to(x.dtype).contiguous()
    given = [address(d_out), address(d_sum), address(inverse)]
    to = [address(g) if g.numel() else NONE for g in grads]
    kernels.module().rms_norm_backward([address(t) for t in tensors], sizes, form[:2], given, to)
    return grads


@_backward.register_fake
def _gradients(d_out: Tensor, d_sum: Tensor | None, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight, gate, _, before, *_ = inputs
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    d_before = x.new_empty(0) if before in (None, x.dtype) else torch.empty_like(d_x, dtype=before)
    d_gate = x.new_empty(0) if gate is None else torch.empty_like(gate, memory_format=torch.contiguous_format)
    return d_x, d_before, d_gate, torch.empty_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, before, gate, after, *ctx.form, _ = inputs
    _, total, inverse = output
    ctx.save_for_backward(x if before is None else total, weight, gate, inverse)
    ctx.before, ctx.after = (None if y is None else y.dtype for y in (before, after))
    ctx.mark_non_differentiable(inverse)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, d_out: Tensor | None, d_sum: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x, weight, gate, inverse = ctx.saved_tensors
    if d_out is None:
        d_before = None if ctx.before is None or d_sum is None else d_sum.to(ctx.before)
        return d_sum, None, d_before, *(None,) * 7
    d_sum = None if ctx.before is None else d_sum
    d_x, d_before, d_gate, d_weight = _backward(d_out, d_sum, x, weight, gate, inverse, ctx.before, *ctx.form)
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


_forward.register_autograd(_autograd, setup_context=_setup_context)


def immediately(operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """Call the kernel without autograd; return out, the sum (empty without `before`), and 1 / rms of each row."""
    form = operands.form
    out, total, inverse = _shapes(*operands)
    tensors, sizes = prepare(operands)
    to = [address(out), NONE if operands.before is None else address(total), address(inverse)]
    kernels.module().rms_norm_forward([address(t) for t in tensors], sizes, [form.eps, form.offset], to)
    return out, total, inverse


def run(operands: Operands) -> tuple[Tensor, Tensor]:
    """`rms_norm` on CPU tensors of float32 or bfloat16."""
    *tensors, form, dtype = operands
    if kernels.wants_graph(*tensors):
        out, total, _ = _forward(*tensors, *form, dtype)
    else:
        out, total, _ = immediately(operands)
    return out, operands.x if operands.before is None else total
