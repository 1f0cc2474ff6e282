"""The operands of a norm, defined once: the record that every backend gets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Form(NamedTuple):
    """The variant of a norm.

    Attributes:
        eps: keeps a row of zeros finite.
        offset: added to the weight (1 where the weight is stored as its difference from 1).
        activation: of the gate, "silu" or "sigmoid".
        gate_first: whether the gate is applied before the norm, and not to its result.
    """

    eps: float
    offset: float = 0.0
    activation: str = "silu"
    gate_first: bool = False


class Operands(NamedTuple):
    """One call of `rms_norm`.

    Attributes:
        x: [rows, D] or [total, heads, D].
        weight: [D], or [heads, D].
        before, gate, after: as x, or None.
        form: which of its variants the norm is.
        dtype: of the output.
    """

    x: Tensor
    weight: Tensor
    before: Tensor | None
    gate: Tensor | None
    after: Tensor | None
    form: Form
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.x.device
