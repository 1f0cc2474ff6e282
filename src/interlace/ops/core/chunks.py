"""The shared part of chunked recurrent operators: lanes, chunks, pieces, and the decay inside a chunk.

A recurrence keeps a matrix S [K, V] per sequence and value head. Its chunked form works on *lanes*. Equal segments are
the lanes of one batch. Ragged segments lie on a single lane, whose chunks may hold several *pieces*: a piece is the
part of one segment inside one chunk. No token is padded in either case.

Numbers: float32 (float64 for float64 inputs) whatever the inputs are. The cumulated log decay is float64 until
differences have been taken, so strong decay neither overflows nor loses the digits of its weak neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from interlace.ops.core.operands import Recurrence

FORGOTTEN = -2000.0  # exp of it is 0 even in float64, and sums of it stay finite where -inf would give nan


@dataclass(frozen=True)
class Piece:
    """The part of one segment in one chunk: rows [first, end). On many lanes, each lane has a segment of its own."""

    chunk: int
    first: int
    end: int
    row: int  # the segment, an index into states (ignored on many lanes)
    starts: bool  # the segment starts with this piece
    ends: bool


def pieces_of(spans: list[tuple[int, int]], start: int, stop: int, size: int) -> list[Piece]:
    """Return the pieces of tokens [start, stop) cut into chunks of `size`, in order."""
    pieces = []
    for row, (a, b) in enumerate(spans):
        t = max(a, start)
        while t < min(b, stop):
            chunk, first = divmod(t - start, size)
            end = min(first + b - t, size)
            t += end - first
            pieces.append(Piece(chunk, first, end, row, starts=t - (end - first) == a, ends=t == b))
    return pieces


class ChunkGrid:
    """One run of equal chunks on every lane, with all that a scan over its pieces needs.

    A rule inherits this. Its constructor takes five parts, a scale and the pieces: query, key [lanes, H, n, C, K],
    value [lanes, G, n, C, V], log decay (float64) and the strength of each write [lanes, G, n, C]. `scan` runs the
    pieces in order; `scan_back` runs them in reverse and returns the gradients of the five parts, and that of the
    state the grid began with.
    """

    CHUNK = 64  # tokens
    # Less was slower (more, smaller products); more gained nothing and costs memory (docs/LOG.md).
    WORKING_SET = 8192  # tokens x value heads that are worked on at a time

    def __init__(self, parts: Sequence[Tensor], scale: float, pieces: list[Piece]):
        """Store the sizes alone; a rule adds what its scan uses."""
        query, _, value, _, _ = parts
        self.lanes, H, self.n, self.C, _ = query.shape
        self.group, self.dtype, self.scale, self.pieces = value.shape[1] // H, query.dtype, scale, pieces
        self.entries: list[Tensor | None] = []  # the state each piece starts from

    def scan(self, initial: Tensor | None, carried: Tensor | None, finals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Run the pieces in order; return (out [L, n, C, V], the last state).

        L = lanes x G. The states of ended segments go to `finals`.
        """
        raise NotImplementedError

    def scan_back(
        self, d_out: Tensor, d_state: Tensor | None, d_finals: Tensor | None, d_initial: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Run the pieces in reverse; `d_state` is the gradient of the last state, None where nothing is due."""
        raise NotImplementedError

    def spread(self, x: Tensor) -> Tensor:
        """Turn [lanes, H, ...] into [lanes x G, ...]: each key head serves `group` consecutive value heads."""
        if self.group > 1:
            x = x.repeat_interleave(self.group, dim=1)
        return x.flatten(0, 1)

    def gather(self, x: Tensor) -> Tensor:
        """Apply the adjoint of `spread`: [lanes x G, ...] to [lanes, H, ...], summed over each group."""
        return self.heads(x).unflatten(1, (-1, self.group)).sum(2)

    def heads(self, x: Tensor) -> Tensor:
        """Turn [lanes x G, ...] into [lanes, G, ...]."""
        return x.unflatten(0, (self.lanes, -1))

    @cached_property
    def one_piece(self) -> bool:
        """Whether every chunk is a single piece."""
        return len(self.pieces) == self.n

    def token_pieces(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each token [n, C]: its piece's first row, its piece's end, and its segment."""
        lengths = torch.tensor([p.end - p.first for p in self.pieces])
        columns = torch.tensor([(p.first, p.end, p.row) for p in self.pieces])
        tokens = torch.repeat_interleave(columns, lengths, dim=0).to(device).view(self.n, self.C, 3)
        firsts, ends, rows = tokens.unbind(-1)
        return firsts, ends, rows

    def borders(self, G: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cumulated log decay G [..., n, C, *] just before each token's piece, and at its end."""
        if self.one_piece:
            return torch.zeros_like(G[..., :1, :]), G[..., -1:, :]
        firsts, ends, _ = self.token_pieces(G.device)
        shifted = torch.nn.functional.pad(G, (0, 0, 1, 0))
        before, after = (shifted.gather(-2, x.unsqueeze(-1).expand(G.shape)) for x in (firsts, ends))
        return before, after

    def visible(self, device: torch.device) -> Tensor:
        """Return the mask of tokens that each token sees, bool [n or 1, C, C].

        A token sees itself and the earlier tokens of its segment in the chunk.
        """
        # As a factor in products: 0 x NaN is NaN, so a NaN spreads within its chunk, also to other segments. To mask it
        # out would cost a pass over every product.
        if self.one_piece:
            return torch.ones(1, self.C, self.C, dtype=torch.bool, device=device).tril_()
        rows = self.token_pieces(device)[2]
        return (rows.unsqueeze(-1) == rows.unsqueeze(-2)).tril_()

    def border_back(self, d_G: Tensor, d_into: Tensor, d_out_of: Tensor, d_across: Tensor) -> Tensor:
        """Add to d_G [L, n, C, *] what reaches the cumulated decay at the pieces' ends, and just before their starts.

        d_into, d_out_of: gradients of its differences to the piece's start and end; d_across: to both, per piece.
        """
        for index, p in enumerate(self.pieces):
            d_G[:, p.chunk, p.end - 1] += d_out_of[:, p.chunk, p.first : p.end].sum(1) + d_across[index]
            if p.first > 0:
                d_G[:, p.chunk, p.first - 1] -= d_into[:, p.chunk, p.first : p.end].sum(1) + d_across[index]
        return d_G


def grids(rule: type[ChunkGrid], x: Recurrence) -> Iterator[ChunkGrid]:
    """Cut the flat axis into lanes and chunks: a grid of whole chunks, and one for what remains."""
    total, time = x.query.shape[0], x.time
    spans = [(0, time)] if time else x.spans()
    lanes, T = (x.rows, time) if time else (1, total)

    def lay(y: Tensor, to: torch.dtype) -> Tensor:  # [total, heads, ...] -> [lanes, heads, T, ...]
        return y.unflatten(0, (lanes, T)).transpose(1, 2).to(to)

    q, k, v, beta = (lay(y, x.dtype) for y in (x.query, x.key, x.value, x.strength))
    g = lay(x.log_decay, torch.float64).clamp(min=FORGOTTEN)
    whole = T - T % rule.CHUNK
    for start, stop, size in ((0, whole, rule.CHUNK), (whole, T, T - whole)):
        if stop > start:
            pieces = pieces_of(spans, start, stop, size)
            parts = [y[:, :, start:stop].unflatten(2, (-1, size)).contiguous() for y in (q, k, v, g, beta)]
            yield rule(parts, x.scale, pieces)


def lay_states(state: Tensor | None, time: int, dtype: torch.dtype) -> Tensor | None:
    """Return states [N, G, K, V] by segment, as [rows, L, K, V]: one row of N x G lanes, or N rows of G."""
    if state is None:
        return None
    return state.to(dtype).flatten(0, 1).unsqueeze(0) if time else state.to(dtype)


def unlay(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Turn the grids' [lanes, heads, n, C, ...] back into [total, heads, ...]."""
    return torch.cat([x.flatten(2, 3) for x in parts], dim=2).transpose(1, 2).flatten(0, 1).contiguous().to(dtype)


def head_blocks(rule: type[ChunkGrid], q: Tensor, v: Tensor) -> list[tuple[slice, slice]]:
    """Return (key heads, value heads) to work on at a time: temporaries stay in the cache and memory is bounded."""
    H, group = q.shape[1], v.shape[1] // q.shape[1]
    most = max(1, rule.WORKING_SET // q.shape[0])  # value heads
    if most < group:  # part of a group at a time
        starts = [(h, g) for h in range(H) for g in range(h * group, (h + 1) * group, most)]
        return [(slice(h, h + 1), slice(g, min(g + most, (h + 1) * group))) for h, g in starts]
    heads = most // group
    return [(slice(h, h + heads), slice(h * group, (h + heads) * group)) for h in range(0, H, heads)]


def run(rule: type[ChunkGrid], x: Recurrence) -> tuple[Tensor, Tensor, list[ChunkGrid]]:
    """Return outputs [total, G, V], final states [N, G, K, V], and the grids, which hold what a backward needs."""
    initial = lay_states(x.state, x.time, x.dtype)
    outputs: list[Tensor] = []
    finals: list[Tensor] = []
    used: list[ChunkGrid] = []
    S = None
    for grid in grids(rule, x):
        out, S = grid.scan(initial, S, finals)
        outputs.append(grid.heads(out))
        used.append(grid)
    final = torch.stack(finals).view(x.rows, x.value.shape[1], x.key.shape[2], x.value.shape[2])
    return unlay(outputs, x.value.dtype), final, used


def run_back(
    d_out: Tensor, d_final: Tensor | None, used: list[ChunkGrid], state: Tensor | None, time: int
) -> tuple[list[Tensor], Tensor | None]:
    """Return gradients of (q, k, v, g, beta) [total, heads, ...] and of the state, through the grids of a `run`."""
    dtype = used[0].dtype
    d_finals, start = lay_states(d_final, time, dtype), lay_states(state, time, dtype)
    d_initial = None if start is None else torch.zeros_like(start)
    d_lanes = d_out.to(dtype).unflatten(0, (used[0].lanes, -1)).transpose(1, 2)
    stop, d_state = d_lanes.shape[2], None
    collected = []
    for grid in reversed(used):
        n, C = grid.n, grid.C
        part = d_lanes[:, :, stop - n * C : stop].unflatten(2, (n, C)).flatten(0, 1)
        grads, d_state = grid.scan_back(part.contiguous(), d_state, d_finals, d_initial)
        collected.append(grads)
        stop -= n * C
    joined = [unlay(parts, dtype) for parts in zip(*reversed(collected), strict=True)]
    return joined, None if d_initial is None or state is None else d_initial.view(state.shape)


def forward(rule: type[ChunkGrid], x: Recurrence) -> tuple[Tensor, Tensor]:
    """Return outputs [total, G, V] in value's dtype and final states [N, G, K, V]."""
    out = torch.empty_like(x.value, memory_format=torch.contiguous_format)
    final = x.value.new_empty(x.rows, x.value.shape[1], x.key.shape[2], x.value.shape[2], dtype=x.dtype)
    for hs, gs in head_blocks(rule, x.query, x.value):
        out[:, gs], final[:, gs] = run(rule, x.of_heads(hs, gs))[:2]
    return out, final


def backward(rule: type[ChunkGrid], d_out: Tensor, d_final: Tensor | None, x: Recurrence) -> tuple[Tensor, ...]:
    """Return gradients of (query, key, value, log_decay, strength, state); all but the inputs is computed again."""
    inputs = (x.query, x.key, x.value, x.log_decay, x.strength)
    grads = [torch.empty_like(y, memory_format=torch.contiguous_format) for y in inputs]
    d_state = x.query.new_zeros(0) if x.state is None else torch.empty_like(x.state)
    shared: dict[int, list[Tensor]] = {}  # of a key head whose group is worked on in parts
    for hs, gs in head_blocks(rule, x.query, x.value):
        some = x.of_heads(hs, gs)
        due = None if d_final is None else d_final[:, gs]
        parts, d_initial = run_back(d_out[:, gs], due, run(rule, some)[2], some.state, x.time)
        if hs.start in shared:
            parts[:2] = [old + new for old, new in zip(shared[hs.start], parts[:2], strict=True)]
        shared = {hs.start: parts[:2]}
        for whole, part, heads in zip(grads, parts, (hs, hs, gs, gs, gs), strict=True):
            whole[:, heads] = part
        if d_initial is not None:
            d_state[:, gs] = d_initial
    return *grads, d_state
