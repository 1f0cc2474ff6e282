"""SwiGLU by the compiled kernels, as torch custom ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import kernels as native
from interlace.ops.core.kernels import DTYPES, address


def prepare(gate_up: Tensor) -> list[int]:
    """Addresses of both halves, dtype, stride, rows, D and threads."""
    first, (rows, double) = address(gate_up), gate_up.shape
    half = double // 2
    sizes = [DTYPES[gate_up.dtype], double, rows, half, torch.get_num_threads()]
    return [first, first + half * gate_up.element_size(), *sizes]


@torch.library.custom_op(
    "interlace::swiglu_native", mutates_args=(), schema="(Tensor gate_up) -> Tensor", device_types="cpu"
)
def _forward(gate_up: Tensor) -> Tensor:
    return immediately(gate_up)


@_forward.register_fake
def _empty(gate_up):  # type: ignore[no-untyped-def]
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@torch.library.custom_op(
    "interlace::swiglu_native_backward",
    mutates_args=(),
    schema="(Tensor d_out, Tensor gate_up) -> Tensor",
    device_types="cpu",
)
def _backward(d_out: Tensor, gate_up: Tensor) -> Tensor:
    gate_up, d_out = gate_up.contiguous(), d_out.to(gate_up.dtype).contiguous()
    grad = torch.empty_like(gate_up)
    half = grad.shape[1] // 2 * grad.element_size()
    native.kernels().swiglu_backward(address(d_out), *prepare(gate_up), address(grad), address(grad) + half)
    return grad


@_backward.register_fake
def _empty_gradient(d_out, gate_up):  # type: ignore[no-untyped-def]
    return torch.empty_like(gate_up, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, d_out: Tensor) -> Tensor:
    return _backward(d_out, *ctx.saved_tensors)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def immediately(gate_up: Tensor) -> Tensor:
    """Without autograd."""
    gate_up = gate_up.contiguous()
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    native.kernels().swiglu(*prepare(gate_up), address(out))
    return out


def run(gate_up: Tensor) -> Tensor:
    """`swiglu` on CPU tensors of float32 or bfloat16."""
    return _forward(gate_up) if native.wants_graph(gate_up) else immediately(gate_up)
