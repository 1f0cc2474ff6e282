"""The gated delta rule by chunks: matrix products within a chunk, a short scan over chunks, its own backward.

README.md beside this file derives every line; the names here are the names there. The scan: `core.delta_scan`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interlace.ops.core import delta_scan
from interlace.ops.core.chunks import Piece


class GatedDeltaGrid(delta_scan.DeltaGrid):
    """The gated delta rule on one run of chunks. Tensors are [L, n, C, ...] with L = lanes x G."""

    def __init__(self, parts: Sequence[Tensor], scale: float, pieces: list[Piece]):
        """q, k [lanes, H, n, C, K]; v [lanes, G, n, C, V]; g, beta [lanes, G, n, C], g in float64."""
        super().__init__(parts, scale, pieces)
        q, k, v, g, beta = parts
        C = self.C
        self.q_heads, self.k_heads = q, k
        products = torch.cat((q, k), dim=-2) @ k.transpose(-1, -2)
        self.q, self.k, self.qk, self.kk = (self.spread(x) for x in (q, k, *products.split(C, dim=-2)))
        self.v, self.beta = v.flatten(0, 1), beta.flatten(0, 1).unsqueeze(-1)
        self.decays(g.flatten(0, 1))
        self.A = (self.beta * self.kk * self.D).tril_(-1)
        self.M = scale * self.qk * self.D
        self.solve()

    def decays(self, g: Tensor) -> None:
        """Compute D_ij from j to i within a segment, `into` from the piece's start, `out_of` to the piece's end."""
        G = g.cumsum(-1)
        base, last = (x.squeeze(-1) for x in self.borders(G.unsqueeze(-1)))
        pair = G.unsqueeze(-1) - G.unsqueeze(-2)
        self.D = pair.masked_fill_(~self.visible(g.device), -torch.inf).to(self.dtype).exp_()
        self.into = (G - base).to(self.dtype).exp_().unsqueeze(-1)
        self.out_of = (last - G).to(self.dtype).exp_().unsqueeze(-1)

    def across(self, p: Piece) -> Tensor:
        """The decay [L, 1, 1] from a piece's start to its end."""
        return self.into[self.rows(p, self.heads_per_lane), p.chunk, p.end - 1, :, None]

    def across_back(self, d: Tensor) -> Tensor:
        """The gradient of `across` [L], from that of across S times S."""
        return d.sum((1, 2))

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
        d_G = (E.sum(-1) - E.sum(-2) + d_into - d_out_of).to(self.sums)
        ends = [self.into[:, p.chunk, p.end - 1, 0] * d_across[index] for index, p in enumerate(self.spans)]
        d_G = self.border_back(d_G, d_into, d_out_of, torch.stack(ends))
        d_g = d_G.flip(-1).cumsum(-1).flip(-1)
        return d_q, d_k, self.heads(d_v), self.heads(d_g), self.heads(d_beta)
