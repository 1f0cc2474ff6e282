"""The gated delta rule by chunks: matrix products within a chunk, a short scan over chunks, its own backward.

README.md beside this file derives every line; the names here are the names there. Lanes, chunks and pieces, and how
numbers are kept: `interlace.ops.core.chunks`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core import chunks
from interlace.ops.core.chunks import Piece

CHUNK = chunks.Grid.CHUNK  # tokens; halves and quarters were slower on AVX2 (docs/LOG.md)
BLOCK = 16  # rows that are inverted by substitution before blocks are merged by products


def invert(A: Tensor) -> Tensor:
    """(I + A)^-1 for strictly lower triangular A [..., C, C]: substitution on blocks, then merges by products."""
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


class Grid(chunks.Grid):
    """The gated delta rule on one run of chunks. Tensors are [L, n, C, ...] with L = lanes x G."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, pieces: list[Piece]):
        """q, k [lanes, H, n, C, K]; v [lanes, G, n, C, V]; g, beta [lanes, G, n, C], g in float64."""
        lanes, H, n, C, _ = q.shape
        super().__init__(lanes, H, v.shape[1], n, C, q.dtype, pieces)
        self.scale = scale
        self.q_heads, self.k_heads = q, k
        products = torch.cat((q, k), dim=-2) @ k.transpose(-1, -2)
        self.q, self.k, self.qk, self.kk = (self.spread(x) for x in (q, k, *products.split(C, dim=-2)))
        self.v, self.beta = v.flatten(0, 1), beta.flatten(0, 1).unsqueeze(-1)
        self.decays(g.flatten(0, 1))
        self.A = (self.beta * self.kk * self.D).tril_(-1)
        self.M = scale * self.qk * self.D
        self.solve()

    def solve(self) -> None:
        """What the scan uses, from A (strictly lower), M, and the decays: T = (I + A)^-1, U, R, K_out."""
        right = torch.cat((self.beta * self.v, (self.beta * self.into) * self.k), dim=-1)
        self.T = invert(self.A)
        self.X = self.T @ right
        self.U, W = self.X.split((self.v.shape[-1], self.k.shape[-1]), dim=-1)
        self.R = torch.stack((W, (self.scale * self.into) * self.q), dim=-2)
        self.K_out = self.out_of * self.k
        self.written: Tensor  # V': what each token writes, set by `scan`

    def decays(self, g: Tensor) -> None:
        """D_ij from j to i within a segment, `into` from the piece's start, `out_of` to the piece's end."""
        G = g.cumsum(-1)
        base, last = (x.squeeze(-1) for x in self.borders(G.unsqueeze(-1)))
        pair = G.unsqueeze(-1) - G.unsqueeze(-2)
        self.D = pair.masked_fill_(~self.visible(g.device), -torch.inf).to(self.dtype).exp_()
        self.into = (G - base).to(self.dtype).exp_().unsqueeze(-1)
        self.out_of = (last - G).to(self.dtype).exp_().unsqueeze(-1)

    def across(self, p: Piece) -> Tensor:
        """The decay [L, 1, 1] from a piece's start to its end."""
        return self.into[:, p.chunk, p.end - 1, :, None]

    def across_back(self, d: Tensor) -> Tensor:
        """The gradient of `across` [L], from that of across S times S."""
        return d.sum((1, 2))

    def scan(self, initial: Tensor | None, carried: Tensor | None, finals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Run the pieces in order; return (out [L, n, C, V], the last state); ended segments go to `finals`."""
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
        """The pieces in reverse: gradients of (q, k, v, g, beta) of this grid, and of the state it started from.

        `d_state` is the gradient of the state the grid ended with, None where a segment ends there or nothing is due.
        """
        d_written = self.M.transpose(-1, -2) @ d_out
        d_R, d_K_out = torch.zeros_like(self.R), torch.zeros_like(self.K_out)
        d_across = [torch.zeros_like(self.across_back(self.across(p))) for p in self.pieces]
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
        return self.within_back(d_out, d_written, d_R, d_K_out, torch.stack(d_across)), d_state

    def solve_back(self, d_out: Tensor, d_written: Tensor, d_R: Tensor) -> tuple[Tensor, ...]:
        """Gradients of A, M, beta V, beta K (decayed into) and of Q (so too), from those of what the scan used."""
        d_X = torch.cat((d_written, d_R[..., 0, :]), dim=-1)
        d_right = self.T.transpose(-1, -2) @ d_X
        d_A = (d_right @ self.X.transpose(-1, -2)).neg_().tril_(-1)
        d_bv, d_bk = d_right.split((self.v.shape[-1], self.k.shape[-1]), dim=-1)
        d_M = d_out @ self.written.transpose(-1, -2)
        return d_A, d_M, d_bv, d_bk, d_R[..., 1, :]

    def within_back(
        self, d_out: Tensor, d_written: Tensor, d_R: Tensor, d_K_out: Tensor, d_across: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of this grid's inputs from those of what the scan used."""
        d_A, d_M, d_bv, d_bk, d_q_in = self.solve_back(d_out, d_written, d_R)
        d_kk, d_qk = self.beta * self.D * d_A, self.scale * self.D * d_M
        E = d_A * self.A + d_M * self.M  # the gradient of log D: D's own strict zeros mask it
        bk_k, q_in_q, K_out_k = (d_bk * self.k).sum(-1), (d_q_in * self.q).sum(-1), (d_K_out * self.k).sum(-1)
        beta, into, out_of = (x.squeeze(-1) for x in (self.beta, self.into, self.out_of))

        d_beta = (d_bv * self.v).sum(-1) + into * bk_k + (d_A * self.kk * self.D).sum(-1)
        d_v = self.beta * d_bv
        d_q = self.gather((self.scale * self.into) * d_q_in)
        d_k = self.gather((self.beta * self.into) * d_bk + self.out_of * d_K_out)
        d_kk, d_qk = self.gather(d_kk), self.gather(d_qk)
        d_q += d_qk @ self.k_heads
        d_k += d_qk.transpose(-1, -2) @ self.q_heads + (d_kk + d_kk.transpose(-1, -2)) @ self.k_heads

        d_into = into * (beta * bk_k + self.scale * q_in_q)
        d_out_of = out_of * K_out_k
        d_G = (E.sum(-1) - E.sum(-2) + d_into - d_out_of).double()
        ends = [self.into[:, p.chunk, p.end - 1, 0] * d_across[index] for index, p in enumerate(self.pieces)]
        d_G = self.border_back(d_G, d_into, d_out_of, torch.stack(ends))
        d_g = d_G.flip(-1).cumsum(-1).flip(-1)
        return d_q, d_k, self.heads(d_v), self.heads(d_g), self.heads(d_beta)
