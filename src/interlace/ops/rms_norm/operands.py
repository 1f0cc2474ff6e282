"""The operands of a norm, said once: the record that every backend is handed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Form(NamedTuple):
    """Which of its variants the norm is.

    Attributes:
        eps: keeps a row of zeros finite.
        offset: added to the weight (1 where the weight is stored as its difference from 1).
        activation: of the gate, "silu" or "sigmoid".
        gate_first: whether the gate opens what is normalised, and not the result.
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
        """Where the tensors lie."""
        return self.x.device
