"""RMSNorm by the compiled kernels, as torch custom ops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import kernels
from interlace.ops.core.kernels import DTYPES, NONE, address, rows
from interlace.ops.rms_norm.differentiable import differentiable, gradients, outputs
from interlace.ops.rms_norm.operands import Form, Operands


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


def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, before, gate, after, *form, dtype = inputs
    return immediately(Operands(x, weight, before, gate, after, Form(*form), dtype))


def _backward(d_out: Tensor, d_sum: Tensor | None, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight, gate, inverse, before, *form = inputs
    grads = gradients(d_out, d_sum, *inputs)
    tensors, sizes = prepare(Operands(x, weight, None, gate, None, Form(*form), d_out.dtype))
    sizes[1] = DTYPES[before or torch.float32]
    d_out, d_sum = d_out.contiguous(), None if d_sum is None else d_sum.to(x.dtype).contiguous()
    given = [address(d_out), address(d_sum), address(inverse)]
    to = [address(g) if g.numel() else NONE for g in grads]
    kernels.module().rms_norm_backward([address(t) for t in tensors], sizes, form[:2], given, to)
    return grads


_operator = differentiable("rms_norm_native", _forward, _backward, "cpu")


def immediately(operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """Call the kernel without autograd; return out, the sum (empty without `before`), and 1 / rms of each row."""
    form = operands.form
    out, total, inverse = outputs(*operands)
    tensors, sizes = prepare(operands)
    to = [address(out), NONE if operands.before is None else address(total), address(inverse)]
    kernels.module().rms_norm_forward([address(t) for t in tensors], sizes, [form.eps, form.offset], to)
    return out, total, inverse


def run(operands: Operands) -> tuple[Tensor, Tensor]:
    """`rms_norm` on CPU tensors of float32 or bfloat16."""
    *tensors, form, dtype = operands
    if kernels.wants_graph(*tensors):
        out, total, _ = _operator(*tensors, *form, dtype)
    else:
        out, total, _ = immediately(operands)
    return out, operands.x if operands.before is None else total
