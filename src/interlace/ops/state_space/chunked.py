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
        if self.ranked:
            return self._scan_ranked(outputs, initial, finals)
        S = None if carried is None else self.join(carried)
        for p in self.pieces:
            rows = (slice(None), p.chunk, slice(p.first, p.end))
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
                finals.append(self.split(S))
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
        if self.ranked:
            self._scan_back_ranked(d_read, d_W, d_q, d_k, d_into, d_out_of, d_across, d_finals, d_initial)
            return self.within_back(d_out, d_W, d_q, d_k, d_into, d_out_of, d_across), None
        due = None if d_state is None else self.join(d_state)
        for index, p in reversed(list(enumerate(self.pieces))):
            rows = (slice(None), p.chunk, slice(p.first, p.end))
            S = self.entries[index]
            if p.ends:
                due = None if d_finals is None else self.join(d_finals[p.row])
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
                d_across[index] = self.across(p).squeeze(-1) * kept
                d_S += self.decayed(due, p)
            due = d_S
            if p.starts and d_initial is not None:
                d_initial[p.row] = self.split(d_S)
        grads = self.within_back(d_out, d_W, d_q, d_k, d_into, d_out_of, d_across)
        return grads, None if due is None else self.split(due)

    def _scan_ranked(self, outputs: Tensor, initial: Tensor | None, finals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Run the steps in order. In the loop stands only what depends on the step before."""
        H, q, k = self.key_heads, self.q[:, 0], self.k[:, 0]
        wrote = k.transpose(1, 2) @ self.W_out[:, 0].flatten(2)
        self.E = torch.empty_like(wrote)  # the state that each chunk starts from
        first = self.rows(self.pieces[0], H)
        S = torch.zeros_like(wrote[first]) if initial is None else self.join(initial[0])
        for p in self.pieces:
            rows = self.rows(p, H)
            self.E[rows] = S
            S = wrote[rows].add_(self.decayed(S, p))
            if p.ends:
                finals.append(self.split(S[p.stay * H :]))
                S = S[: p.stay * H]
        read = (q @ self.E).unflatten(2, (self.group, -1)).unsqueeze(1)
        return self.apart(outputs.addcmul_(self.scale * self.into, read)), S

    def _scan_back_ranked(
        self,
        d_read: Tensor,
        d_W: Tensor,
        d_q: Tensor,
        d_k: Tensor,
        d_into: Tensor,
        d_out_of: Tensor,
        d_across: Tensor,
        d_finals: Tensor | None,
        d_initial: Tensor | None,
    ) -> None:
        """Run the steps in reverse, likewise; fill or add to all that is given."""
        H, q, k = self.key_heads, self.q[:, 0], self.k[:, 0]
        ends = None if d_finals is None else self.join(d_finals[0]).unsqueeze(0)
        d_entry = q.transpose(1, 2) @ d_read[:, 0].flatten(2)
        d_exit = torch.zeros_like(d_entry)
        due = None
        for p in reversed(self.pieces):
            rows = self.rows(p, H)
            if p.ends:
                due = joined(due, ends, p, H)
            if due is not None:
                d_exit[rows] = due
                d_entry[rows] += self.decayed(due, p)
            due = d_entry[rows]
        if d_initial is not None:
            d_initial[0] = self.split(d_entry[self.rows(self.pieces[0], H)])
        reached = (k @ d_exit).unflatten(2, (self.group, -1)).unsqueeze(1)
        d_W.addcmul_(self.out_of, reached)
        d_out_of.copy_((self.W_out * reached).sum(-1))
        d_k[:, 0] = self.W_out[:, 0].flatten(2) @ d_exit.transpose(1, 2)
        d_into[:, 0] = (d_read[:, 0] * (q @ self.E).unflatten(2, (self.group, -1))).sum(-1)
        d_q[:, 0] = d_read[:, 0].flatten(2) @ self.E.transpose(1, 2)
        kept = (self.E * d_exit).unflatten(2, (self.group, -1)).sum((1, 3))
        d_across[0] = self.into[:, 0, -1].squeeze(-1) * kept

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
        d_G = (E.sum(-1) - E.sum(-2)).transpose(2, 3).to(self.sums) + d_into - d_out_of
        d_G = self.border_back(d_G, d_into, d_out_of, d_across)
        d_g = d_G.flip(2).cumsum(2).flip(2)
        d_step = (d_W * self.v).sum(-1)
        by_lane = (x.unflatten(0, (self.lanes, -1)) for x in (d_q, d_k))
        return *by_lane, *(self.heads(self.apart(x)) for x in (self.step * d_W, d_g, d_step))
