"""Kimi Delta Attention by Triton kernels: forward and backward as a custom operator.

A forward that will be differentiated keeps T, M, and one state every `tables.PERIOD` chunks of a sequence; backward
goes on from these. README.md beside this file says which kernel does what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.ops.core import gpu, kernels, one_token, rules, tables
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.delta_kernels import Plan, Scan, given_back, prepared, transitions
from interlace.ops.core.gpu import power
from interlace.ops.core.operands import Recurrence
from interlace.ops.kimi_delta import triton_backward, triton_forward


class Tiles(NamedTuple):
    """The configuration of the kernels.

    Attributes:
        scan: of the kernels that go from chunk to chunk.
        keys: key channels at a time in `decay` and `prepare`.
        gradient_keys: key channels of a program of `gradients`.
        columns: value columns at a time in `pairs` and `gradients`.
    """

    scan: Scan
    keys: int
    gradient_keys: int
    columns: int


# By the first compute capability that a row serves. On Hopper the three tiles of keys and queries leave room for one
# program on a multiprocessor, so it takes all value columns.
REGISTERS = Tiles(Scan(chunk=32, values=32, warps=4, stages=2), keys=32, gradient_keys=32, columns=32)
TILES = {
    0: REGISTERS,
    90: Tiles(Scan(chunk=64, values=128, warps=8, stages=2), keys=64, gradient_keys=32, columns=32),
    100: Tiles(Scan(chunk=64, values=64, warps=8, stages=2), keys=64, gradient_keys=32, columns=32),
    120: REGISTERS,
}
WIDE = Tiles(Scan(chunk=32, values=32, warps=8, stages=2), keys=32, gradient_keys=32, columns=32)  # keys of over 128
EXACT = Tiles(Scan(chunk=16, values=16, warps=8, stages=1), keys=32, gradient_keys=32, columns=16)  # float32
WARPS = 8  # of the kernels that take one chunk


def tiles(architecture: int, key_dim: int, value_dim: int, dtype: torch.dtype) -> Tiles:
    """Return the configuration for an architecture, a head and a dtype; small heads have small tiles."""
    if dtype == torch.float32 and not gpu.INTERPRETED:
        found = EXACT
    elif key_dim > 128:
        found = WIDE
    else:
        found = TILES[max(first for first in TILES if first <= architecture)]
    columns, scan = power(value_dim), found.scan
    values = min(scan.values, columns)
    scan = scan._replace(values=values, warps=max(4, scan.warps * values // scan.values))
    keys = min(found.keys, power(key_dim))
    if -key_dim % keys >= 32:  # 96 as three times 32
        keys = 32
    gradient_keys = min(found.gradient_keys, keys)
    return Tiles(scan, keys, gradient_keys, min(found.columns, columns))


def _tiles(x: Recurrence) -> Tiles:
    return tiles(gpu.architecture(x.device), x.key.shape[2], x.value.shape[2], x.value.dtype)


def _shapes(*inputs: Any) -> tuple[Tensor, ...]:
    *operands, differentiable = inputs
    out, final = rules.shapes(*operands)
    x = Recurrence(*operands)
    (total, G, V), K, C = x.value.shape, x.key.shape[2], _tiles(x).scan.chunk
    most = total // C + x.rows  # chunks; how many there are is not known from shapes alone
    kept = (most, total // (C * tables.PERIOD)) if differentiable else (0, 0)
    square = [x.value.new_empty(kept[0], G, C, C) for _ in range(2)]
    transition = _transition(x) if differentiable else x.value.new_empty(0)
    return out, final, *square, x.value.new_empty(kept[1], G, V, K), transition


def _transition(x: Recurrence) -> Tensor:
    scan = _tiles(x).scan
    return transitions(x, scan.chunk, scan.values)


class Call(Plan):
    """One call's sizes, configuration and tables."""

    def __init__(self, x: Recurrence) -> None:
        """x: on one device, contiguous, normalised if it is to be."""
        self.tiles = _tiles(x)
        super().__init__(x, self.tiles.scan)
        self.exact = self.dtype == torch.float32
        self.chunk = {"K": self.K, "BK": self.tiles.keys, "C": self.scan.chunk}
        self.levels = {"LEVELS": self.scan.chunk.bit_length() - 1}

    def each_chunk(self, kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """Run a kernel `programs` times for each chunk and value head."""
        count = programs * self.tables.count * self.G
        gpu.launch(kernel, count, arguments, constants, WARPS, self.scan.stages)

    def decayed(self) -> tuple[Tensor, ...]:
        """Return Q_in, K_in, K_out and G [total, G, K], this in two float32 parts; bfloat16 needs only the first."""
        x, shape = self.x, (self.total, self.G, self.K)
        q_in, k_in, k_out = (self.new(*shape) for _ in range(3))
        high = self.new(*shape, dtype=torch.float32)
        low = torch.empty_like(high) if self.exact else high
        self.each_chunk(
            triton_forward.decay,
            -(-self.K // self.tiles.keys),
            (x.query, x.key, x.log_decay, self.tables.chunks, q_in, k_in, k_out, high, low, self.H, self.G, x.scale),
            {**self.chunk, "EXACT": self.exact},
        )
        return q_in, k_in, k_out, high, low

    def stretches(self, T: Tensor, decayed: tuple[Tensor, ...], to: tuple[Tensor | None, ...]) -> None:
        """Go through all stretches at once: those of the scan, or where entry states are wanted, those of backward.

        Args:
            decayed: K_in, K_out and G.
            to: kept states, entry states, what tokens write, borders, transitions; see `triton_forward.states`.
        """
        x, split = self.x, to[1] is None
        t = self.cut if split else self.tables
        blocks = self.blocks + (-(-self.K // self.scan.values) if split else 0)
        state = self.or_zeros(x.state) if split else x.state
        self.launch(
            triton_forward.states,
            t.stretches * self.G * blocks,
            (x.value, x.strength, T, *decayed, t.sequences, t.offsets, t.stretch, state, *to, self.G),
            {**self.scans, "STATE": state is not None, "SPLIT": split},
        )


def _read(x: Recurrence) -> Recurrence:
    return prepared(x._replace(log_decay=x.log_decay.to(torch.float32)))


def _forward(*inputs: Any) -> tuple[Tensor, ...]:
    *operands, differentiable = inputs
    outputs = out, final, T, M, kept, transition = _shapes(*inputs)
    x = _read(Recurrence(*operands))
    call = Call(x)
    t, count, G, C = call.tables, call.tables.count, call.G, call.scan.chunk
    if not differentiable:
        T, M, transition = call.new(count, G, C, C), call.new(count, G, C, C), _transition(x)
    q_in, k_in, k_out, high, low = call.decayed()
    call.each_chunk(
        triton_forward.prepare,
        1,
        (x.query, x.key, high, low, x.strength, t.chunks, T, M, call.H, G, x.scale),
        {**call.chunk, **call.levels, "NARROW": not call.exact},
    )
    border = call.new_borders()
    if call.borders:
        call.stretches(T, (k_in, k_out, high), (None, None, None, border, transition))
        call.carry(border, transition, reverse=False)
    where = (t.sequences, t.offsets, call.cut.stretch)
    call.launch(
        triton_forward.scan,
        call.cut.stretches * G * call.blocks,
        (x.value, x.strength, T, M, q_in, k_in, k_out, high, *where, border, x.state, out, final, kept, G),
        {**call.scans, "KEEP": tables.PERIOD if differentiable else 0},
    )
    return outputs


def _backward(d_out: Tensor, d_final: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    T, M, kept, transition, *operands, _ = given
    original = Recurrence(*operands)
    x = _read(original)
    call = Call(x)
    t, count, (H, G), (K, V), C = call.tables, call.tables.count, (call.H, call.G), (call.K, call.V), call.scan.chunk
    d_out = d_out.to(call.dtype).contiguous()
    d_final = None if d_final is None else d_final.to(torch.float32).contiguous()
    q_in, k_in, k_out, high, low = call.decayed()
    entry, d_exit = call.new(count, G, V, K), call.new(count, G, V, K)
    written, d_right, dv = (call.new(call.total, G, V) for _ in range(3))
    d_state = call.new(*((x.rows, G, K, V) if x.state is not None else (0,)), dtype=torch.float32)
    call.stretches(T, (k_in, k_out, high), (kept, entry, written, None, None))
    d_border = call.new_borders()
    where = (call.cut.sequences, call.cut.offsets, call.cut.stretch)
    for split in (True, False) if call.borders else (False,):
        decayed = (q_in, k_in, k_out, high)
        ends = call.or_zeros(d_final) if split else d_final
        call.launch(
            triton_backward.reverse,
            call.cut.stretches * G * call.blocks,
            (d_out, x.strength, T, M, *decayed, *where, d_border, ends, d_state, d_exit, d_right, G),
            {**call.scans, "FINAL": ends is not None, "SPLIT": split, "STATE": x.state is not None and not split},
        )
        if split:
            call.carry(d_border, transition, reverse=True)
    blocks = -(-K // call.tiles.gradient_keys)
    columns = {"BV": call.tiles.columns, "NARROW": not call.exact}
    square = torch.float32 if call.exact else torch.float16
    d_M, d_A = (call.new(count, G, C, C, dtype=square) for _ in range(2))
    largest = call.new(count, G, 2, dtype=torch.float32)
    db = call.new(1 + blocks, call.total, G, dtype=torch.float32)
    call.each_chunk(
        triton_backward.pairs,
        1,
        (x.value, x.strength, d_out, t.chunks, written, d_right, d_M, d_A, largest, dv, db, G, x.scale),
        {"V": V, "C": C, **columns},
    )
    shares = call.dtype if G == H else torch.float32  # of dq and dk
    dq, dk = (call.new(call.total, G, K, dtype=shares) for _ in range(2))
    dg = call.new(call.total, G, K, dtype=torch.float32)
    read = (x.query, x.key, x.strength, d_out, high, low, t.chunks, entry, d_exit, written, d_right)
    call.each_chunk(
        triton_backward.gradients,
        blocks,
        (*read, d_M, d_A, largest, dq, dk, dg, db, H, G, call.total, x.scale),
        {**call.chunk, "BK": call.tiles.gradient_keys, **call.levels, "V": V, **columns},
    )
    heads = (original.query, original.key)
    if G != H or original.normalise:
        to = [torch.empty_like(y, memory_format=torch.contiguous_format) for y in heads]
        for y, d_heads, dy in zip(heads, (dq, dk), to, strict=True):
            call.collect(gpu.rows(y), d_heads, dy, normalise=original.normalise)
        dq, dk = to
    found = (dq, dk, dv, dg, db.sum(0))
    return *(d.to(y.dtype) for d, y in zip(found, original[:5], strict=True)), given_back(d_state, original.state)


_operator = custom_op(
    "kimi_delta_triton",
    Signature(f"{rules.INPUTS}, bool differentiable", rules.GRADIENTS, outputs=6, hidden=4),
    _forward,
    _backward,
    _shapes,
)


def run(x: Recurrence) -> tuple[Tensor, Tensor]:
    """`kimi_delta` on tensors of float32 or bfloat16 on a GPU."""
    if rules.one_token(x):
        return one_token.run(x, delta=True)
    x = x.bordered()
    out, final, *_ = _operator(*x, kernels.wants_gradients(*x.tensors))
    return out, final
