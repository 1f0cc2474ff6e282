"""L2-normalised queries and keys, as the gated delta rule wants them."""

from __future__ import annotations

import torch
from torch import Tensor

L2_EPS = 1e-6


def normalised(x: Tensor) -> Tensor:
    """x / sqrt(sum(x^2) + 1e-6) over the last axis, in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + L2_EPS)
