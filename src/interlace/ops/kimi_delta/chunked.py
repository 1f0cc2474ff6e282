"""Kimi Delta Attention by chunks: the gated delta rule's scan, with products whose decay differs by channel.

README.md beside this file derives every line. Here the decay from token j to token i cannot be taken out of k_i . k_j,
and exp(G_i) exp(-G_j) would overflow. Therefore the products are formed by halves of a chunk. Each is anchored at the
border between the halves, where both exponents are at most 0. Only the last few tokens are treated pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interlace.ops.core import delta_scan
from interlace.ops.core.chunks import Piece

LEAF = 4  # tokens whose products are formed pair by pair


def halves(C: int) -> tuple[int, int]:
    """Return where to cut C tokens, and whether both sides are equally long."""
    cut = (C + 1) // 2
    return cut, C - cut


def products(a: Tensor, b: Tensor, G: Tensor) -> Tensor:
    """P_ij = sum_c a_ic b_jc exp(G_ic - G_jc) for j <= i, else 0.

    a [..., m, C, K] (m factors on the left at once), b [..., C, K], G [..., C, K] float64, falling; P [..., m, C, C].
    """
    C = b.shape[-2]
    if C <= LEAF:
        keep = torch.ones(C, C, dtype=torch.bool, device=b.device).tril_()
        pair = (G.unsqueeze(-2) - G.unsqueeze(-3)).masked_fill_(~keep.unsqueeze(-1), -torch.inf)
        right = pair.to(b.dtype).exp_() * b.unsqueeze(-3)  # [..., i, j, K]
        return (a.unsqueeze(-2) * right.unsqueeze(-4)).sum(-1)
    cut, rest = halves(C)
    P = a.new_zeros(*a.shape[:-1], C)
    if cut == rest:
        both = products(*(torch.stack((x[..., :cut, :], x[..., cut:, :])) for x in (a, b, G)))
        P[..., :cut, :cut], P[..., cut:, cut:] = both.unbind(0)
    else:
        P[..., :cut, :cut] = products(a[..., :cut, :], b[..., :cut, :], G[..., :cut, :])
        P[..., cut:, cut:] = products(a[..., cut:, :], b[..., cut:, :], G[..., cut:, :])
    late, early = anchored(G, cut, b.dtype)
    left = a[..., cut:, :] * late.unsqueeze(-3)
    P[..., cut:, :cut] = left @ (b[..., :cut, :] * early).unsqueeze(-3).transpose(-1, -2)
    return P


def anchored(G: Tensor, cut: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return exp(G_i - G_cut) of the later half and exp(G_cut - G_j) of the earlier: both at most 1."""
    anchor = G[..., cut - 1 : cut, :]
    return (G[..., cut:, :] - anchor).to(dtype).exp_(), (anchor - G[..., :cut, :]).to(dtype).exp_()


