"""The truth: the formulas, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

LARGEST = torch.finfo(torch.float32).max  # stands for no upper limit


def plain(
    x: Tensor, dt_bias: Tensor, A_log: Tensor | None, low: float, high: float, keep_step: bool
) -> tuple[Tensor, Tensor]:
    """Map x [total, C] to (log_decay, step) in dt_bias' dtype; what is not wanted is empty."""
    step = softplus(x.to(dt_bias.dtype) + dt_bias)
    if low > 0 or high < LARGEST:
        step = step.clamp(low, high)
    log_decay = step.new_empty(0)
    if A_log is not None:
        log_decay = (-A_log.exp()[:, None] * step.unflatten(1, (A_log.shape[0], -1))).flatten(1)
    return log_decay, step if keep_step else step.new_empty(0)
