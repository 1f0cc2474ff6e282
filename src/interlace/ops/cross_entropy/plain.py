"""The truth: log-softmax at the target, and softmax minus one-hot."""

from __future__ import annotations

import torch
from torch import Tensor


def plain(logits: Tensor, targets: Tensor, ignored: int, factor: float | Tensor) -> Tensor:
    """Return losses [rows] in float32 at least; `logits` becomes their gradient."""
    valid = targets != ignored
    index = targets.where(valid, 0).unsqueeze(1)
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    losses = -log_p.gather(1, index).squeeze(1) * valid
    d = log_p.exp_()
    d.scatter_add_(1, index, torch.full_like(index, -1, dtype=d.dtype))
    logits.copy_(d.mul_((valid * factor).unsqueeze(1)))
    return losses