def products_back(d_P: Tensor, a: Tensor, b: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a and b through `products`; that of G_i is sum over m of a_i d_a_i, less b_i d_b_i."""
    C = b.shape[-2]
    if C <= LEAF:
        keep = torch.ones(C, C, dtype=torch.bool, device=b.device).tril_()
        pair = (G.unsqueeze(-2) - G.unsqueeze(-3)).masked_fill_(~keep.unsqueeze(-1), -torch.inf)
        decay = pair.to(b.dtype).exp_()
        d_a = (d_P.unsqueeze(-1) * (decay * b.unsqueeze(-3)).unsqueeze(-4)).sum(-2)
        d_b = (d_P.unsqueeze(-1) * decay.unsqueeze(-4) * a.unsqueeze(-2)).sum((-4, -3))
        return d_a, d_b
    cut, rest = halves(C)
    late, early = anchored(G, cut, b.dtype)
    d_a, d_b = torch.empty_like(a), torch.empty_like(b)
    sides = (slice(None, cut), slice(cut, None))
    if cut == rest:
        corners = torch.stack([d_P[..., s, s] for s in sides])
        stacked = [torch.stack([x[..., s, :] for s in sides]) for x in (a, b, G)]
        parts_a, parts_b = products_back(corners, *stacked)
        for s, part_a, part_b in zip(sides, parts_a, parts_b, strict=True):
            d_a[..., s, :], d_b[..., s, :] = part_a, part_b
    else:
        for s in sides:
            d_a[..., s, :], d_b[..., s, :] = products_back(d_P[..., s, s], a[..., s, :], b[..., s, :], G[..., s, :])
    across = d_P[..., cut:, :cut]
    d_a[..., cut:, :] += (across @ (b[..., :cut, :] * early).unsqueeze(-3)) * late.unsqueeze(-3)
    d_b[..., :cut, :] += (across.transpose(-1, -2) @ (a[..., cut:, :] * late.unsqueeze(-3))).sum(-3) * early
    return d_a, d_b


class KimiDeltaGrid(delta_scan.DeltaGrid):
    """Kimi Delta Attention on one run of chunks; `into` and `out_of` [L, n, C, K] differ by channel."""

    WORKING_SET = 4096

    def __init__(self, parts: Sequence[Tensor], scale: float, pieces: list[Piece]):
        """q, k [lanes, H, n, C, K]; v [lanes, G, n, C, V]; g [lanes, G, n, C, K] in float64; beta [lanes, G, n, C]."""
        super().__init__(parts, scale, pieces)
        q, k, v, g, beta = parts
        self.q, self.k = self.spread(q), self.spread(k)
        self.v, self.beta = v.flatten(0, 1), beta.flatten(0, 1).unsqueeze(-1)
        self.G = g.flatten(0, 1).cumsum(-2)
        base, last = self.borders(self.G)
        self.into, self.out_of = (x.to(self.dtype).exp_() for x in (self.G - base, last - self.G))
        self.seen = self.visible(g.device)
        both = products(torch.stack((self.q, self.k), dim=2), self.k, self.G)
        qk, self.kk = (both * self.seen.unsqueeze(1)).unbind(2)
        self.A = (self.beta * self.kk).tril_(-1)
        self.M = scale * qk
        self.solve()

    def across(self, p: Piece) -> Tensor:
        """The decay [L, K, 1] from a piece's start to its end."""
        return self.into[self.rows(p, self.heads_per_lane), p.chunk, p.end - 1, :, None]

    def across_back(self, d: Tensor) -> Tensor:
        """The gradient of `across` [L, K], from that of across S times S."""
        return d.sum(2)

    def within_back(
        self, d_out: Tensor, d_written: Tensor, d_R: Tensor, d_K_out: Tensor, d_across: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of this grid's inputs from those of what the scan used."""
        d_A, d_M, d_bv, d_bk, d_q_in = self.solve_back(d_out, d_written, d_R)
        d_qk = self.scale * d_M * self.seen
        itself = d_qk.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # a token's product with itself knows no decay
        d_P = torch.stack((d_qk.tril(-1), self.beta * d_A * self.seen), dim=2)
        d_left, d_right = products_back(d_P, torch.stack((self.q, self.k), dim=2), self.k, self.G)

        bk_in, q_in, k_out = self.beta * self.into * d_bk, self.scale * self.into * d_q_in, self.out_of * d_K_out
        d_q = d_left[:, :, 0] + q_in + itself * self.k
        d_k = d_left[:, :, 1] + d_right + bk_in + k_out + itself * self.q
        d_beta = (d_bv * self.v).sum(-1) + (self.into * d_bk * self.k).sum(-1) + (d_A * self.kk).sum(-1)
        d_into, d_out_of = self.k * bk_in + self.q * q_in, self.k * k_out
        within = self.q * d_left[:, :, 0] + self.k * (d_left[:, :, 1] - d_right)
        ends = torch.stack([self.into[:, p.chunk, p.end - 1] * d_across[i] for i, p in enumerate(self.spans)])
        d_G = self.border_back((within + d_into - d_out_of).to(self.sums), d_into, d_out_of, ends)
        d_g = d_G.flip(2).cumsum(2).flip(2)
        d_q, d_k = self.gather(d_q), self.gather(d_k)
        return d_q, d_k, self.heads(self.beta * d_bv), self.heads(d_g), self.heads(d_beta)
