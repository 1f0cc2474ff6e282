"""The truth: each pair of elements times a rotation."""

from __future__ import annotations

import torch
from torch import Tensor


def plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [total, heads, dim]; float32 arithmetic at least, x's dtype out."""
    turning = cos.shape[-1]
    part = x[..., :turning]
    low, high = part.chunk(2, dim=-1)
    turned = torch.cat((-high, low), dim=-1)
    turned = (part * cos.unsqueeze(1) + turned * sin.unsqueeze(1)).to(x.dtype)
    return turned if turning == x.shape[-1] else torch.cat((turned, x[..., turning:]), dim=-1)
