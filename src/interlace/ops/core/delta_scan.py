"""The chunked scan of the delta rules: the part that the gated rule and Kimi's share, whatever their decays are.

The operators' READMEs derive every line; the names here are the names there. For lanes, chunks and pieces, and for the
precision of numbers, see `chunks`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core import chunks
from interlace.ops.core.chunks import Piece, joined

CHUNK = chunks.ChunkGrid.CHUNK  # tokens; halves and quarters were slower on AVX2
# For 256 chunks and heads this took 2.3 ms; one triangular solve of 64 x 64 for each took 9 ms (docs/LOG.md).
BLOCK = 16  # rows that are inverted by substitution before blocks are merged by products


def invert(A: Tensor) -> Tensor:
    """Invert I + A for strictly lower triangular A [..., C, C]: substitution on blocks, then merges by products."""
    # Not a Neumann series: with parallel keys and beta = 2 its terms reach 1e6 before they cancel, in float32.
    C = A.shape[-1]
    if C <= BLOCK:
        eye = torch.eye(C, dtype=A.dtype, device=A.device)
        return torch.linalg.solve_triangular(A, eye.expand_as(A), upper=False, unitriangular=True)
    cut = BLOCK
    while 2 * cut < C:
        cut *= 2
    if 2 * cut == C:
        top, low = invert(torch.stack((A[..., :cut, :cut], A[..., cut:, cut:]))).unbind(0)
    else:
        top, low = invert(A[..., :cut, :cut]), invert(A[..., cut:, cut:])
    inverse = torch.zeros_like(A)
    inverse[..., :cut, :cut], inverse[..., cut:, cut:] = top, low
    inverse[..., cut:, :cut] = -(low @ (A[..., cut:, :cut] @ top))
    return inverse


class DeltaGrid(chunks.ChunkGrid):
    """A delta rule on one run of chunks. Tensors are [L, n, C, ...] with L = lanes x G.

    A rule's constructor sets q, k, v, beta, the decays `into` the chunk and `out_of` it, A (strictly lower) and M, and
    then calls `solve`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    into: Tensor
    out_of: Tensor
    A: Tensor
    M: Tensor

    def solve(self) -> None:
        """Compute what the scan uses, from A (strictly lower), M, and the decays: T = (I + A)^-1, U, R, K_out."""
        right = torch.cat((self.beta * self.v, (self.beta * self.into) * self.k), dim=-1)
        self.T = invert(self.A)
        self.X = self.T @ right
        self.U, W = self.X.split((self.v.shape[-1], self.k.shape[-1]), dim=-1)
        self.R = torch.stack((W, (self.scale * self.into) * self.q), dim=-2)
        self.K_out = self.out_of * self.k
        self.written: Tensor  # V': what each token writes, set by `scan`

    @property
    def heads_per_lane(self) -> int:
        """G, or how many of the value heads this grid has."""
        return self.v.shape[0] // self.lanes

    def across(self, p: Piece) -> Tensor:
        """Return the decay from a piece's start to its end, as it multiplies a state [L, K, V]."""
        raise NotImplementedError

    def across_back(self, d: Tensor) -> Tensor:
        """Return the gradient of `across`, from that of across S times S."""
        raise NotImplementedError

    def within_back(
        self, d_out: Tensor, d_written: Tensor, d_R: Tensor, d_K_out: Tensor, d_across: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the gradients of this grid's inputs from those of what the scan used."""
        raise NotImplementedError

    def scan(self, initial: Tensor | None, carried: Tensor | None, finals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Run the pieces in order; return (out [L, n, C, V], the last state); ended segments go to `finals`."""
        if self.ranked:
            return self._scan_ranked(initial, finals)
        outputs = torch.zeros_like(self.U)
        self.written = self.U.clone()
        S = carried
        for p in self.pieces:
            rows = (slice(None), p.chunk, slice(p.first, p.end))
            if p.starts:
                S = None if initial is None else initial[p.row]
            self.entries.append(S)
            if S is None:
                S = self.K_out[rows].transpose(1, 2) @ self.written[rows]
            else:
                read = (self.R[rows].flatten(1, 2) @ S).unflatten(1, (-1, 2))
                self.written[rows] -= read[:, :, 0]
                outputs[rows] = read[:, :, 1]
                S = torch.baddbmm(self.across(p) * S, self.K_out[rows].transpose(1, 2), self.written[rows])
            if p.ends:
                finals.append(S)
        assert S is not None
        return outputs.add_(self.M @ self.written), S

    def scan_back(
        self, d_out: Tensor, d_state: Tensor | None, d_finals: Tensor | None, d_initial: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Run the pieces in reverse: return gradients of (q, k, v, g, beta) of this grid, and of its first state.

        `d_state` is the gradient of the state the grid ended with, None where a segment ends there or nothing is due.
        """
        if self.ranked:
            return self._scan_back_ranked(d_out, d_finals, d_initial), None
        d_written = self.M.transpose(-1, -2) @ d_out
        d_R, d_K_out = torch.zeros_like(self.R), torch.zeros_like(self.K_out)
        d_across = torch.stack([torch.zeros_like(self.across_back(self.across(p))) for p in self.spans])
        for index, p in reversed(list(enumerate(self.pieces))):
            rows = (slice(None), p.chunk, slice(p.first, p.end))
            S = self.entries[index]
            if p.ends:
                d_state = None if d_finals is None else d_finals[p.row]
            if d_state is not None:
                d_written[rows] += self.K_out[rows] @ d_state
                d_K_out[rows] = self.written[rows] @ d_state.transpose(1, 2)
            if S is None:
                d_state = None
                continue
            Z = torch.stack((-d_written[rows], d_out[rows]), dim=2).flatten(1, 2)
            d_R[rows] = (Z @ S.transpose(1, 2)).unflatten(1, (-1, 2))
            d_S = self.R[rows].flatten(1, 2).transpose(1, 2) @ Z
            if d_state is not None:
                d_across[index] = self.across_back(S * d_state)
                d_S += self.across(p) * d_state
            d_state = d_S
            if p.starts and d_initial is not None:
                d_initial[p.row] = d_S
        return self.within_back(d_out, d_written, d_R, d_K_out, d_across), d_state

    def _scan_ranked(self, initial: Tensor | None, finals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Run the steps in order. In the loop stands only what depends on the step before."""
        G, (L, _, _, K) = self.heads_per_lane, self.K_out.shape
        W, V = self.R[:, 0, :, 0], self.v.shape[-1]
        self.written = self.U.clone()
        written, K_out = self.written[:, 0], self.K_out[:, 0]
        self.E = W.new_empty(L, K, V)  # the state that each chunk starts from
        S = W.new_zeros(self.rows(self.pieces[0], G).stop, K, V) if initial is None else initial[0]
        for p in self.pieces:
            rows = self.rows(p, G)
            self.E[rows] = S
            written[rows].baddbmm_(W[rows], S, alpha=-1)
            S = torch.baddbmm(self.across(p) * S, K_out[rows].transpose(1, 2), written[rows])
            if p.ends:
                finals.append(S[p.stay * G :])
                S = S[: p.stay * G]
        outputs = torch.baddbmm(self.M[:, 0] @ written, self.R[:, 0, :, 1], self.E)
        return outputs.unsqueeze(1), S

    def _scan_back_ranked(self, d_out: Tensor, d_finals: Tensor | None, d_initial: Tensor | None) -> tuple[Tensor, ...]:
        """Run the steps in reverse, likewise."""
        G, W = self.heads_per_lane, self.R[:, 0, :, 0]
        d_written = self.M.transpose(-1, -2) @ d_out
        d_entry = self.R[:, 0, :, 1].transpose(1, 2) @ d_out[:, 0]
        d_exit = torch.zeros_like(d_entry)
        d_state = None
        for p in reversed(self.pieces):
            rows = self.rows(p, G)
            if p.ends:
                d_state = joined(d_state, d_finals, p, G)
            if d_state is not None:
                d_exit[rows] = d_state
                d_written[rows, 0].baddbmm_(self.K_out[rows, 0], d_state)
                d_entry[rows].addcmul_(self.across(p), d_state)
            d_state = d_entry[rows].baddbmm_(W[rows].transpose(1, 2), d_written[rows, 0], alpha=-1)
        if d_initial is not None:
            d_initial[0] = d_entry[self.rows(self.pieces[0], G)]
        Z = torch.stack((-d_written[:, 0], d_out[:, 0]), dim=2).flatten(1, 2)
        d_R = (Z @ self.E.transpose(1, 2)).unflatten(1, (-1, 2)).unsqueeze(1)
        d_K_out = self.written @ d_exit.transpose(1, 2).unsqueeze(1)
        d_across = self.across_back(self.E * d_exit).unsqueeze(0)
        return self.within_back(d_out, d_written, d_R, d_K_out, d_across)

    def solve_back(self, d_out: Tensor, d_written: Tensor, d_R: Tensor) -> tuple[Tensor, ...]:
        """Return gradients of A, M, beta V, beta K (decayed) and Q (decayed), from those of what the scan used."""
        d_X = torch.cat((d_written, d_R[..., 0, :]), dim=-1)
        d_right = self.T.transpose(-1, -2) @ d_X
        d_A = (d_right @ self.X.transpose(-1, -2)).neg_().tril_(-1)
        d_bv, d_bk = d_right.split((self.v.shape[-1], self.k.shape[-1]), dim=-1)
        d_M = d_out @ self.written.transpose(-1, -2)
        return d_A, d_M, d_bv, d_bk, d_R[..., 1, :]


def flops_per_token_and_head(key_dim: int, value_dim: int, group: int = 1, chunk: int = CHUNK) -> float:
    """Forward FLOPs of matrix products per token and value head, a multiply-add counting 2.

    `group` value heads share the products of keys with queries and keys. The README of gated_delta lists the terms.
    """
    K, V, C = key_dim, value_dim, chunk
    inverse = 0.0
    size = C
    while size > BLOCK:  # merging two halves of `size` rows: two products of half-sized blocks
        inverse += (C / size) * 2 * 2 * (size / 2) ** 3
        size //= 2
    per_chunk = 2 * (2 * C * C * K) / group  # (Q; K) K^T
    per_chunk += inverse
    per_chunk += 2 * C * C * (K + V)  # T (beta V | beta K)
    per_chunk += 2 * (2 * C) * K * V  # (W; Q) S
    per_chunk += 2 * C * K * V  # K^T V'
    per_chunk += 2 * C * C * V  # M V'
    return per_chunk / C
