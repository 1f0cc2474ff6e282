"""What a fused weight holds: the rows of each logical matrix, and how often they follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
