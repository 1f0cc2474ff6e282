"""The gated delta rule by Triton kernels: forward and backward as a custom operator.

A forward that will be differentiated keeps T, M, the decays of each chunk, and one state every `tables.PERIOD` chunks
of a sequence; backward goes on from these. README.md beside this file says which kernel does what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.ops.core import delta_kernels, gpu, kernels, one_token, rules, tables
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.delta_kernels import Scan
from interlace.ops.core.gpu import power
from interlace.ops.core.operands import Recurrence
from interlace.ops.gated_delta import triton_backward, triton_forward, triton_gates, triton_step
from interlace.ops.gated_delta.mixer_step import MixerStep


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
WIDE = Tiles(chunk=32, values=16, warps=4, stages=2, keys=64, columns=32, gradient_warps=4)  # keys of more than 128
GATE_WARPS = 4
EXACT = Tiles(chunk=16, values=16, warps=8, stages=1, keys=32, columns=16, gradient_warps=4)  # float32


def tiles(architecture: int, key_dim: int, value_dim: int, dtype: torch.dtype) -> Tiles:
    """Return the configuration for an architecture, a head and a dtype; small heads have small tiles.

    The interpreter takes the tiles of bfloat16 for float32 too, so that float32 tests what bfloat16 will run.
    """
    if dtype == torch.float32 and not gpu.INTERPRETED:
        found = EXACT
    elif key_dim > 128:
        found = WIDE
    else:
        found = TILES[max(first for first in TILES if first <= architecture)]
    columns = power(value_dim)
    keys = min(found.keys, power(key_dim))
    return found._replace(values=min(found.values, columns), columns=min(found.columns, columns), keys=keys)


class Saved(NamedTuple):
    """What a forward that will be differentiated keeps.

    Attributes:
        T, M: [chunks, G, C, C].
        decays: the table of each chunk, [chunks, G, ROWS, C] in float32.
        states: the state [V, K] at the border of every `tables.PERIOD` chunks of a sequence.
        transition: what each stretch of a scan that is split does to a state, [K, K] in float32.
    """

    T: Tensor
    M: Tensor
    decays: Tensor
    states: Tensor
    transition: Tensor


class Plan(delta_kernels.Plan):
    """One call's sizes, configuration and tables, and the launches of its kernels."""

    def __init__(self, given: Recurrence) -> None:
        """given: tensors on one device; rows of queries, keys and values may lie apart."""
        dtype = given.value.dtype
        query, key, value = (gpu.rows(y.to(dtype)) for y in (given.query, given.key, given.value))
        state = None if given.state is None else given.state.to(torch.float32).contiguous()
        gates = (given.log_decay.contiguous(), given.strength.contiguous())
        x = given._replace(query=query, key=key, value=value, log_decay=gates[0], strength=gates[1], state=state)
        self.tiles = tiles(gpu.architecture(x.device), key.shape[2], value.shape[2], dtype)
        super().__init__(x, Scan(*self.tiles[:4]))
        self.q_row, self.k_row, self.v_row = (y.stride(0) for y in (query, key, value))

    def prepare(self, saved: Saved) -> None:
        """Fill T, M and the decays, which need no state; see `triton_forward.prepare`."""
        x, C = self.x, self.tiles.chunk
        sizes = (self.q_row, self.k_row, self.H, self.G, x.scale)
        self.launch(
            triton_forward.prepare,
            self.tables.count * self.G,
            (x.query, x.key, x.log_decay, x.strength, self.tables.chunks, *saved[:3], *sizes),
            self.sizes
            | {"LEVELS": C.bit_length() - 1, "NARROW": self.dtype == torch.bfloat16, "NORMALISE": x.normalise},
        )

    def walk(self, saved: Saved, out: Tensor, final: Tensor, *, keep: bool) -> None:
        """Fill outputs, final states, and if `keep` the states that are kept; see `triton_forward.scan`."""
        x, t, sizes = self.x, self.cut, (self.q_row, self.k_row, self.v_row, self.H, self.G)
        border = self.new_borders()
        if self.borders:
            self.stretches(saved, (None, None, border, saved.transition))
            self.carry(border, saved.transition, reverse=False)
        read = (x.query, x.key, x.value, *saved[:3], self.tables.sequences, t.offsets, t.stretch, border, x.state)
        self.launch(
            triton_forward.scan,
            t.stretches * self.G * self.blocks,
            (*read, out, final, saved.states, *sizes),
            self.scans | {"KEEP": tables.PERIOD if keep else 0},
        )

    def stretches(self, saved: Saved, to: tuple[Tensor | None, ...]) -> None:
        """Go through all stretches at once: those of the scan, or where entry states are wanted, those of backward.

        to: entry states, what tokens write, borders, transitions; see `triton_forward.states`.
        """
        x, sizes, split = self.x, (self.k_row, self.v_row, self.H, self.G), to[0] is None
        t = self.cut if split else self.tables
        blocks = self.blocks + (-(-self.K // self.tiles.values) if split else 0)
        state = self.or_zeros(x.state) if split else x.state
        read = (x.key, x.value, saved.T, saved.decays, t.sequences, t.offsets, t.stretch, state, saved.states)
        self.launch(
            triton_forward.states,
            t.stretches * self.G * blocks,
            (*read, *to, *sizes),
            self.scans | {"STATE": state is not None, "SPLIT": split},
        )

    def states(self, saved: Saved) -> tuple[Tensor, Tensor]:
        """Return each chunk's entry state [V, K], and what its tokens write."""
        entry, written = self.new(self.tables.count, self.G, self.V, self.K), self.new(self.total, self.G, self.V)
        self.stretches(saved, (entry, written, None, None))
        return entry, written

    def reverse(self, saved: Saved, d_out: Tensor, d_final: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients of exit states [V, K], of what T is applied to, and of the first states."""
        x, t, sizes = self.x, self.cut, (self.q_row, self.k_row, self.H, self.G)
        d_exit, d_right = self.new(t.count, self.G, self.V, self.K), self.new(self.total, self.G, self.V)
        d_state = self.new(*((0,) if x.state is None else x.state.shape), dtype=torch.float32)
        d_border = self.new_borders()
        read = (x.query, x.key, d_out, *saved[:3], t.sequences, t.offsets, t.stretch, d_border)
        for split in (True, False) if self.borders else (False,):
            ends = self.or_zeros(d_final) if split else d_final
            self.launch(
                triton_backward.reverse,
                t.stretches * self.G * self.blocks,
                (*read, ends, d_state, d_exit, d_right, *sizes),
                self.scans | {"FINAL": ends is not None, "SPLIT": split, "STATE": x.state is not None and not split},
            )
            if split:
                self.carry(d_border, saved.transition, reverse=True)
        return d_exit, d_right, d_state

    def gradients(self, read: tuple[Tensor, ...], dv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fill dv; return gradients of queries and keys by value head, and of log decay and strength."""
        x, blocks = self.x, -(-self.K // self.tiles.keys)
        shares = self.dtype if self.G == self.H else torch.float32
        dq, dk = (self.new(self.total, self.G, self.K, dtype=shares) for _ in range(2))
        dg, db = (self.new(blocks, self.total, self.G, dtype=torch.float32) for _ in range(2))
        decays, *rest = read
        sizes = (self.q_row, self.k_row, self.v_row, dv.stride(0), self.H, self.G, self.total, x.scale)
        gpu.launch(
            triton_backward.gradients,
            blocks * self.tables.count * self.G,
            (x.query, x.key, x.value, rest[0], decays, self.tables.chunks, *rest[1:], dq, dk, dv, dg, db, *sizes),
            {"K": self.K, "V": self.V, "BK": self.tiles.keys, "C": self.tiles.chunk, "BV": self.tiles.columns}
            | {"NORMALISE": x.normalise},
            self.tiles.gradient_warps,
            self.tiles.stages,
        )
        return dq, dk, dg.sum(0), db.sum(0)


def room(x: Recurrence, *, keep: bool) -> Saved:
    """Return room for what a forward writes beside its results; with `keep`, for states too.

    How many chunks there are is not known from shapes alone; there is room for as many as there can be.
    """
    (total, G, V), K, new = x.value.shape, x.key.shape[2], x.value.new_empty
    sizes = tiles(gpu.architecture(x.device), K, V, x.value.dtype)
    C = sizes.chunk
    most = total // C + x.rows
    return Saved(
        new(most, G, C, C),
        new(most, G, C, C),
        new(most, G, triton_forward.ROWS.value, C, dtype=torch.float32),
        new(total // (C * tables.PERIOD) if keep else 0, G, V, K),
        delta_kernels.transitions(x, C, sizes.values),
    )


def _shapes(*inputs: Any) -> tuple[Tensor, ...]:
    *operands, differentiable = inputs
    x = Recurrence(*operands)
    out, final = rules.shapes(*operands)
    return out, final, *(room(x, keep=True) if differentiable else [x.value.new_empty(0) for _ in Saved._fields])


def forward(plan: Plan, out: Tensor, final: Tensor, saved: Saved, *, keep: bool) -> None:
    """Fill all that follows the plan."""
    plan.prepare(saved)
    plan.walk(saved, out, final, keep=keep)


def backward(
    plan: Plan, d_out: Tensor, d_final: Tensor | None, saved: Saved, to: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill the gradients of queries, keys and values; return those of log decay, strength and state (float32)."""
    d_out = d_out.to(plan.dtype).contiguous()
    d_final = None if d_final is None else d_final.to(torch.float32).contiguous()
    entry, written = plan.states(saved)
    d_exit, d_right, d_state = plan.reverse(saved, d_out, d_final)
    dq, dk, dg, db = plan.gradients((saved.decays, d_out, entry, d_exit, written, d_right), to[2])
    plan.collect(plan.x.query, dq, to[0], normalise=plan.x.normalise)
    plan.collect(plan.x.key, dk, to[1], normalise=plan.x.normalise)
    return dg, db, d_state


def _forward(*inputs: Any) -> tuple[Tensor, ...]:
    *operands, differentiable = inputs
    outputs = out, final, *kept = _shapes(*inputs)
    x = Recurrence(*operands)
    saved = Saved(*kept) if differentiable else room(x, keep=False)
    forward(Plan(x), out, final, saved, keep=differentiable)
    return outputs


def _backward(d_out: Tensor, d_final: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    kept = len(Saved._fields)
    saved, x = Saved(*given[:kept]), Recurrence(*given[kept:-1])
    plan = Plan(x)
    to = [torch.empty_like(y, memory_format=torch.contiguous_format) for y in (x.query, x.key)]
    dv = torch.empty_like(x.value, memory_format=torch.contiguous_format)
    dg, db, d_state = backward(plan, d_out, d_final, saved, (to[0], to[1], dv))
    return *to, dv, dg.to(x.log_decay.dtype), db.to(x.strength.dtype), delta_kernels.given_back(d_state, x.state)


_operator = custom_op(
    "gated_delta_triton",
    Signature(f"{rules.INPUTS}, bool differentiable", rules.GRADIENTS, outputs=7, hidden=5),
    _forward,
    _backward,
    _shapes,
)


def run(x: Recurrence) -> tuple[Tensor, Tensor]:
    """`gated_delta` on tensors of float32 or bfloat16 on a GPU."""
    if rules.one_token(x):
        return one_token.run(x, delta=True)
    x = x.bordered()
    out, final, *_ = _operator(*x, kernels.wants_gradients(*x.tensors))
    return out, final


def step(x: Recurrence, memory: Tensor) -> Tensor:
    """Take one token of each of N sequences; memory: float32 [N, G, K, V], contiguous, changed in place."""
    out = one_token.take(x, memory, memory, delta=True)
    torch.autograd.graph.increment_version(memory)
    return out


def mixer_step(s: MixerStep) -> Tensor:
    """Take one token through all of a layer between its projections; see `mixer_step.mixer_step`."""
    N, (G, K, V) = s.projected.shape[0], s.memory.shape[1:]
    projected, columns = gpu.rows(s.projected), min(one_token.COLUMNS, power(V))
    raw, out = s.memory.new_empty(N, G, V), projected.new_empty(N, G * V)
    tensors = (projected, s.taps, s.norm, s.A_log, s.dt_bias, s.window, s.memory, raw, out)
    gpu.launch(
        triton_step.mixer_step,
        N * s.heads,
        (*tensors, projected.stride(0), K**-0.5, 1.0 + s.negative_eigenvalues, s.eps),
        {"H": s.heads, "G": G, "K": K, "V": V, "W": s.taps.shape[1], "KP": power(K), "BV": columns},
        one_token.WARPS,
    )
    for changed in (s.window, s.memory):
        torch.autograd.graph.increment_version(changed)
    return out


def _gates(projected: Tensor, first: int, G: int) -> tuple[Tensor, int, dict[str, int]]:
    """Return the slice that holds decay and beta, how many programs there are, and their constants."""
    heads = 1 << (G - 1).bit_length()
    rows = max(1, 2048 // heads)
    programs = -(-projected.shape[0] // rows)
    return projected[:, first : first + 2 * G], programs, {"G": G, "GP": heads, "BT": rows}


def gates(
    projected: Tensor, first: int, A_log: Tensor, dt_bias: Tensor, negative_eigenvalues: bool, to: tuple[Tensor, Tensor]
) -> None:
    """Fill log decay and beta [total, G] in float32 from a layer's projections, where they lie from column `first`."""
    given, programs, constants = _gates(projected, first, A_log.shape[0])
    total, strongest = projected.shape[0], 1.0 + negative_eigenvalues
    arguments = (given, A_log, dt_bias, *to, projected.stride(0), total, strongest)
    gpu.launch(triton_gates.gates, programs, arguments, constants, GATE_WARPS)


def gates_backward(
    projected: Tensor,
    first: int,
    A_log: Tensor,
    dt_bias: Tensor,
    negative_eigenvalues: bool,
    due: tuple[Tensor, Tensor, Tensor],
    d_projected: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fill the columns of d_projected from `first`; return the gradients of A_log and dt_bias.

    due: log decay, and the gradients of log decay and beta.
    """
    given, programs, constants = _gates(projected, first, A_log.shape[0])
    to, total, strongest = d_projected[:, first:], projected.shape[0], 1.0 + negative_eigenvalues
    shares = torch.empty(programs, 2, A_log.shape[0], dtype=torch.float32, device=projected.device)
    arguments = (given, A_log, dt_bias, *due, to, shares, projected.stride(0), to.stride(0), total, strongest)
    gpu.launch(triton_gates.gates_backward, programs, arguments, constants, GATE_WARPS)
    return shares[:, 0].sum(0).to(A_log.dtype), shares[:, 1].sum(0).to(dt_bias.dtype)
