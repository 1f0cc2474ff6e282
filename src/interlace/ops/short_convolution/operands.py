"""The operands of a short convolution, defined once; in order, they are also the inputs of its custom operators."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Convolution(NamedTuple):
    """One call of `short_convolution`.

    Attributes:
        x: [total, D].
        weight: [D, W], or [D, W + 1] whose last column is the bias.
        offsets: int32 [N + 1], where sequences start, and total.
        state: [N, W - 1, D], the inputs before each sequence; None for zeros.
        activated: whether SiLU follows.
        biased: whether weight holds a bias.
        time: tokens of each sequence where all have as many, else 0.
    """

    x: Tensor
    weight: Tensor
    offsets: Tensor
    state: Tensor | None
    activated: bool
    biased: bool
    time: int

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.x.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic: float32, or float64 for float64 inputs."""
        return torch.promote_types(self.x.dtype, torch.float32)

    @property
    def history(self) -> int:
        """How many inputs the next token will see, W - 1."""
        return self.weight.shape[1] - self.biased - 1


INPUTS = "Tensor x, Tensor weight, Tensor offsets, Tensor? state, bool activated, bool biased, SymInt time"
GRADIENTS = ("x", "weight", "state")


def shapes(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Return (out [total, D], windows [N, W-1, D]), with nothing in them."""
    c = Convolution(*inputs)
    windows = c.x.new_empty(c.offsets.shape[0] - 1, c.history, c.x.shape[1])
    return torch.empty_like(c.x, memory_format=torch.contiguous_format), windows
