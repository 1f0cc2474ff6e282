"""The learning-rate schedule: warm-up, plateau, decay, once or for each of several horizons; or a fall all along."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def horizon_steps(steps: int, horizons: Sequence[float] = ()) -> list[int]:
    """The steps after which the rate has fallen: a step for each share of `steps`, and the last one."""
    return [*(round(share * steps) for share in horizons), steps]


def fallen(left: float, shape: str, final: float) -> float:
    """Return the factor on the rate where `left` of a fall, from 1 to 0, is left.

    Source of "sqrt": Hägele et al., arXiv 2405.18392, section 3 (1-sqrt).
    """
    if shape == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    elif shape == "sqrt":
        left = 1 - math.sqrt(1 - left)
    return final + (1 - final) * left


def warmup_stable_decay(
    step: int,
    steps: int,
    warmup: float,
    decay: float,
    horizons: Sequence[float] = (),
    shape: str = "linear",
    final: float = 0.0,
) -> float:
    """The factor on the learning rate at a step counted from 0: up from 0, flat at 1, down to `final`.

    With `horizons`, shares of `steps`, it falls at each of them and is taken up at 1 again in the next step, from
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
    left = (end - step) / (falling + 1) if falling else 1.0
    return min(1.0, up, fallen(min(1.0, left), shape, final))


def warmup_fall(step: int, steps: int, warmup: float, shape: str, final: float = 0.0) -> float:
    """The factor on the learning rate at a step counted from 0: up from 0 to 1, then down to `final` all along."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return fallen((steps - step) / (steps - rising + 1), shape, final)


@dataclass
class Schedule:
    """The learning rate of every step.

    Attributes:
        steps: in all.
        learning_rate: after warm-up.
        warmup, decay, horizons: as in `warmup_stable_decay`.
        kind: "wsd", or "cosine" or "linear" as in `warmup_fall`.
        shape: of the decay of "wsd".
        final: share of the rate that it falls to.
    """

    steps: int
    learning_rate: float
    warmup: float = 0.05
    decay: float = 0.2
    horizons: tuple[float, ...] = ()
    kind: str = "wsd"
    shape: str = "linear"
    final: float = 0.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step counted from 0."""
        if self.kind != "wsd":
            return self.learning_rate * warmup_fall(step, self.steps, self.warmup, self.kind, self.final)
        own = (self.steps, self.warmup, self.decay, self.horizons, self.shape, self.final)
        return self.learning_rate * warmup_stable_decay(step, *own)
