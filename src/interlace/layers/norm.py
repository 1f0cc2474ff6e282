"""Root-mean-square norms: statistics and weight in float32, the result in the input's dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class RMSNorm(nn.Module):
    """y = weight x / sqrt(mean(x^2) + eps), over the last axis."""

    def __init__(self, width: int, eps: float):
        """width: the size of the last axis."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt((y * y).sum(-1, keepdim=True) / y.shape[-1] + self.eps)
        return (self.weight * (y * scale)).to(x.dtype)


class GatedRMSNorm(RMSNorm):
    """y = RMSNorm(x) SiLU(gate): the output norm of a recurrent mixer, one weight for all heads."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """x, gate: [..., width]."""
        return (super().forward(x) * silu(gate.to(torch.promote_types(gate.dtype, torch.float32)))).to(x.dtype)
