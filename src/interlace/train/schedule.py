"""The learning-rate schedule: warm-up, plateau, decay; once, or for each of several horizons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def horizon_steps(steps: int, horizons: Sequence[float] = ()) -> list[int]:
    """The steps after which the rate has fallen to 0: a step for each share of `steps`, and the last one."""
    return [*(round(share * steps) for share in horizons), steps]


def warmup_stable_decay(step: int, steps: int, warmup: float, decay: float, horizons: Sequence[float] = ()) -> float:
    """The factor on the learning rate at a step counted from 0: up from 0, flat at 1, linearly down to 0.

    With `horizons`, shares of `steps`, it falls to 0 at each of them and is taken up at 1 again in the next step, from
    the weights it fell to: one run has measured every horizon. `warmup` is a share of the steps to the first end,
    `decay` of all steps up to the end that the rate falls to, if so many lie after the end before.

    Source: Hu et al., "MiniCPM", arXiv 2404.06395, section 4; Wen et al., arXiv 2410.05192 (WSD-S).
    """
    ends = horizon_steps(steps, horizons)
    end = next(e for e in ends if e > step)
    before = max((e for e in ends if e <= step), default=0)
    rising = max(1, round(ends[0] * warmup))
    falling = min(round(end * decay), end - before)
    up = (step + 1) / rising
    down = (end - step) / (falling + 1) if falling else 1.0
    return min(1.0, up, down)


@dataclass
class Schedule:
    """The learning rate of every step.

    Attributes:
        steps: in all.
        learning_rate: on the plateau.
        warmup, decay, horizons: as in `warmup_stable_decay`.
    """

    steps: int
    learning_rate: float
    warmup: float = 0.05
    decay: float = 0.2
    horizons: tuple[float, ...] = ()

    def rate(self, step: int) -> float:
        """Return the learning rate of a step counted from 0."""
        return self.learning_rate * warmup_stable_decay(step, self.steps, self.warmup, self.decay, self.horizons)
