"""The shared part of chunked recurrent operators: the decay inside a chunk, and the run over chunks.

A recurrence keeps a matrix S [K, V] per sequence and value head. Its chunked form works on lanes, chunks and pieces, as
`lanes` lays them out.

Numbers: float32 (float64 for float64 inputs) whatever the inputs are. The cumulated log decay is float64 until
differences have been taken, so strong decay neither overflows nor loses the digits of its weak neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from interlace.ops.core import lanes
from interlace.ops.core.lanes import Layout, Piece, laid
from interlace.ops.core.operands import Recurrence

AT_ONCE = 1 << 20  # tokens x value heads that are worked on at a time on a GPU, where launches cost more than memory


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
        self.sums = parts[3].dtype  # of sums of log decays
        self.entries: list[Tensor | None] = []  # the state each piece starts from
        self.ranked = pieces[0].lanes is not None
        # the pieces at whose borders decays are counted
        self.spans = [Piece(0, 0, self.C, 0, True, True)] if self.ranked else pieces

    def rows(self, p: Piece, heads: int) -> slice:
        """Return where a piece's lanes lie in a tensor that has `heads` rows for each lane."""
        return slice(None) if p.lanes is None else slice(p.lanes[0] * heads, p.lanes[1] * heads)

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
        return len(self.spans) == self.n

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
        for index, p in enumerate(self.spans):
            d_G[:, p.chunk, p.end - 1] += d_out_of[:, p.chunk, p.first : p.end].sum(1) + d_across[index]
            if p.first > 0:
                d_G[:, p.chunk, p.first - 1] -= d_into[:, p.chunk, p.first : p.end].sum(1) + d_across[index]
        return d_G


def joined(d_state: Tensor | None, d_finals: Tensor | None, p: Piece, heads: int) -> Tensor | None:
    """Return the gradient of the states after a piece in which lanes end: those that go on, then those that ended.

    d_state: of those that go on, [stay x heads, K, V]; d_finals: of all final states; None where nothing is due.
    """
    due = None if d_finals is None else d_finals[p.row]
    if p.lanes is None:
        return due
    ended = (p.lanes[1] - p.lanes[0] - p.stay) * heads
    due = None if due is None else due[p.stay * heads :][:ended]
    some = d_state if due is None else due
    if some is None or not p.stay:
        return due
    nothing = some.new_zeros(1, *some.shape[1:])
    parts = (d_state, p.stay * heads), (due, ended)
    return torch.cat([nothing.expand(count, -1, -1) if x is None else x for x, count in parts])


def head_blocks(rule: type[ChunkGrid], q: Tensor, v: Tensor) -> list[tuple[slice, slice]]:
    """Return (key heads, value heads) to work on at a time: temporaries stay in the cache and memory is bounded."""
    H, group = q.shape[1], v.shape[1] // q.shape[1]
    most = max(1, (AT_ONCE if lanes.ranks_on(q.device) else rule.WORKING_SET) // q.shape[0])  # value heads
    if most < group:  # part of a group at a time
        starts = [(h, g) for h in range(H) for g in range(h * group, (h + 1) * group, most)]
        return [(slice(h, h + 1), slice(g, min(g + most, (h + 1) * group))) for h, g in starts]
    heads = most // group
    return [(slice(h, h + heads), slice(h * group, (h + heads) * group)) for h in range(0, H, heads)]


def run(rule: type[ChunkGrid], x: Recurrence, layout: Layout) -> tuple[Tensor, Tensor, list[ChunkGrid]]:
    """Return outputs [total, G, V], final states [N, G, K, V], and the grids, which hold what a backward needs."""
    initial = layout.states(x.state)
    outputs: list[Tensor] = []
    finals: list[Tensor] = []
    used: list[ChunkGrid] = []
    S = None
    for parts, pieces in layout.grids(x, rule.CHUNK):
        grid = rule(parts, x.scale, pieces)
        out, S = grid.scan(initial, S, finals)
        outputs.append(grid.heads(out))
        used.append(grid)
    final = layout.finals(finals).view(x.rows, x.value.shape[1], x.key.shape[2], x.value.shape[2])
    return layout.flat(outputs, x.value.dtype), final, used


def run_back(
    d_out: Tensor, d_final: Tensor | None, used: list[ChunkGrid], state: Tensor | None, layout: Layout
) -> tuple[list[Tensor], Tensor | None]:
    """Return gradients of (q, k, v, g, beta) [total, heads, ...] and of the state, through the grids of a `run`."""
    d_finals, start = layout.states(d_final), layout.states(state)
    d_initial = None if start is None else torch.zeros_like(start)
    d_state = None
    collected = []
    for grid, due in zip(reversed(used), reversed(layout.cut(d_out, [(g.n, g.C) for g in used])), strict=True):
        grads, d_state = grid.scan_back(due.flatten(0, 1).contiguous(), d_state, d_finals, d_initial)
        collected.append(grads)
    found = [layout.flat(parts, used[0].dtype) for parts in zip(*reversed(collected), strict=True)]
    return found, None if d_initial is None or state is None else layout.finals(list(d_initial)).view(state.shape)


def forward(rule: type[ChunkGrid], x: Recurrence) -> tuple[Tensor, Tensor]:
    """Return outputs [total, G, V] in value's dtype and final states [N, G, K, V]."""
    out = torch.empty_like(x.value, memory_format=torch.contiguous_format)
    final = x.value.new_empty(x.rows, x.value.shape[1], x.key.shape[2], x.value.shape[2], dtype=x.dtype)
    layout = laid(x, rule.CHUNK)
    for hs, gs in head_blocks(rule, x.query, x.value):
        out[:, gs], final[:, gs] = run(rule, x.of_heads(hs, gs), layout)[:2]
    return out, final


def backward(rule: type[ChunkGrid], d_out: Tensor, d_final: Tensor | None, x: Recurrence) -> tuple[Tensor, ...]:
    """Return gradients of (query, key, value, log_decay, strength, state); all but the inputs is computed again."""
    inputs = (x.query, x.key, x.value, x.log_decay, x.strength)
    grads = [torch.empty_like(y, memory_format=torch.contiguous_format) for y in inputs]
    d_state = x.query.new_zeros(0) if x.state is None else torch.empty_like(x.state)
    shared: dict[int, list[Tensor]] = {}  # of a key head whose group is worked on in parts
    layout = laid(x, rule.CHUNK)
    for hs, gs in head_blocks(rule, x.query, x.value):
        some = x.of_heads(hs, gs)
        due = None if d_final is None else d_final[:, gs]
        parts, d_initial = run_back(d_out[:, gs], due, run(rule, some, layout)[2], some.state, layout)
        if hs.start in shared:
            parts[:2] = [old + new for old, new in zip(shared[hs.start], parts[:2], strict=True)]
        shared = {hs.start: parts[:2]}
        for whole, part, heads in zip(grads, parts, (hs, hs, gs, gs, gs), strict=True):
            whole[:, heads] = part
        if d_initial is not None:
            d_state[:, gs] = d_initial
    return *grads, d_state
