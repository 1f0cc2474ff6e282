"""The truth: the norm as the paper writes it; differentiable by plain autograd."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import sigmoid, silu


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


def plain(
    x: Tensor,
    weight: Tensor,
    form: Form,
    before: Tensor | None,
    gate: Tensor | None,
    after: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """s = x + before; out = (weight + offset) s / sqrt(mean(s^2) + eps) act(gate) + after; float32 statistics."""
    wide = torch.promote_types(x.dtype, torch.float32)
    s = x if before is None else (x.to(wide) + before.to(wide)).to(x.dtype)
    y = s.to(wide)
    opened = None if gate is None else (silu if form.activation == "silu" else sigmoid)(gate.to(wide))
    if opened is not None and form.gate_first:
        y = y * opened
    out = (weight.to(wide) + form.offset) * (y * torch.rsqrt((y * y).sum(-1, keepdim=True) / y.shape[-1] + form.eps))
    if opened is not None and not form.gate_first:
        out = out * opened
    if after is not None:
        out = out + after.to(wide)
    return out.to(dtype), s
