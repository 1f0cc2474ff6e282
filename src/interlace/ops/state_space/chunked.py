"""State space duality by chunks, with its own backward; README.md beside this file derives every line.

A group of value heads shares its queries and keys, often dozens of them, so their products are formed once per group
and the states of a group lie side by side: [LH, K, r V], LH = lanes x H, r value heads to a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interlace.ops.core import chunks
from interlace.ops.core.chunks import Piece, joined


class StateSpaceGrid(chunks.ChunkGrid):
    """The rule on one run of chunks. Tensors are [LH, n, C, r, ...], those of keys and queries [LH, n, C, K]."""

    WORKING_SET = 32_768

    def __init__(self, parts: Sequence[Tensor], scale: float, pieces: list[Piece]):
        """q, k [lanes, H, n, C, K]; v [lanes, G, n, C, V]; g, step [lanes, G, n, C], g in float64."""
        super().__init__(parts, scale, pieces)
        q, k, v, g, step = parts
        self.q, self.k, self.key_heads = q.flatten(0, 1), k.flatten(0, 1), q.shape[1]
        self.v, self.step = self.side_by_side(v.flatten(0, 1)), self.side_by_side(step.flatten(0, 1)).unsqueeze(-1)
        self.decays(self.side_by_side(g.flatten(0, 1)))
        self.M = scale * (self.q @ self.k.transpose(-1, -2)).unsqueeze(2) * self.D
        self.W = self.step * self.v
        self.W_out = self.out_of * self.W

    def side_by_side(self, x: Tensor) -> Tensor:
        """Turn [L, n, C, ...] into [LH, n, C, r, ...]."""
        return x.unflatten(0, (-1, self.group)).movedim(1, 3).contiguous()

    def apart(self, x: Tensor) -> Tensor:
        """Undo `side_by_side`."""
        return x.movedim(3, 1).flatten(0, 1)

    def join(self, S: Tensor) -> Tensor:
        """Turn states [L, K, V] into [LH, K, r V]."""
        return S.unflatten(0, (-1, self.group)).transpose(1, 2).flatten(2)

    def split(self, S: Tensor) -> Tensor:
        """Undo `join`."""
        return S.unflatten(2, (self.group, -1)).transpose(1, 2).flatten(0, 1)

    def decays(self, g: Tensor) -> None:
        """D_ij [LH, n, r, C, C] from j to i within a segment, `into` from the piece's start, `out_of` to its end."""
        G = g.cumsum(2)
        base, last = self.borders(G)
        by_head = G.transpose(2, 3)
        pair = by_head.unsqueeze(-1) - by_head.unsqueeze(-2)
        self.D = pair.masked_fill_(~self.visible(g.device).unsqueeze(1), -torch.inf).to(self.dtype).exp_()
        self.into, self.out_of = ((x.to(self.dtype)).exp_().unsqueeze(-1) for x in (G - base, last - G))

    def across(self, p: Piece) -> Tensor:
        """The decay [LH, r, 1] from a piece's start to its end."""
        return self.into[self.rows(p, self.key_heads), p.chunk, p.end - 1]

    def decayed(self, S: Tensor, p: Piece) -> Tensor:
        """Return a state at the end of a piece as if the piece had written nothing."""
        return (S.unflatten(2, (self.group, -1)) * self.across(p).unsqueeze(1)).flatten(2)

    def scan(self, initial: Tensor | None, carried: Tensor | None, finals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Run the pieces in order; (out [L, n, C, V], the last state [L, K, V]); ended segments go to `finals`."""
        outputs = (self.M @ self.W.transpose(2, 3)).transpose(2, 3).contiguous()
        S = None if carried is None else self.join(carried)
        for p in self.pieces:
            rows = (self.rows(p, self.key_heads), p.chunk, slice(p.first, p.end))
            if p.starts:
                S = None if initial is None else self.join(initial[p.row])
            self.entries.append(S)
            wrote = self.k[rows].transpose(1, 2) @ self.W_out[rows].flatten(2)
            if S is not None:
                read = (self.q[rows] @ S).unflatten(2, (self.group, -1))
                outputs[rows] += self.scale * self.into[rows] * read
                wrote += self.decayed(S, p)
            S = wrote
            if p.ends:
                finals.append(self.split(S[p.stay * self.key_heads :]))
                S = S[: p.stay * self.key_heads]
        assert S is not None
        return self.apart(outputs), self.split(S)

    def scan_back(
        self, d_out: Tensor, d_state: Tensor | None, d_finals: Tensor | None, d_initial: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Run the pieces in reverse: return gradients of (q, k, v, g, step), and of the state the grid began with."""
        d_out = self.side_by_side(d_out)
        d_read = self.scale * self.into * d_out  # the gradient of q S
        d_W = (self.M.transpose(-1, -2) @ d_out.transpose(2, 3)).transpose(2, 3).contiguous()
        d_q, d_k = torch.zeros_like(self.q), torch.zeros_like(self.k)
        d_into, d_out_of = torch.zeros_like(self.into[..., 0]), torch.zeros_like(self.into[..., 0])
        d_across = self.into.new_zeros(len(self.spans), self.q.shape[0], self.group)
        due = None if d_state is None else self.join(d_state)
        for index, p in reversed(list(enumerate(self.pieces))):
            rows = (self.rows(p, self.key_heads), p.chunk, slice(p.first, p.end))
            S = self.entries[index]
            if p.ends:
                back = None if due is None or not p.stay else self.split(due)
                back = joined(back, d_finals, p, self.key_heads * self.group)
                due = None if back is None else self.join(back)
            if due is not None:
                reached = (self.k[rows] @ due).unflatten(2, (self.group, -1))
                d_W[rows] += self.out_of[rows] * reached
                d_out_of[rows] = (self.W_out[rows] * reached).sum(-1)
                d_k[rows] = self.W_out[rows].flatten(2) @ due.transpose(1, 2)
            if S is None:
                due = None
                continue
            d_into[rows] = (d_read[rows] * (self.q[rows] @ S).unflatten(2, (self.group, -1))).sum(-1)
            d_q[rows] = d_read[rows].flatten(2) @ S.transpose(1, 2)
            d_S = self.q[rows].transpose(1, 2) @ d_read[rows].flatten(2)
            if due is not None:
                kept = (S * due).unflatten(2, (self.group, -1)).sum((1, 3))
                where = (0 if self.ranked else index, self.rows(p, self.key_heads))
                d_across[where] = self.across(p).squeeze(-1) * kept
                d_S += self.decayed(due, p)
            due = d_S
            if p.starts and d_initial is not None:
                d_initial[p.row] = self.split(d_S)
        grads = self.within_back(d_out, d_W, d_q, d_k, d_into, d_out_of, d_across)
        return grads, None if due is None else self.split(due)

    def within_back(
        self,
        d_out: Tensor,
        d_W: Tensor,
        d_q: Tensor,
        d_k: Tensor,
        d_into: Tensor,
        d_out_of: Tensor,
        d_across: Tensor,
    ) -> tuple[Tensor, ...]:
        """Gradients of this grid's inputs from those of what the scan used."""
        d_M = d_out.transpose(2, 3) @ self.W.transpose(2, 3).transpose(-1, -2)
        E = d_M * self.M  # the gradient of log D: D's own zeros mask it
        d_qk = self.scale * (d_M * self.D).sum(2)
        d_q += d_qk @ self.k
        d_k += d_qk.transpose(-1, -2) @ self.q
        d_G = (E.sum(-1) - E.sum(-2)).transpose(2, 3).double() + d_into - d_out_of
        d_G = self.border_back(d_G, d_into, d_out_of, d_across)
        d_g = d_G.flip(2).cumsum(2).flip(2)
        d_step = (d_W * self.v).sum(-1)
        by_lane = (x.unflatten(0, (self.lanes, -1)) for x in (d_q, d_k))
        return *by_lane, *(self.heads(self.apart(x)) for x in (self.step * d_W, d_g, d_step))
