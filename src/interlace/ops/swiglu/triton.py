"""SwiGLU by Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import gpu, kernels
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.swiglu import triton_kernels

ELEMENTS, COLUMNS, WARPS = 2048, 1024, 4  # of a tile: 16 elements of each operand to a thread


def _launch(kernel: Any, gate_up: Tensor, *others: Tensor) -> None:
    """others: what the kernel takes before gate_up, and then what it writes."""
    gate_up = kernels.rows(gate_up)
    *before, written = others
    rows, double = gate_up.shape
    D = double // 2
    columns = min(COLUMNS, 1 << (D - 1).bit_length())
    height = ELEMENTS // columns
    constants = {"D": D, "STRIDE": double if rows == 1 else gate_up.stride(0), "ROWS": height, "COLS": columns}
    programs = -(-rows // height) * -(-D // columns)
    gpu.launch(kernel, programs, (*before, gate_up, written, rows), constants, WARPS)


def _shapes(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _forward(gate_up: Tensor) -> Tensor:
    out = _shapes(gate_up)
    _launch(triton_kernels.forward, gate_up, out)
    return out


def _backward(d_out: Tensor, gate_up: Tensor) -> Tensor:
    grad = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
    _launch(triton_kernels.backward, gate_up, d_out.contiguous(), grad)
    return grad


_operator = custom_op(
    "swiglu_triton", Signature("Tensor gate_up", ("gate_up",), outputs=1), _forward, _backward, _shapes
)


def run(gate_up: Tensor) -> Tensor:
    """`swiglu` on tensors of float32 or bfloat16 on a GPU."""
    return _operator(gate_up) if kernels.wants_graph(gate_up) else _forward(gate_up)
