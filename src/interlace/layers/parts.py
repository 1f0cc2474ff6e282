"""What a fused weight holds: the rows of each logical matrix, and how often they follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Parts(NamedTuple):
    """The logical matrices in the rows of a weight [..., rows, columns].

    Attributes:
        sizes: rows of each part in turn.
        repeat: how often the parts follow one another: once, or once in each head.
    """

    sizes: tuple[int, ...]
    repeat: int = 1

    def split(self, weight: Tensor) -> list[Tensor]:
        """Return each part as a matrix [..., repeat x size, columns]; a view where the parts do not repeat."""
        found = weight.unflatten(-2, (self.repeat, sum(self.sizes))).split(self.sizes, dim=-2)
        return [part.flatten(-3, -2) for part in found]

    def join(self, matrices: Sequence[Tensor]) -> Tensor:
        """Return the weight whose parts these are."""
        found = [m.unflatten(-2, (self.repeat, size)) for m, size in zip(matrices, self.sizes, strict=True)]
        return torch.cat(found, dim=-2).flatten(-3, -2)


class Cut(NamedTuple):
    """How a parameter is cut where several workers hold the heads of a layer.

    Attributes:
        axis: along which.
        sizes: of the parts along it, each cut by itself.
        pieces: into how many each part is cut; None for one piece for each worker. Of fewer, several hold the same.
    """

    axis: int
    sizes: tuple[int, ...]
    pieces: tuple[int, ...] | None = None

    def of(self, part: int, workers: int) -> int:
        """Return into how many pieces a part is cut."""
        return workers if self.pieces is None else self.pieces[part]

    def places(self, place: int, workers: int) -> list[tuple[int, int, int]]:
        """Return (start here, start in the whole, size) of what one worker holds of each part, along the axis."""
        found, here, start = [], 0, 0
        for part, size in enumerate(self.sizes):
            pieces = self.of(part, workers)
            own = size // pieces
            found.append((here, start + place * pieces // workers * own, own))
            here, start = here + own, start + size
        return found


def rows(*sizes: int, pieces: tuple[int, ...] | None = None) -> Cut:
    """Return a cut along the outputs of a weight, or along the one axis of a vector."""
    return Cut(0, sizes, pieces)


def columns(size: int) -> Cut:
    """Return a cut along the inputs of a weight: the products of all workers are then summed."""
    return Cut(1, (size,))


class Division(NamedTuple):
    """A layer whose heads, or hidden columns, several workers hold.

    Attributes:
        config: of the layer that one worker holds.
        cuts: how parameters are cut, by name; the others are whole on each worker.
        statistics: the norms whose statistic is taken over all workers' channels.
        summed: the groups of projections inside the layer that read channels of all workers.
    """

    config: Any
    cuts: dict[str, Cut]
    statistics: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()


def check_divides(name: str, size: int, workers: int) -> None:
    """Raise ValueError, naming the field, unless a number is a multiple of the workers."""
    if size % workers:
        raise ValueError(f"{name}: {size} cannot be divided among parallel.tensor = {workers} workers")


def check_no_bias(bias: bool, workers: int) -> None:
    """Raise ValueError for a layer with a bias after products that are summed over workers."""
    if bias and workers > 1:
        raise ValueError("bias: a layer with biases cannot be divided; set parallel.tensor = 1")
