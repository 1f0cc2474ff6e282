"""State space duality by Triton kernels: forward and backward as a custom operator.

A forward that will be differentiated keeps one state for each border of two stretches of a sequence; backward computes
the rest again. README.md beside this file says which kernel does what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.ops.core import gpu, kernels, one_token, rules, tables
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.delta_kernels import given_back, prepared
from interlace.ops.core.gpu import power
from interlace.ops.core.operands import Recurrence
from interlace.ops.state_space import triton_backward, triton_forward
from interlace.ops.state_space.triton_forward import READS, ROWS, WRITES

PERIODS = (8, 32, 128)  # chunks of a stretch
PROGRAMS = 512  # that keep a GPU busy
TABLE_HEADS = 8  # value heads of a program that writes tables
CARRIED = 16  # value columns of a program that carries


class Tiles(NamedTuple):
    """The configuration of the kernels.

    Attributes:
        chunk: tokens.
        values: value columns of a program.
        warps, stages: of the kernels that go through a stretch.
        keys, columns, key_warps, key_stages: key channels, value columns at a time, warps and stages of
            `key_gradients`.
    """

    chunk: int
    values: int
    warps: int
    stages: int
    keys: int
    columns: int
    key_warps: int
    key_stages: int


# By the first compute capability that a row serves, for keys of at most 128 channels and for wider ones. Hopper and
# Blackwell multiply 64 rows at a time from shared memory. Before them, and on Blackwell's consumer cards (12.0), both
# tiles pass through registers: half a chunk fits in them.
REGISTERS = Tiles(chunk=32, values=32, warps=4, stages=2, keys=64, columns=32, key_warps=4, key_stages=1)
NARROW = {
    0: REGISTERS,
    90: Tiles(chunk=64, values=64, warps=4, stages=2, keys=128, columns=64, key_warps=8, key_stages=2),
    100: Tiles(chunk=64, values=64, warps=8, stages=2, keys=128, columns=64, key_warps=8, key_stages=2),
    120: REGISTERS,
}
WIDE_REGISTERS = REGISTERS._replace(values=16, warps=8)
WIDE = {
    0: WIDE_REGISTERS,
    90: NARROW[90]._replace(values=32, warps=8),
    100: NARROW[100]._replace(values=32),
    120: WIDE_REGISTERS,
}
EXACT = Tiles(chunk=16, values=16, warps=8, stages=1, keys=32, columns=16, key_warps=4, key_stages=1)  # float32


def tiles(architecture: int, key_dim: int, value_dim: int, dtype: torch.dtype) -> Tiles:
    """Return the configuration for an architecture, a head and a dtype; small heads have small tiles."""
    table = NARROW if key_dim <= 128 else WIDE
    exact = dtype == torch.float32 and not gpu.INTERPRETED  # see gated_delta/triton.py
    found = EXACT if exact else table[max(first for first in table if first <= architecture)]
    columns = power(value_dim)
    return found._replace(values=min(found.values, columns), columns=min(found.columns, columns))


def period(chunks: int, programs: int) -> int:
    """Return how many chunks a stretch has: the most with which the programs of stretches still fill a GPU.

    Args:
        chunks: of all sequences.
        programs: for each stretch.
    """
    most = chunks * programs // PROGRAMS
    return max((p for p in PERIODS if p <= most), default=PERIODS[0])


class Plan:
    """One call's sizes, configuration and tables."""

    def __init__(self, x: Recurrence) -> None:
        """x: on one device, contiguous, not to be normalised."""
        assert x.offsets is not None
        self.x, self.device = x, x.query.device
        _, self.H, self.K = x.query.shape
        self.total, self.G, self.V = x.value.shape
        self.dtype = x.value.dtype
        self.tiles, self.period = configuration(x)
        self.tables = tables.chunks(x.offsets, self.device, self.tiles.chunk, self.period)
        self.blocks = -(-self.V // self.tiles.values)
        self.borders = self.tables.stretches - x.rows
        self.sizes = {"K": self.K, "V": self.V, "KP": power(self.K), "C": self.tiles.chunk}
        count, heads = self.tables.count, min(TABLE_HEADS, 1 << (self.G - 1).bit_length())
        self.decays = self.new(count, self.G, ROWS.value, self.tiles.chunk, dtype=torch.float32)
        self.launch(
            triton_forward.prepare,
            count * -(-self.G // heads),
            (x.log_decay, x.strength, self.tables.chunks, self.decays, self.G, x.scale),
            {"C": self.tiles.chunk, "HEADS": heads},
        )

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor with nothing in it."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def launch(self, kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """Run a kernel in the configuration's warps and stages."""
        gpu.launch(kernel, programs, arguments, constants, self.tiles.warps, self.tiles.stages)

    def collect(
        self,
        pair: tuple[Tensor, Tensor],
        border: Tensor,
        given: Tensor | None,
        *,
        reverse: bool,
        each: Tensor | None = None,
        last: Tensor | None = None,
    ) -> None:
        """Go through all stretches with (keys, values), or in reverse with (queries, gradients of outputs).

        Args:
            border: [borders, G, V, K]: written, or where `each` is given, read.
            given: float32 [N, G, K, V]: what sequences start from.
            each: [chunks, G, V, K]: takes the state before each chunk.
            last: float32 [N, G, K, V]: takes what sequences end with.
        """
        t = self.tables
        weight = READS.value if reverse else WRITES.value
        self.launch(
            triton_forward.collect,
            t.stretches * self.G * self.blocks,
            (*pair, self.decays, t.sequences, t.offsets, t.stretch, border, given, each, last, self.H, self.G),
            {
                **self.sizes, "BV": self.tiles.values, "WEIGHT": weight, "REVERSE": reverse, "EACH": each is not None,
                "GIVEN": given is not None and each is not None, "LAST": last is not None,
            },
        )  # fmt: skip

    def fill(self, pair: tuple[Tensor, Tensor], border: Tensor, given: Tensor | None, *, reverse: bool) -> None:
        """Write the state at each border of two stretches."""
        if not self.borders:
            return
        self.collect(pair, border, None, reverse=reverse)
        self.launch(
            triton_forward.carry,
            self.x.rows * self.G * -(-self.V // CARRIED),
            (self.decays, self.tables.sequences, border, given, self.G),
            {**self.sizes, "BV": CARRIED, "PERIOD": self.period, "REVERSE": reverse, "GIVEN": given is not None},
        )


def configuration(x: Recurrence) -> tuple[Tiles, int]:
    """Return a call's tiles and the chunks of a stretch, from shapes alone."""
    (total, G, V), K = x.value.shape, x.key.shape[2]
    found = tiles(gpu.architecture(x.value.device), K, V, x.value.dtype)
    return found, period(total // found.chunk, G * -(-V // found.values))


def _shapes(*inputs: Any) -> tuple[Tensor, ...]:
    *operands, differentiable = inputs
    x = Recurrence(*operands)
    (total, G, V), K = x.value.shape, x.key.shape[2]
    found, chunks = configuration(x)
    most = total // (found.chunk * chunks)  # borders; how many there are is not known from shapes alone
    return *rules.shapes(*operands), x.value.new_empty(most if differentiable else 0, G, V, K)


def _forward(*inputs: Any) -> tuple[Tensor, ...]:
    *operands, differentiable = inputs
    outputs = out, final, border = _shapes(*inputs)
    x = prepared(Recurrence(*operands))
    plan = Plan(x)
    t = plan.tables
    if not differentiable:
        border = plan.new(plan.borders, plan.G, plan.V, plan.K)
    plan.fill((x.key, x.value), border, x.state, reverse=False)
    read = (x.query, x.key, x.value, plan.decays, t.sequences, t.offsets, t.stretch, border, x.state)
    plan.launch(
        triton_forward.scan,
        t.stretches * plan.G * plan.blocks,
        (*read, out, final, plan.H, plan.G, x.scale),
        {**plan.sizes, "BV": plan.tiles.values, "STATE": x.state is not None},
    )
    return outputs


def _backward(d_out: Tensor, d_final: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    border, *operands, _ = given
    original = Recurrence(*operands)
    x = prepared(original)
    plan = Plan(x)
    count, (H, G), (K, V) = plan.tables.count, (plan.H, plan.G), (plan.K, plan.V)
    d_out = d_out.to(plan.dtype).contiguous()
    d_final = None if d_final is None else d_final.to(torch.float32).contiguous()
    d_state = plan.new(*((x.rows, G, K, V) if x.state is not None else (0,)), dtype=torch.float32)
    entry, d_exit, d_border = plan.new(count, G, V, K), plan.new(count, G, V, K), torch.empty_like(border)
    plan.collect((x.key, x.value), border, x.state, reverse=False, each=entry)
    plan.fill((x.query, d_out), d_border, d_final, reverse=True)
    last = d_state if x.state is not None else None
    plan.collect((x.query, d_out), d_border, d_final, reverse=True, each=d_exit, last=last)

    t, shares = plan.tables, plan.blocks
    dv = plan.new(plan.total, G, V)
    dg, ds = (plan.new(shares, plan.total, G, dtype=torch.float32) for _ in range(2))
    read = (x.query, x.key, x.value, d_out, plan.decays, t.chunks, entry, d_exit)
    plan.launch(
        triton_backward.value_gradients,
        count * G * shares,
        (*read, dv, dg, ds, H, G, plan.total, x.scale),
        {**plan.sizes, "BV": plan.tiles.values},
    )
    keys = min(plan.tiles.keys, power(K))
    blocks = -(-K // keys)
    heads = heads_of_a_program(count * H * blocks, G // H)
    parts = -(-(G // H) // heads)
    dtype = torch.float32 if parts > 1 else plan.dtype
    dq, dk = (plan.new(parts, plan.total, H, K, dtype=dtype) for _ in range(2))
    gpu.launch(
        triton_backward.key_gradients,
        count * H * parts * blocks,
        (*read, dq, dk, H, G, plan.total, heads, x.scale),
        {"K": K, "V": V, "BK": keys, "C": plan.tiles.chunk, "BV": plan.tiles.columns},
        plan.tiles.key_warps,
        plan.tiles.key_stages,
    )
    found = (*(y[0] if y.shape[0] == 1 else y.sum(0) for y in (dq, dk)), dv, dg.sum(0), ds.sum(0))
    return *(d.to(y.dtype) for d, y in zip(found, original[:5], strict=True)), given_back(d_state, original.state)


def heads_of_a_program(chunks: int, group: int) -> int:
    """Return over how many heads of a group a program of `key_gradients` sums: as many as leave enough programs."""
    parts = min(group, -(-PROGRAMS // chunks))
    return -(-group // parts)


_operator = custom_op(
    "state_space_triton",
    Signature(f"{rules.INPUTS}, bool differentiable", rules.GRADIENTS, outputs=3, hidden=1),
    _forward,
    _backward,
    _shapes,
)


def run(x: Recurrence) -> tuple[Tensor, Tensor]:
    """`state_space` on tensors of float32 or bfloat16 on a GPU."""
    if rules.one_token(x):
        return one_token.run(x, delta=False)
    x = x.bordered()
    out, final, *_ = _operator(*x, kernels.wants_gradients(*x.tensors))
    return out, final
