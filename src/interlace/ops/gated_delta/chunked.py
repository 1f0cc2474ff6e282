"""The gated delta rule by chunks: matrix products within a chunk, a short scan over chunks, its own backward.

README.md beside this file derives every line; the names here are the names there. Works on *lanes*: equally long
segments are lanes of one batch; ragged segments lie on a single lane whose chunks may hold several *pieces*, a
piece being the part of one segment inside one chunk. No token is padded in either case.

Numbers: float32 (float64 for float64 inputs) whatever the inputs are; the cumulated log decay is float64 until
differences have been taken, so strong decay neither overflows nor loses the digits of its weak neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 64  # tokens; halves and quarters were slower on AVX2 (docs/LOG.md)
BLOCK = 16  # rows that are inverted by substitution before blocks are merged by products

WORKING_SET = 8192  # tokens x value heads that are worked on at a time
FORGOTTEN = -2000.0  # exp of it is 0 even in float64, and sums of it stay finite where -inf would give nan


@dataclass(frozen=True)
class Piece:
    """Rows [first, end) of one chunk, all of one segment (on many lanes: of every lane's own segment)."""

    chunk: int
    first: int
    end: int
    row: int  # the segment, an index into states (ignored on many lanes)
    starts: bool  # the segment starts with this piece
    ends: bool


def pieces_of(spans: list[tuple[int, int]], start: int, stop: int, size: int) -> list[Piece]:
    """The pieces of tokens [start, stop) cut into chunks of `size`, in order."""
    pieces = []
    for row, (a, b) in enumerate(spans):
        t = max(a, start)
        while t < min(b, stop):
            chunk, first = divmod(t - start, size)
            end = min(first + b - t, size)
            t += end - first
            pieces.append(Piece(chunk, first, end, row, starts=t - (end - first) == a, ends=t == b))
    return pieces


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


class Grid:
    """One run of equal chunks on every lane, with all that the scan needs.

    Tensors are [L, n, C, ...] with L = lanes x G.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, pieces: list[Piece]):
        """q, k [lanes, H, n, C, K]; v [lanes, G, n, C, V]; g, beta [lanes, G, n, C], g in float64."""
        lanes, H, n, C, K = q.shape
        G = v.shape[1]
        self.group, self.scale, self.pieces = G // H, scale, pieces
        self.q_heads, self.k_heads = q, k
        products = torch.cat((q, k), dim=-2) @ k.transpose(-1, -2)
        self.q, self.k, self.qk, self.kk = (self.spread(x) for x in (q, k, *products.split(C, dim=-2)))
        self.v, self.beta = v.reshape(lanes * G, n, C, -1), beta.reshape(lanes * G, n, C, 1)
        self.decays(g.reshape(lanes * G, n, C))
        self.A = (self.beta * self.kk * self.D).tril_(-1)
        self.T = invert(self.A)
        self.M = scale * self.qk * self.D
        right = torch.cat((self.beta * self.v, (self.beta * self.into) * self.k), dim=-1)
        self.X = self.T @ right
        self.U, W = self.X.split((v.shape[-1], K), dim=-1)
        self.R = torch.stack((W, (scale * self.into) * self.q), dim=-2)
        self.K_out = self.out_of * self.k
        self.written: Tensor  # V': what each token writes, set by `scan`
        self.entries: list[Tensor | None] = []  # the state each piece starts from

    def spread(self, x: Tensor) -> Tensor:
        """[lanes, H, ...] to [lanes x G, ...]: each key head serves `group` consecutive value heads."""
        if self.group > 1:
            x = x.repeat_interleave(self.group, dim=1)
        return x.flatten(0, 1)

    def gather(self, x: Tensor) -> Tensor:
        """The adjoint of `spread`: [lanes x G, ...] to [lanes, H, ...], summed over each group."""
        return self.heads(x).unflatten(1, (-1, self.group)).sum(2)

    def heads(self, x: Tensor) -> Tensor:
        """[lanes x G, ...] to [lanes, G, ...]."""
        return x.unflatten(0, (self.q_heads.shape[0], -1))

    @cached_property
    def one_piece(self) -> bool:
        """Whether every chunk is a single piece."""
        return len(self.pieces) == self.k.shape[1]

    def decays(self, g: Tensor) -> None:
        """D_ij from j to i within a segment, `into` from the piece's start, `out_of` to the piece's end."""
        C, dtype = g.shape[-1], self.q.dtype
        G = g.cumsum(-1)
        pair = G.unsqueeze(-1) - G.unsqueeze(-2)
        if self.one_piece:
            base, last = torch.zeros_like(G[..., :1]), G[..., -1:]
            keep = torch.ones(C, C, dtype=torch.bool, device=g.device).tril_()
        else:
            firsts, ends, rows = self.token_pieces(g.device)
            shifted = torch.nn.functional.pad(G, (1, 0))
            base = shifted.gather(-1, firsts.expand(G.shape))
            last = shifted.gather(-1, ends.expand(G.shape))
            keep = (rows.unsqueeze(-1) == rows.unsqueeze(-2)).tril_()
        self.D = pair.masked_fill_(~keep, -torch.inf).to(dtype).exp_()
        self.into = (G - base).to(dtype).exp_().unsqueeze(-1)
        self.out_of = (last - G).to(dtype).exp_().unsqueeze(-1)

    def token_pieces(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """For each token [n, C]: its piece's first row, its piece's end, and its segment."""
        n, C = self.k.shape[1:3]
        lengths = torch.tensor([p.end - p.first for p in self.pieces])
        columns = torch.tensor([(p.first, p.end, p.row) for p in self.pieces])
        firsts, ends, rows = torch.repeat_interleave(columns, lengths, dim=0).to(device).view(n, C, 3).unbind(-1)
        return firsts, ends, rows

    def across(self, p: Piece) -> Tensor:
        """The decay [L, 1, 1] from a piece's start to its end."""
        return self.into[:, p.chunk, p.end - 1, :, None]

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
        d_across = self.into.new_zeros(len(self.pieces), self.into.shape[0])
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
                d_across[index] = (S * d_state).sum((1, 2))
                d_S += self.across(p) * d_state
            d_state = d_S
            if p.starts and d_initial is not None:
                d_initial[p.row] = d_S
        return self.within_back(d_out, d_written, d_R, d_K_out, d_across), d_state

    def within_back(
        self, d_out: Tensor, d_written: Tensor, d_R: Tensor, d_K_out: Tensor, d_across: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of this grid's inputs from those of what the scan used."""
        d_X = torch.cat((d_written, d_R[..., 0, :]), dim=-1)
        d_right = self.T.transpose(-1, -2) @ d_X
        d_A = (d_right @ self.X.transpose(-1, -2)).neg_().tril_(-1)
        d_bv, d_bk = d_right.split((self.v.shape[-1], self.k.shape[-1]), dim=-1)
        d_M = d_out @ self.written.transpose(-1, -2)
        d_q_in = d_R[..., 1, :]

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
        d_G = self.border_back(d_G, d_into, d_out_of, d_across)
        d_g = d_G.flip(-1).cumsum(-1).flip(-1)
        return d_q, d_k, self.heads(d_v), self.heads(d_g), self.heads(d_beta)

    def border_back(self, d_G: Tensor, d_into: Tensor, d_out_of: Tensor, d_across: Tensor) -> Tensor:
        """Add what reaches the cumulated decay at the pieces' ends, and just before their starts."""
        for index, p in enumerate(self.pieces):
            across = d_across[index] * self.into[:, p.chunk, p.end - 1, 0]
            d_G[:, p.chunk, p.end - 1] += d_out_of[:, p.chunk, p.first : p.end].sum(-1) + across
            if p.first > 0:
                d_G[:, p.chunk, p.first - 1] -= d_into[:, p.chunk, p.first : p.end].sum(-1) + across
        return d_G


def grids(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, offsets: Tensor, time: int, scale: float
) -> Iterator[Grid]:
    """Cut the flat axis into lanes and chunks: a grid of whole chunks, and one for what remains."""
    spans = [(0, time)] if time else list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    lanes, T = (offsets.shape[0] - 1, time) if time else (1, q.shape[0])
    dtype = torch.promote_types(v.dtype, torch.float32)

    def lay(x: Tensor, to: torch.dtype) -> Tensor:  # [total, heads, ...] -> [lanes, heads, T, ...]
        return x.unflatten(0, (lanes, T)).transpose(1, 2).to(to)

    q, k, v, beta, g = lay(q, dtype), lay(k, dtype), lay(v, dtype), lay(beta, dtype), lay(g, torch.float64)
    g = g.clamp(min=FORGOTTEN)
    whole = T - T % CHUNK
    for start, stop, size in ((0, whole, CHUNK), (whole, T, T - whole)):
        if stop > start:
            pieces = pieces_of(spans, start, stop, size)
            parts = [x[:, :, start:stop].unflatten(2, (-1, size)).contiguous() for x in (q, k, v, g, beta)]
            yield Grid(parts[0], parts[1], parts[2], parts[3], parts[4], scale, pieces)


def lay_states(state: Tensor | None, time: int, dtype: torch.dtype) -> Tensor | None:
    """States [N, G, K, V] by segment, as [rows, L, K, V]: one row of N x G lanes, or N rows of G."""
    if state is None:
        return None
    return state.to(dtype).flatten(0, 1).unsqueeze(0) if time else state.to(dtype)


def unlay(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The grids' [lanes, heads, n, C, ...] back to [total, heads, ...]."""
    return torch.cat([x.flatten(2, 3) for x in parts], dim=2).transpose(1, 2).flatten(0, 1).contiguous().to(dtype)


def head_blocks(q: Tensor, v: Tensor) -> list[tuple[slice, slice]]:
    """(key heads, value heads) to work on at a time, so that temporaries stay in the cache and memory is bounded."""
    H, group = q.shape[1], v.shape[1] // q.shape[1]
    heads = max(1, WORKING_SET // (q.shape[0] * group))
    return [(slice(h, h + heads), slice(h * group, (h + heads) * group)) for h in range(0, H, heads)]


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    offsets: Tensor,
    state: Tensor | None,
    scale: float,
    time: int,
) -> tuple[Tensor, Tensor, list[Grid]]:
    """Outputs [total, G, V], final states [N, G, K, V], and the grids, which hold what a backward needs."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    initial = lay_states(state, time, dtype)
    outputs: list[Tensor] = []
    finals: list[Tensor] = []
    used: list[Grid] = []
    S = None
    for grid in grids(q, k, v, g, beta, offsets, time, scale):
        out, S = grid.scan(initial, S, finals)
        outputs.append(grid.heads(out))
        used.append(grid)
    final = torch.stack(finals).view(offsets.shape[0] - 1, v.shape[1], k.shape[2], v.shape[2])
    return unlay(outputs, v.dtype), final, used


def run_back(
    d_out: Tensor, d_final: Tensor | None, used: list[Grid], state: Tensor | None, time: int
) -> tuple[list[Tensor], Tensor | None]:
    """Gradients of (q, k, v, g, beta) [total, heads, ...] and of the state, through the grids of a `run`."""
    dtype = used[0].q.dtype
    d_finals, start = lay_states(d_final, time, dtype), lay_states(state, time, dtype)
    d_initial = None if start is None else torch.zeros_like(start)
    lanes = used[0].q_heads.shape[0]
    d_lanes = d_out.to(dtype).unflatten(0, (lanes, -1)).transpose(1, 2)
    stop, d_state = d_lanes.shape[2], None
    collected = []
    for grid in reversed(used):
        n, C = grid.k.shape[1:3]
        part = d_lanes[:, :, stop - n * C : stop].unflatten(2, (n, C)).flatten(0, 1)
        grads, d_state = grid.scan_back(part.contiguous(), d_state, d_finals, d_initial)
        collected.append(grads)
        stop -= n * C
    joined = [unlay(parts, dtype) for parts in zip(*reversed(collected), strict=True)]
    return joined, None if d_initial is None or state is None else d_initial.view(state.shape)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    offsets: Tensor,
    state: Tensor | None,
    scale: float,
    time: int,
) -> tuple[Tensor, Tensor]:
    """Outputs [total, G, V] in value's dtype and final states [N, G, K, V]."""
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    dtype = torch.promote_types(v.dtype, torch.float32)
    final = v.new_empty(offsets.shape[0] - 1, v.shape[1], k.shape[2], v.shape[2], dtype=dtype)
    for hs, gs in head_blocks(q, v):
        initial = None if state is None else state[:, gs]
        some = run(q[:, hs], k[:, hs], v[:, gs], g[:, gs], beta[:, gs], offsets, initial, scale, time)
        out[:, gs], final[:, gs] = some[:2]
    return out, final


def backward(
    d_out: Tensor,
    d_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    offsets: Tensor,
    state: Tensor | None,
    scale: float,
    time: int,
) -> tuple[Tensor, ...]:
    """Gradients of (query, key, value, log_decay, beta, state); everything but the inputs is computed again."""
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, g, beta)]
    d_state = q.new_zeros(0) if state is None else torch.empty_like(state)
    for hs, gs in head_blocks(q, v):
        initial = None if state is None else state[:, gs]
        due = None if d_final is None else d_final[:, gs]
        used = run(q[:, hs], k[:, hs], v[:, gs], g[:, gs], beta[:, gs], offsets, initial, scale, time)[2]
        parts, d_initial = run_back(d_out[:, gs], due, used, initial, time)
        for whole, part, heads in zip(grads, parts, (hs, hs, gs, gs, gs), strict=True):
            whole[:, heads] = part
        if d_initial is not None:
            d_state[:, gs] = d_initial
    return *grads, d_state
