"""Root-mean-square norms: statistics and weight in float32, the result in the dtype of what reads it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interlace.ops.rms_norm.dispatch import rms_norm


@dataclass(frozen=True)
class NormStyle:
    """The style that all RMSNorms of a model share.

    Attributes:
        eps: keeps a row of zeros finite.
        zero_centred: whether a weight is stored as its difference from 1 (Gemma, Qwen3-Next).
    """

    eps: float
    zero_centred: bool = False

    def build(self, width: int) -> RMSNorm:
        """Return a norm over `width` elements."""
        return RMSNorm(width, self.eps, offset=1.0 if self.zero_centred else 0.0)


class RMSNorm(nn.Module):
    """y = (weight + offset) x / sqrt(mean(x^2) + eps), over the last axis."""

    def __init__(self, width: int, eps: float, offset: float = 0.0):
        """width: the size of the last axis; offset: 1 where the weight is stored as its difference from 1."""
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalise [..., width], in `dtype` (x's if None)."""
        return rms_norm(x, self.weight, self.eps, offset=self.offset, dtype=dtype)[0]

    def after_sum(self, x: Tensor, branch: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(the norm of x + branch in `dtype`, x + branch in x's dtype)."""
        return rms_norm(x, self.weight, self.eps, before=branch, offset=self.offset, dtype=dtype)

    def into_sum(self, branch: Tensor, x: Tensor) -> Tensor:
        """x + the norm of branch, in x's dtype."""
        return rms_norm(branch, self.weight, self.eps, after=x, offset=self.offset, dtype=x.dtype)[0]


class GatedRMSNorm(RMSNorm):
    """y = RMSNorm(x) act(gate): the output norm of a recurrent mixer, one weight for all heads."""

    def __init__(self, width: int, eps: float, activation: str = "silu"):
        """width: the size of the last axis; activation: of the gate, "silu" or "sigmoid"."""
        super().__init__(width, eps)
        self.activation = activation

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """x, gate: [..., width]; the result in gate's dtype."""
        return rms_norm(x, self.weight, self.eps, gate=gate, activation=self.activation, dtype=gate.dtype)[0]


class GroupedGatedRMSNorm(RMSNorm):
    """y = weight RMSNorm(x SiLU(gate)), the statistics over each of `groups` parts of the last axis (Mamba-2)."""

    def __init__(self, width: int, eps: float, groups: int):
        """width: the size of the last axis, all groups together."""
        super().__init__(width, eps)
        self.groups = groups

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """x, gate: [total, width]; the result in gate's dtype."""
        x, gate, weight = (y.unflatten(-1, (self.groups, -1)) for y in (x, gate, self.weight))
        return rms_norm(x, weight, self.eps, gate=gate, gate_first=True, dtype=gate.dtype)[0].flatten(1)
