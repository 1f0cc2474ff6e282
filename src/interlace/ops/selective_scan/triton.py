"""The selective scan by Triton kernels: forward and backward as a custom operator.

A forward that will be differentiated keeps one state for each border of two stretches of a sequence; backward computes
the rest again. README.md beside this file says which kernel does what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.ops.core import gpu, kernels, tables
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.selective_scan import operands, triton_kernels
from interlace.ops.selective_scan.operands import Scan

PERIODS = (16, 64, 512)  # tiles of a stretch
PROGRAMS = 1024  # that keep a GPU busy


class Tiles(NamedTuple):
    """The configuration of the kernels.

    Attributes:
        tokens, channels: of a tile.
        warps, gradient_warps: of the forward kernels, and of `gradients`.
    """

    tokens: int
    channels: int
    warps: int
    gradient_warps: int


def tiles(size: int, time: int) -> Tiles:
    """Return the configuration for states of `size` entries; one token of each sequence makes the smallest tile."""
    tokens = 2 if time == 1 else max(4, min(16, 256 // power(size)))
    return Tiles(tokens=tokens, channels=32, warps=4, gradient_warps=8)


def power(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def period(count: int, programs: int) -> int:
    """Return how many tiles a stretch has: the most with which the programs of stretches still fill a GPU.

    Args:
        count: tiles of all sequences.
        programs: for each stretch.
    """
    most = count * programs // PROGRAMS
    return max((p for p in PERIODS if p <= most), default=PERIODS[0])


def configuration(s: Scan) -> tuple[Tiles, int]:
    """Return a call's tiles and how many of them a stretch has, from shapes alone."""
    (total, D), K = s.x.shape, s.A.shape[1]
    found = tiles(K, s.time)
    return found, period(total // found.tokens, -(-D // found.channels))


class Plan:
    """One call's sizes, configuration and tables."""

    def __init__(self, s: Scan) -> None:
        """s: contiguous tensors on one device."""
        self.s, self.device = s, s.x.device
        self.total, self.D = s.x.shape
        self.K, self.rows = s.A.shape[1], s.offsets.shape[0] - 1
        self.tiles, self.period = configuration(s)
        self.tables = tables.chunks(s.offsets, self.device, self.tiles.tokens, self.period)
        self.blocks = -(-self.D // self.tiles.channels)
        self.borders = self.tables.stretches - self.rows
        self.state = {"K": self.K, "KP": power(self.K), "BD": self.tiles.channels}
        self.sizes = {**self.state, "L": self.tiles.tokens}

    def new(self, *shape: int) -> Tensor:
        """Return a float32 tensor with nothing in it."""
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def launch(self, kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """Run a kernel on `programs` items of work for each block of channels."""
        backward = kernel is triton_kernels.gradients
        warps = self.tiles.gradient_warps if backward else self.tiles.warps
        gpu.launch(kernel, programs * self.blocks, arguments, constants, warps)

    def fill(self, x: Tensor, lines: Tensor, border: Tensor, given: Tensor | None, *, reverse: bool) -> None:
        """Write the state at each border of two stretches."""
        if not self.borders:
            return
        s, t, lasted = self.s, self.tables, self.new(self.borders, self.D)
        self.launch(
            triton_kernels.collect,
            t.stretches,
            (x, s.step, s.A, lines, t.sequences, t.offsets, t.stretch, border, lasted, self.D),
            {**self.sizes, "REVERSE": reverse},
        )
        self.launch(
            triton_kernels.carry,
            self.rows,
            (s.A, t.sequences, border, lasted, given, self.D),
            {**self.state, "PERIOD": self.period, "REVERSE": reverse, "GIVEN": given is not None},
        )

    def scan(self, border: Tensor, out: Tensor | None, final: Tensor | None, entry: Tensor | None) -> None:
        """Go through all stretches, for the outputs or for the state before each tile."""
        s, t = self.s, self.tables
        self.launch(
            triton_kernels.scan,
            t.stretches,
            (s.x, s.step, s.A, s.B, s.C, t.sequences, t.offsets, t.stretch, border, s.state, out, final, entry, self.D),
            {**self.sizes, "STATE": s.state is not None, "OUT": out is not None},
        )


def prepared(s: Scan) -> Scan:
    """Return the call as the kernels read it: contiguous tensors, and a float32 state."""
    x, step, A, B, C = (y.contiguous() for y in s[:5])
    state = None if s.state is None else s.state.to(torch.float32).contiguous()
    return Scan(x, step, A, B, C, s.offsets, state, s.time)


def _shapes(*inputs: Any) -> tuple[Tensor, ...]:
    *given, differentiable = inputs
    s = Scan(*given)
    found, run = configuration(s)
    most = s.x.shape[0] // (found.tokens * run)  # borders; how many there are is not known from shapes alone
    D, K = s.A.shape
    return *operands.shapes(*given), s.x.new_empty(most if differentiable else 0, K, D, dtype=torch.float32)


def _forward(*inputs: Any) -> tuple[Tensor, ...]:
    *given, differentiable = inputs
    outputs = out, final, border = _shapes(*inputs)
    plan = Plan(prepared(Scan(*given)))
    if not differentiable:
        border = plan.new(plan.borders, plan.K, plan.D)
    plan.fill(plan.s.x, plan.s.B, border, plan.s.state, reverse=False)
    plan.scan(border, out, final, None)
    return outputs


def _backward(d_out: Tensor, d_final: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    border, *inputs, _ = given
    original = Scan(*inputs)
    plan = Plan(prepared(original))
    s, t, D, K = plan.s, plan.tables, plan.D, plan.K
    d_out = d_out.contiguous()
    d_final = None if d_final is None else d_final.to(torch.float32).contiguous()
    entry, d_border = plan.new(t.count, K, D), torch.empty_like(border)
    plan.scan(border, None, None, entry)
    plan.fill(d_out, s.C, d_border, d_final, reverse=True)
    dx, ds = torch.empty_like(s.x), torch.empty_like(s.step)
    dA = plan.new(t.stretches, K, D)
    dB, dC = plan.new(plan.blocks, plan.total, K), plan.new(plan.blocks, plan.total, K)
    d_state = plan.new(*((plan.rows, D, K) if s.state is not None else (0,)))
    read = (s.x, s.step, s.A, s.B, s.C, d_out, t.sequences, t.offsets, t.stretch, d_border, d_final, entry)
    plan.launch(
        triton_kernels.gradients,
        t.stretches,
        (*read, dx, ds, dA, dB, dC, d_state, D, plan.total),
        {**plan.sizes, "FINAL": d_final is not None, "STATE": s.state is not None},
    )
    found = (dx, ds, dA.sum(0).T.contiguous(), dB.sum(0), dC.sum(0))
    d_state = d_state if original.state is None else d_state.to(original.state.dtype)
    return *(d.to(y.dtype) for d, y in zip(found, original[:5], strict=True)), d_state


_operator = custom_op(
    "selective_scan_triton",
    Signature(f"{operands.INPUTS}, bool differentiable", operands.GRADIENTS, outputs=3, hidden=1),
    _forward,
    _backward,
    _shapes,
)


def run(s: Scan) -> tuple[Tensor, Tensor]:
    """`selective_scan` on tensors of float32 or bfloat16 on a GPU."""
    out, final, _ = _operator(*s, kernels.wants_gradients(*s[:5], s.state))
    return out, final
