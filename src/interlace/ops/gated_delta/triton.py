"""The gated delta rule by Triton kernels: forward and backward as a custom operator.

A forward that will be differentiated keeps T, M, the decays of each chunk, and one state every PERIOD chunks of a
sequence; backward goes on from these. README.md beside this file says which kernel does what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.ops.core import gpu, kernels, rules, tables
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.operands import Recurrence
from interlace.ops.gated_delta import triton_backward, triton_forward

PERIOD = 8  # chunks


class Tiles(NamedTuple):
    """The configuration of the kernels; all are measured by the budgets in tests/ops/budgets.json.

    Attributes:
        chunk: tokens.
        values: value columns of a program that scans.
        warps: of all kernels but `gradients`.
        stages: of the loops that load ahead.
        keys, columns, gradient_warps: key channels, value columns at a time and warps of `gradients`.
    """

    chunk: int
    values: int
    warps: int
    stages: int
    keys: int
    columns: int
    gradient_warps: int


# By the first compute capability that a row serves. Hopper and Blackwell multiply 64 rows at a time from shared memory.
# Before them, and on Blackwell's consumer cards (12.0), both tiles pass through registers: half a chunk fits in them.
REGISTERS = Tiles(chunk=32, values=32, warps=4, stages=2, keys=64, columns=32, gradient_warps=4)
TILES = {
    0: REGISTERS,
    90: Tiles(chunk=64, values=64, warps=4, stages=2, keys=64, columns=32, gradient_warps=8),
    100: Tiles(chunk=64, values=64, warps=8, stages=2, keys=64, columns=32, gradient_warps=8),
    120: REGISTERS,
}
WIDE = Tiles(chunk=32, values=32, warps=4, stages=2, keys=64, columns=32, gradient_warps=4)  # keys of more than 128
EXACT = Tiles(chunk=16, values=16, warps=8, stages=1, keys=32, columns=16, gradient_warps=4)  # float32


def tiles(architecture: int, key_dim: int, value_dim: int, dtype: torch.dtype) -> Tiles:
    """Return the configuration for an architecture, a head and a dtype; small heads have small tiles."""
    if dtype == torch.float32:
        found = EXACT
    elif key_dim > 128:
        found = WIDE
    else:
        found = TILES[max(first for first in TILES if first <= architecture)]
    columns = power(value_dim)
    keys = min(found.keys, power(key_dim))
    return found._replace(values=min(found.values, columns), columns=min(found.columns, columns), keys=keys)


def power(n: int) -> int:
    """Return the smallest power of two that is at least n, and at least 16, as products want it."""
    return max(16, 1 << (n - 1).bit_length())


def pieces(key_dim: int) -> tuple[int, int]:
    """Return the two powers of two, the second perhaps 0, in which K channels are read: 96 as 64 + 32."""
    whole = power(key_dim)
    rest = key_dim - whole // 2
    if whole <= 64 and (key_dim == whole or power(rest) == whole // 2):
        return whole, 0
    return whole // 2, power(rest)


class Plan:
    """One call's sizes, configuration and tables."""

    def __init__(self, x: Recurrence) -> None:
        """x: on one device, contiguous, not to be normalised."""
        assert x.offsets is not None
        self.x, self.device = x, x.query.device
        _, self.H, self.K = x.query.shape
        self.total, self.G, self.V = x.value.shape
        self.dtype = x.value.dtype
        self.tiles = tiles(gpu.architecture(self.device), self.K, self.V, self.dtype)
        self.tables = tables.chunks(x.offsets, self.device, self.tiles.chunk, PERIOD)
        self.lanes, self.blocks = x.rows * self.G, -(-self.V // self.tiles.values)
        K1, K2 = pieces(self.K)
        self.sizes = {"K": self.K, "K1": K1, "K2": K2, "C": self.tiles.chunk}
        self.scans = {**self.sizes, "V": self.V, "BV": self.tiles.values}

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor with nothing in it."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def launch(self, kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """Run a kernel in the configuration's warps and stages."""
        gpu.launch(kernel, programs, arguments, constants, self.tiles.warps, self.tiles.stages)


def prepared(x: Recurrence) -> Recurrence:
    """Return the call as the kernels read it: q, k and v contiguous in one dtype, and a contiguous float32 state."""
    dtype = x.value.dtype
    query, key, value = (y.to(dtype).contiguous() for y in (x.query, x.key, x.value))
    state = None if x.state is None else x.state.to(torch.float32).contiguous()
    gates = (x.log_decay.contiguous(), x.strength.contiguous())
    return x._replace(
        query=query, key=key, value=value, log_decay=gates[0], strength=gates[1], state=state, normalise=False
    )


def _shapes(*inputs: Any) -> tuple[Tensor, ...]:
    *operands, differentiable = inputs
    out, final = rules.shapes(*operands)
    x = Recurrence(*operands)
    (total, G, V), K, device = x.value.shape, x.key.shape[2], x.value.device
    C = tiles(gpu.architecture(device), K, V, x.value.dtype).chunk
    most = total // C + x.rows  # chunks; how many there are is not known from shapes alone
    kept = (most, total // (C * PERIOD)) if differentiable else (0, 0)
    square = [x.value.new_empty(kept[0], G, C, C) for _ in range(2)]
    decays = final.new_empty(kept[0], G, triton_forward.ROWS.value, C)
    return out, final, *square, decays, x.value.new_empty(kept[1], G, V, K)


def _forward(*inputs: Any) -> tuple[Tensor, ...]:
    *operands, differentiable = inputs
    outputs = out, final, T, M, decays, kept = _shapes(*inputs)
    x = prepared(Recurrence(*operands))
    plan = Plan(x)
    t, count, G, C = plan.tables, plan.tables.count, plan.G, plan.tiles.chunk
    if not differentiable:
        T, M = plan.new(count, G, C, C), plan.new(count, G, C, C)
        decays = plan.new(count, G, triton_forward.ROWS.value, C, dtype=torch.float32)
    plan.launch(
        triton_forward.prepare,
        count * G,
        (x.query, x.key, x.log_decay, x.strength, t.chunks, T, M, decays, plan.H, G, x.scale),
        {**plan.sizes, "LEVELS": C.bit_length() - 1, "NARROW": plan.dtype == torch.bfloat16},
    )
    plan.launch(
        triton_forward.scan,
        plan.lanes * plan.blocks,
        (x.query, x.key, x.value, T, M, decays, t.sequences, t.offsets, x.state, out, final, kept, plan.H, G),
        {**plan.scans, "STATE": x.state is not None, "KEEP": PERIOD if differentiable else 0},
    )
    return outputs


def _backward(d_out: Tensor, d_final: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    T, M, decays, kept, *operands, _ = given
    original = Recurrence(*operands)
    x = prepared(original)
    plan = Plan(x)
    t, count, (H, G), (K, V) = plan.tables, plan.tables.count, (plan.H, plan.G), (plan.K, plan.V)
    d_out = d_out.to(plan.dtype).contiguous()
    d_final = None if d_final is None else d_final.to(torch.float32).contiguous()
    entry, d_exit = plan.new(count, G, V, K), plan.new(count, G, V, K)
    written, d_right, dv = (plan.new(plan.total, G, V) for _ in range(3))
    d_state = plan.new(*((x.rows, G, K, V) if x.state is not None else (0,)), dtype=torch.float32)
    state = {"STATE": x.state is not None}
    plan.launch(
        triton_backward.states,
        t.stretches * G * plan.blocks,
        (x.key, x.value, T, decays, t.sequences, t.offsets, t.stretch, x.state, kept, entry, written, H, G),
        plan.scans | state,
    )
    plan.launch(
        triton_backward.reverse,
        plan.lanes * plan.blocks,
        (x.query, x.key, d_out, T, M, decays, t.sequences, t.offsets, d_final, d_state, d_exit, d_right, H, G),
        {**plan.scans, "FINAL": d_final is not None, **state},
    )
    blocks = -(-K // plan.tiles.keys)
    dq, dk = plan.new(plan.total, G, K), plan.new(plan.total, G, K)
    dg, db = (plan.new(blocks, plan.total, G, dtype=torch.float32) for _ in range(2))
    read = (x.query, x.key, x.value, d_out, decays, t.chunks, entry, d_exit, written, d_right)
    gpu.launch(
        triton_backward.gradients,
        blocks * count * G,
        (*read, dq, dk, dv, dg, db, H, G, plan.total, x.scale),
        {"K": K, "V": V, "BK": plan.tiles.keys, "C": plan.tiles.chunk, "BV": plan.tiles.columns},
        plan.tiles.gradient_warps,
        plan.tiles.stages,
    )
    if G != H:
        dq, dk = (y.unflatten(1, (H, -1)).sum(2) for y in (dq, dk))
    found = (dq, dk, dv, dg.sum(0), db.sum(0))
    return *(d.to(y.dtype) for d, y in zip(found, original[:5], strict=True)), d_state


_operator = custom_op(
    "gated_delta_triton",
    Signature(f"{rules.INPUTS}, bool differentiable", rules.GRADIENTS, outputs=6, hidden=4),
    _forward,
    _backward,
    _shapes,
)


def run(x: Recurrence) -> tuple[Tensor, Tensor]:
    """`gated_delta` on tensors of float32 or bfloat16 on a GPU."""
    x = x.unit()
    if x.offsets is None:
        x = x._replace(offsets=torch.arange(x.rows + 1, dtype=torch.int32))
    out, final, *_ = _operator(*x, kernels.wants_gradients(*x.tensors))
    return out, final
