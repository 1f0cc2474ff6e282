"""Root-mean-square norms: statistics and weight in float32, the result in the dtype of what reads it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interlace.ops.rms_norm.dispatch import rms_norm


class RMSNorm(nn.Module):
    """y = weight x / sqrt(mean(x^2) + eps), over the last axis."""

    def __init__(self, width: int, eps: float):
        """width: the size of the last axis."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """[..., width] to the same, in `dtype` (x's if None)."""
        return rms_norm(x, self.weight, self.eps, dtype=dtype)[0]

    def after_sum(self, x: Tensor, branch: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(the norm of x + branch in `dtype`, x + branch in x's dtype)."""
        return rms_norm(x, self.weight, self.eps, before=branch, dtype=dtype)

    def into_sum(self, branch: Tensor, x: Tensor) -> Tensor:
        """x + the norm of branch, in x's dtype."""
        return rms_norm(branch, self.weight, self.eps, after=x, dtype=x.dtype)[0]


class GatedRMSNorm(RMSNorm):
    """y = RMSNorm(x) SiLU(gate): the output norm of a recurrent mixer, one weight for all heads."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """x, gate: [..., width]; the result in gate's dtype."""
        return rms_norm(x, self.weight, self.eps, gate=gate, dtype=gate.dtype)[0]
