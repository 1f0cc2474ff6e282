"""The truth: the norm as the paper writes it; differentiable by plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def plain(
    x: Tensor,
    weight: Tensor,
    eps: float,
    before: Tensor | None,
    gate: Tensor | None,
    after: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """s = x + before; out = weight s / sqrt(mean(s^2) + eps) SiLU(gate) + after; statistics in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    s = x if before is None else (x.to(wide) + before.to(wide)).to(x.dtype)
    y = s.to(wide)
    out = weight * (y * torch.rsqrt((y * y).sum(-1, keepdim=True) / y.shape[-1] + eps))
    if gate is not None:
        out = out * silu(gate.to(wide))
    if after is not None:
        out = out + after.to(wide)
    return out.to(dtype), s
