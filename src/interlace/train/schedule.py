"""Warm-up, plateau, decay."""

from __future__ import annotations


def warmup_stable_decay(step: int, steps: int, warmup: float, decay: float) -> float:
    """The factor on the learning rate at a step counted from 0: up from 0, flat at 1, linearly down to 0.

    `warmup` and `decay` are shares of `steps`. Source: Hu et al., "MiniCPM", arXiv 2404.06395, section 4.
    """
    rising = max(1, round(steps * warmup))
    falling = round(steps * decay)
    up = (step + 1) / rising
    down = (steps - step) / (falling + 1) if falling else 1.0
    return min(1.0, up, down)
