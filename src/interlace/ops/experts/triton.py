"""Experts by Triton kernels: pairs of token and choice are sorted on the GPU, and the host waits for nothing.

How many pairs an expert has is known to the GPU alone. There are as many programs as the worst case needs; those past
the last tile end at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.ops.core import gpu, kernels
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.gpu import power
from interlace.ops.experts import sorted, triton_kernels


class Tile(NamedTuple):
    """What a program multiplies at a time.

    Attributes:
        rows, columns: of the result.
        depth: of the sum.
        warps, stages: how Triton schedules it.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# By the least pairs that an expert has on average (`dispatch.PAIRS`). SwiGLU and its backward hold more in registers:
# half the columns.
TILES = {
    0: Tile(16, 128, 64, 4, 3),
    24: Tile(64, 128, 64, 4, 3),
    96: Tile(128, 128, 64, 8, 3),
}
GRADIENT = Tile(128, 128, 64, 8, 3)
EXACT, EXACT_GRADIENT = Tile(32, 64, 32, 4, 2), Tile(64, 64, 16, 4, 2)  # float32
ELEMENTS, COLUMNS = 2048, 1024  # of a tile of sums over choices
ACTIVATIONS = {"none": 0, "swiglu": 1, "relu2": 2}


class Pairs:
    """One call's pairs, sorted by expert, and the tiles that they are cut into. All is computed on the device."""

    def __init__(self, x: Tensor, chosen: Tensor, weights: Tensor, experts: int) -> None:
        """Sort; no size depends on a value."""
        self.x, self.experts, self.top = x, experts, chosen.shape[1]
        self.chosen = chosen.contiguous()
        flat = self.chosen.view(-1)
        self.count, device = flat.shape[0], x.device
        if x.dtype == torch.float32:
            self.tile, self.gradient = EXACT, EXACT_GRADIENT
        else:
            average = self.count // max(1, experts)
            self.tile, self.gradient = TILES[max(least for least in TILES if least <= average)], GRADIENT
        found, order = torch.sort(flat, stable=True)
        index = torch.arange(max(self.count, experts + 1), device=device)
        self.tokens = (order // max(1, self.top)).to(torch.int32)
        self.places = torch.empty_like(order, dtype=torch.int32)
        self.places.scatter_(0, order, index[: self.count].to(torch.int32))
        self.weights = weights.to(torch.float32).contiguous()
        self.shares = self.weights.view(-1)[order]
        borders = torch.searchsorted(found, index[: experts + 1].to(found.dtype))
        self.offsets = borders.to(torch.int32)
        self.tiles = self._tiles(borders)

    def _tiles(self, borders: Tensor) -> Tensor:
        """Return the table of tiles [at most, 3]: the expert, the first pair, one past the last."""
        rows, most = self.tile.rows, min(self.count, self.count // self.tile.rows + self.experts)
        tiles = (borders.diff() + rows - 1) // rows
        last = tiles.cumsum(0)
        tile = torch.arange(most, device=borders.device)
        expert = torch.searchsorted(last, tile, right=True)
        used, expert = expert < self.experts, expert.clamp(max=self.experts - 1)
        first = borders[expert] + (tile - (last - tiles)[expert]) * rows
        end = torch.minimum(first + rows, borders[expert + 1])
        return torch.stack((expert, first, torch.where(used, end, first)), dim=1).to(torch.int32)

    def new(self, width: int) -> Tensor:
        """Return a row for each pair, with nothing in it."""
        return self.x.new_empty(self.count, width)

    def _sizes(self, N: int, K: int, tile: Tile) -> dict[str, int]:
        columns, depth = min(tile.columns, power(N)), min(tile.depth, power(K))
        return {"N": N, "K": K, "BM": tile.rows, "BN": columns, "BK": depth}

    def _halved(self) -> Tile:
        return self.tile._replace(columns=self.tile.columns // 2)

    def product(self, a: Tensor, w: Tensor, act: str, gather: bool, across: bool) -> Tensor:
        """Return act(a w_e) of each pair; `across`: an expert's matrix is [K, N], else [N, K] or [2 N, K]."""
        K, N = a.shape[1], w.shape[2 if across else 1] // (2 if act == "swiglu" else 1)
        tile = self._halved() if act == "swiglu" else self.tile
        sizes, out = self._sizes(N, K, tile), self.new(N)
        constants = {**sizes, "ACT": ACTIVATIONS[act], "GATHER": gather, "ACROSS": across}
        programs = self.tiles.shape[0] * -(-N // sizes["BN"])
        arguments = (a, w, out, self.tiles, self.tokens)
        gpu.launch(triton_kernels.product, programs, arguments, constants, tile.warps, tile.stages)
        return out

    def hidden_backward(self, d_out: Tensor, second: Tensor, hidden: Tensor, act: str) -> tuple[Tensor, ...]:
        """Return the gradient before the activation, share act(hidden), and the gradient of each pair's share."""
        _, K, N = second.shape
        sizes = self._sizes(N, K, self._halved())
        blocks = -(-N // sizes["BN"])
        d_hidden, weighted = torch.empty_like(hidden), self.new(N)
        partial = torch.empty(blocks, self.count, dtype=torch.float32, device=hidden.device)
        read = (d_out, second, hidden, self.shares)
        arguments = (*read, d_hidden, weighted, partial, self.tiles, self.tokens, self.count)
        constants = {**sizes, "ACT": ACTIVATIONS[act]}
        programs = self.tiles.shape[0] * blocks
        gpu.launch(triton_kernels.hidden_backward, programs, arguments, constants, self.tile.warps, self.tile.stages)
        return d_hidden, weighted, partial.sum(0)

    def weight_gradients(self, a: Tensor, b: Tensor, like: Tensor, gather: tuple[bool, bool]) -> Tensor:
        """Return the sum of a^T b over each expert's pairs; gather: whether a, b are indexed by token."""
        out = torch.empty_like(like, memory_format=torch.contiguous_format)
        E, M, N = out.shape
        rows, columns = min(self.gradient.rows, power(M)), min(self.gradient.columns, power(N))
        constants = {"M": M, "N": N, "BM": rows, "BN": columns, "BK": self.gradient.depth}
        constants |= {"GATHER_A": gather[0], "GATHER_B": gather[1]}
        gpu.launch(
            triton_kernels.weight_gradients,
            E * -(-M // rows) * -(-N // columns),
            (a, b, out, self.offsets, self.tokens),
            constants,
            self.gradient.warps,
            self.gradient.stages,
        )
        return out

    def combine(self, pairs: Tensor, weighted: bool) -> Tensor:
        """Return the sum of each token's rows, in float32 and then rounded, times their shares if `weighted`."""
        tokens, D = self.x.shape[0], pairs.shape[1]
        out = self.x.new_empty(tokens, D)
        columns = min(COLUMNS, power(D))
        rows = ELEMENTS // columns
        constants = {"D": D, "TOP": self.top, "WEIGHTED": weighted, "ROWS": rows, "COLS": columns}
        arguments = (pairs, self.places, self.chosen, self.weights, out, tokens, self.experts)
        gpu.launch(triton_kernels.combine, -(-tokens // rows) * -(-D // columns), arguments, constants, 4)
        return out

    def of_choices(self, pairs: Tensor) -> Tensor:
        """Return a number of each pair [count] as [tokens, k], NaN for choices that name no expert."""
        named = (self.chosen >= 0) & (self.chosen < self.experts)
        return torch.where(named, pairs[self.places.view_as(self.chosen).long()], torch.nan)


def _forward(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    x, first, second = x.contiguous(), first.to(x.dtype).contiguous(), second.to(x.dtype).contiguous()
    pairs = Pairs(x, chosen, weights, first.shape[0])
    opened = pairs.product(x, first, activation, gather=True, across=False)
    return pairs.combine(pairs.product(opened, second, "none", gather=False, across=False), weighted=True)


def _backward(d_out: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, chosen, weights, first, second, activation = inputs
    A, B = first.to(x.dtype).contiguous(), second.to(x.dtype).contiguous()
    x, d_out = x.contiguous(), d_out.to(x.dtype).contiguous()
    pairs = Pairs(x, chosen, weights, A.shape[0])
    hidden = pairs.product(x, A, "none", gather=True, across=False)
    d_hidden, weighted, d_shares = pairs.hidden_backward(d_out, B, hidden, activation)
    d_second = pairs.weight_gradients(d_out, weighted, second, (True, False))
    d_first = pairs.weight_gradients(d_hidden, x, first, (False, True))
    d_x = pairs.combine(pairs.product(d_hidden, A, "none", gather=False, across=True), weighted=False)
    return d_x, pairs.of_choices(d_shares).to(weights.dtype), d_first, d_second


_operator = custom_op(
    "experts_triton", Signature(sorted.INPUTS, sorted.GRADIENTS, outputs=1), _forward, _backward, sorted.shapes
)


def run(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    """`experts` on tensors of float32 or bfloat16 on a GPU."""
    call = _operator if kernels.wants_graph(x, weights, first, second) else _forward
    return call(x, chosen, weights, first, second, activation)
