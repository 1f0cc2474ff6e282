"""How chunked operators lay tokens out: lanes, chunks, and pieces.

On a CPU, equal segments are the lanes of one batch. Ragged segments lie on a single lane, whose chunks may hold several
*pieces*: a piece is the part of one segment inside one chunk. No token is padded.

On a GPU, a step of the scan costs its launches, whatever it works on. So there each step takes one chunk of every
sequence that still has one. Each chunk is a lane of its own, and the longest sequences come first; only the last chunk
of a sequence has rows without a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from interlace.ops.core import tables
from interlace.ops.core.operands import Recurrence

FORGOTTEN = -2000.0  # exp of it is 0 even in float64, and sums of it stay finite where -inf would give nan


@dataclass(frozen=True)
class Piece:
    """The part of one segment in one chunk: rows [first, end). On many lanes, each lane has a segment of its own.

    On ranked lanes (`Ranked`) each lane is a chunk, and a piece is the chunks of one step: lanes [lanes[0], lanes[1]).
    """

    chunk: int
    first: int
    end: int
    row: int  # the segment, an index into states (ignored on many lanes)
    starts: bool  # the segment starts with this piece
    ends: bool
    lanes: tuple[int, int] | None = None  # None for all
    stay: int = 0  # how many lanes go on when others end


class Layout(Protocol):
    """Where tokens and states lie."""

    def grids(self, x: Recurrence, size: int) -> Iterator[tuple[list[Tensor], list[Piece]]]:
        """Yield runs of chunks: (q, k, v, g, strength) [lanes, heads, n, C, ...], g as `sums` says; and pieces."""

    def states(self, state: Tensor | None) -> Tensor | None:
        """Return states [N, G, K, V] by segment as [rows, L, K, V]: `Piece.row` is an index into them."""

    def finals(self, states: list[Tensor]) -> Tensor:
        """Undo `states` for the final states in the order in which the scan handed them out."""

    def flat(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Turn [lanes, heads, n, C, ...] of all grids into [total, heads, ...]."""

    def cut(self, x: Tensor, grids: list[tuple[int, int]]) -> list[Tensor]:
        """Turn [total, heads, ...] into [lanes, heads, n, C, ...] for each grid of (n, C)."""


class Lanes:
    """Equal segments side by side, or ragged ones on one lane."""

    def __init__(self, x: Recurrence):
        """x: the call."""
        self.rows, self.time, self.total, self.dtype = x.rows, x.time, x.query.shape[0], x.dtype
        self.spans = [(0, x.time)] if x.time else x.spans()
        self.lanes = x.rows if x.time else 1

    def _lay(self, x: Tensor, to: torch.dtype) -> Tensor:
        return x.unflatten(0, (self.lanes, -1)).transpose(1, 2).to(to)

    def grids(self, x: Recurrence, size: int) -> Iterator[tuple[list[Tensor], list[Piece]]]:
        """Yield one run of whole chunks, and one of what remains."""
        q, k, v, strength = (self._lay(y, self.dtype) for y in (x.query, x.key, x.value, x.strength))
        g = self._lay(x.log_decay, sums(x.device)).clamp(min=FORGOTTEN)
        T = self.total // self.lanes
        whole = T - T % size
        for start, stop, C in ((0, whole, size), (whole, T, T - whole)):
            if stop > start:
                parts = [y[:, :, start:stop].unflatten(2, (-1, C)).contiguous() for y in (q, k, v, g, strength)]
                yield parts, pieces_of(self.spans, start, stop, C)

    def states(self, state: Tensor | None) -> Tensor | None:
        """Return one row of N x G lanes, or N rows of G."""
        if state is None:
            return None
        return state.to(self.dtype).flatten(0, 1).unsqueeze(0) if self.time else state.to(self.dtype)

    def finals(self, states: list[Tensor]) -> Tensor:
        """Return the states stacked."""
        return torch.stack(states)

    def flat(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Join the grids along each lane."""
        return torch.cat([x.flatten(2, 3) for x in parts], dim=2).transpose(1, 2).flatten(0, 1).contiguous().to(dtype)

    def cut(self, x: Tensor, grids: list[tuple[int, int]]) -> list[Tensor]:
        """Cut each lane."""
        along = self._lay(x, self.dtype).split([n * C for n, C in grids], dim=2)
        return [part.unflatten(2, grid) for part, grid in zip(along, grids, strict=True)]


class Ranked:
    """A lane for each chunk, in the order of `tables.ranks`."""

    def __init__(self, x: Recurrence, size: int):
        """x: the call; size: tokens of a chunk."""
        assert x.offsets is not None
        self.ranks, self.dtype = tables.ranks(x.offsets, x.device, size), x.dtype
        self.count = self.ranks.token.shape[0]

    def _lay(self, x: Tensor, to: torch.dtype) -> Tensor:
        y = x[self.ranks.token].transpose(1, 2).unsqueeze(2).to(to)
        missing = ~self.ranks.there.view(self.count, 1, 1, -1, *[1] * (y.ndim - 4))
        return y.masked_fill(missing, 0)

    def grids(self, x: Recurrence, size: int) -> Iterator[tuple[list[Tensor], list[Piece]]]:
        """Yield one run; its pieces are the steps of the scan."""
        q, k, v, strength = (self._lay(y, self.dtype) for y in (x.query, x.key, x.value, x.strength))
        g = self._lay(x.log_decay.clamp(min=FORGOTTEN), sums(x.device))
        steps = self.ranks.steps
        stay = [b - a for a, b in steps[1:]] + [0]
        yield (
            [q, k, v, g, strength],
            [Piece(0, 0, size, 0, i == 0, stay[i] < b - a, (a, b), stay[i]) for i, (a, b) in enumerate(steps)],
        )

    def states(self, state: Tensor | None) -> Tensor | None:
        """Return one row of N x G lanes, by rank."""
        return None if state is None else state.to(self.dtype)[self.ranks.order].flatten(0, 1).unsqueeze(0)

    def finals(self, states: list[Tensor]) -> Tensor:
        """Return the states by segment: the shortest sequences, which have the last ranks, ended first."""
        by_rank = torch.cat(states[::-1])
        return by_rank.unflatten(0, (self.ranks.rank.shape[0], -1))[self.ranks.rank]

    def flat(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Take each token from its place."""
        (x,) = parts
        return x.squeeze(2).transpose(1, 2).flatten(0, 1)[self.ranks.place].to(dtype)

    def cut(self, x: Tensor, grids: list[tuple[int, int]]) -> list[Tensor]:
        """Lay the tokens out."""
        return [self._lay(x, self.dtype)]


def sums(device: torch.device) -> torch.dtype:
    """Return the dtype of sums of log decays: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def laid(x: Recurrence, size: int) -> Layout:
    """Return the layout of a call on its device."""
    return Ranked(x, size) if ranks_on(x.device) and x.offsets is not None else Lanes(x)


def ranks_on(device: torch.device) -> bool:
    """Return whether sequences are laid out by rank: where a launch costs more than what it works on."""
    return device.type not in ("cpu", "meta")


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
