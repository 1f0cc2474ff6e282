"""Initial time scales: how fast the heads of a recurrent mixer forget before they learn."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def draw_steps(bias: Tensor, low: float, high: float, floor: float) -> None:
    """Fill a bias such that softplus(bias) is log-uniform in [low, high], and at least floor.

    Source: state-spaces/mamba, mamba_ssm/modules/mamba_simple.py.
    """
    spread = torch.rand(bias.shape, device=bias.device)
    steps = (spread * (math.log(high) - math.log(low)) + math.log(low)).exp().clamp(min=floor)
    bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus
