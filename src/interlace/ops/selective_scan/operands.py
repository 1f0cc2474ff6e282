"""The operands of a selective scan, defined once; in order, they are also the inputs of its custom operators."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Scan(NamedTuple):
    """One call of `selective_scan`.

    Attributes:
        x, step: [total, D].
        A: [D, K].
        B, C: [total, K].
        offsets: int32 [N + 1], where sequences start, and total.
        state: [N, D, K], what each sequence starts from; None for zeros.
        time: tokens of each sequence where all have as many, else 0.
    """

    x: Tensor
    step: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    offsets: Tensor
    state: Tensor | None
    time: int

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.x.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic: float32, or float64 for float64 inputs."""
        return torch.promote_types(self.x.dtype, torch.float32)


INPUTS = "Tensor x, Tensor step, Tensor A, Tensor B, Tensor C, Tensor offsets, Tensor? state, SymInt time"
GRADIENTS = ("x", "step", "A", "B", "C", "state")


def shapes(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Return outputs [total, D] in x's dtype and final states [N, D, K], with nothing in them."""
    s = Scan(*inputs)
    final = s.x.new_empty(s.offsets.shape[0] - 1, *s.A.shape, dtype=s.dtype)
    return torch.empty_like(s.x, memory_format=torch.contiguous_format), final
