"""RMSNorm by Triton kernels, as torch custom ops."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.ops.core import gpu, kernels
from interlace.ops.rms_norm import triton_kernels
from interlace.ops.rms_norm.differentiable import differentiable, gradients, outputs
from interlace.ops.rms_norm.operands import Operands


class Tile(NamedTuple):
    """What a program holds at a time.

    Attributes:
        rows: of the tile.
        columns: a power of two.
        warps: that share it.
    """

    rows: int
    columns: int
    warps: int


# Elements of a tile, of which each thread holds 16 (a row of 8192 and more: 32). Backward's tile is larger, since each
# of its programs leaves a row of partial sums.
FORWARD, BACKWARD = 2048, 4096
WARPS = {2048: 4, 4096: 8, 8192: 8, 16384: 16}
BACKWARD_WARPS = {4096: 8, 8192: 16, 16384: 16}
AHEAD, SHARED = 2, 1 << 16  # tiles that backward's programs load ahead, and bytes that they have for it
RESIDENT = {8: 2, 16: 1}  # programs of backward of so many warps that a processor of the GPU holds at a time
STRIDES = ("X_ROW", "BEFORE_ROW", "GATE_ROW", "AFTER_ROW")


def tile(D: int, elements: int, warps: dict[int, int]) -> Tile:
    """Return a tile of at least so many elements, for rows of D."""
    columns = 1 << (D - 1).bit_length()
    elements = max(elements, columns)
    return Tile(elements // columns, columns, warps[elements])


class Rows:
    """How the rows of an operand lie: as many as `heads` to a token, beside each other."""

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        """x: [D], [rows, D] or [total, heads, D]; weight: [D], or [heads, D]."""
        self.D, self.heads = x.shape[-1], math.prod(x.shape[1:-1])
        self.tokens = math.prod(x.shape[:-1]) // max(1, self.heads)
        self.per_head = weight.ndim == 2

    def read(self, x: Tensor | None) -> tuple[Tensor | None, int]:
        """Return an operand as the kernels read it, and how far apart its tokens lie."""
        if x is None:
            return None, 0
        x = x.contiguous() if x.ndim == 1 else kernels.rows(x)
        return x, self.heads * self.D if x.ndim == 1 or x.shape[0] == 1 else x.stride(0)

    def blocks(self, rows: int) -> int:
        """Return how many tiles of so many rows there are; with weights per head, a tile is of one head."""
        if self.per_head:
            return -(-self.tokens // rows) * self.heads
        return -(-self.tokens * self.heads // rows)


def forward_into(operands: tuple[Any, ...], out: Tensor, total: Tensor, inverse: Tensor) -> None:
    """Fill what `_forward` returns; all are contiguous.

    operands: x, weight, before, gate, after, and the form: eps, offset, activation, gate_first.
    """
    x, weight, before, gate, after, eps, offset, activation, gate_first = operands
    rows = Rows(x, weight)
    t = tile(rows.D, FORWARD, WARPS)
    read = [rows.read(y) for y in (x, before, gate, after)]
    constants = {"D": rows.D, "HEADS": rows.heads, "ROWS": t.rows, "COLS": t.columns, "PER_HEAD": rows.per_head}
    constants |= {name: stride for name, (_, stride) in zip(STRIDES, read, strict=True)}
    constants |= {"BEFORE": before is not None, "GATE": gate is not None, "AFTER": after is not None}
    constants |= {"SIGMOID": activation == "sigmoid", "FIRST": gate_first}
    arguments = (*(y for y, _ in read), weight.contiguous(), out, total, inverse, rows.tokens, eps, offset)
    gpu.launch(triton_kernels.forward, rows.blocks(t.rows), arguments, constants, t.warps)


def backward_into(
    d_out: Tensor, d_sum: Tensor | None, operands: tuple[Any, ...], d_x: Tensor, d_before: Tensor, d_gate: Tensor
) -> Tensor:
    """Fill the gradients of x, `before` and the gate, whose rows may lie apart; return the weight's, in float32.

    operands: x (the sum), weight, gate, inverse, and the form's offset, activation and gate_first.
    """
    x, weight, gate, inverse, offset, activation, gate_first = operands
    rows = Rows(x, weight)
    t = tile(rows.D, BACKWARD, BACKWARD_WARPS)
    blocks, heads = rows.blocks(t.rows), rows.heads if rows.per_head else 1
    wanted = gpu.processors(x.device) * RESIDENT[t.warps]
    programs = min(blocks, max(1, wanted // heads) * heads)
    partial = torch.empty(programs, rows.D, dtype=torch.float32, device=x.device)
    (s, x_row), (opening, gate_row), (_, d_gate_row) = rows.read(x), rows.read(gate), rows.read(gate)
    if gate is not None and d_gate.ndim > 1 and d_gate.shape[0] > 1:
        d_gate_row = d_gate.stride(0)
    ahead = SHARED // (t.rows * t.columns * sum(y.element_size() for y in (d_out, d_sum, x, gate) if y is not None))
    constants = {"D": rows.D, "HEADS": rows.heads, "ROWS": t.rows, "COLS": t.columns, "PER_HEAD": rows.per_head}
    constants |= {"X_ROW": x_row, "GATE_ROW": gate_row, "D_GATE_ROW": d_gate_row, "SUM": d_sum is not None}
    constants |= {"BEFORE": d_before.numel() > 0, "GATE": gate is not None, "STAGES": 1 + min(AHEAD, ahead)}
    constants |= {"SIGMOID": activation == "sigmoid", "FIRST": gate_first}
    d_sum = None if d_sum is None else d_sum.contiguous()
    read = (d_out.contiguous(), d_sum, s, opening, weight.contiguous(), inverse)
    sizes = (rows.tokens, -(-blocks // max(1, programs)), programs)
    gpu.launch(
        triton_kernels.backward, programs, (*read, d_x, d_before, d_gate, partial, *sizes, offset), constants, t.warps
    )
    return partial.view(-1, *weight.shape).sum(0)


def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = outputs(*inputs)
    forward_into(inputs[:-1], *found)
    return found


def _backward(d_out: Tensor, d_sum: Tensor | None, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight, gate, inverse, _, _, *form = inputs
    d_x, d_before, d_gate, _ = gradients(d_out, d_sum, *inputs)
    d_weight = backward_into(d_out, d_sum, (x, weight, gate, inverse, *form), d_x, d_before, d_gate)
    return d_x, d_before, d_gate, d_weight


_operator = differentiable("rms_norm_triton", _forward, _backward)


def run(operands: Operands) -> tuple[Tensor, Tensor]:
    """`rms_norm` on tensors of float32 or bfloat16 on a GPU."""
    *tensors, form, dtype = operands
    call = _operator if kernels.wants_graph(*tensors) else _forward
    out, total, _ = call(*tensors, *form, dtype)
    return out, operands.x if operands.before is None else total
