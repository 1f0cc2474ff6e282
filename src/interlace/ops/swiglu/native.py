"""SwiGLU by the compiled kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core import kernels
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.kernels import DTYPES, address


def prepare(gate_up: Tensor) -> list[int]:
    """Return addresses of both halves, dtype, stride, rows, D and threads."""
    first, (rows, double) = address(gate_up), gate_up.shape
    half = double // 2
    sizes = [DTYPES[gate_up.dtype], double, rows, half, torch.get_num_threads()]
    return [first, first + half * gate_up.element_size(), *sizes]


def _shapes(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _backward(d_out: Tensor, gate_up: Tensor) -> Tensor:
    gate_up, d_out = gate_up.contiguous(), d_out.to(gate_up.dtype).contiguous()
    grad = torch.empty_like(gate_up)
    half = grad.shape[1] // 2 * grad.element_size()
    kernels.module().swiglu_backward(address(d_out), *prepare(gate_up), address(grad), address(grad) + half)
    return grad


def immediately(gate_up: Tensor) -> Tensor:
    """Call the kernel without autograd."""
    gate_up = gate_up.contiguous()
    out = _shapes(gate_up)
    kernels.module().swiglu(*prepare(gate_up), address(out))
    return out


_operator = custom_op(
    "swiglu_native",
    Signature("Tensor gate_up", ("gate_up",), outputs=1, device="cpu"),
    lambda gate_up: immediately(gate_up),
    _backward,
    _shapes,
)


def run(gate_up: Tensor) -> Tensor:
    """`swiglu` on CPU tensors of float32 or bfloat16."""
    return _operator(gate_up) if kernels.wants_graph(gate_up) else immediately(gate_up)
