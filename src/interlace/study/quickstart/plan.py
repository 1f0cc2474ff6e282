"""The budget of a comparison and the plan made for it, which is stored for a race that is interrupted."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interlace.base.errors import RunError

NAMES = ("transformer", "hybrid")
RATES = (3e-3, 6e-3, 1.2e-2)
SCORED_TOKENS = (2048, 16_384)  # of the held-out text, for a point of the curve: at least, at most
FINAL_SCORES = 4  # times as many for the final score
REST_SECONDS = 5.0  # for samples, checkpoints and the report
SAFETY = 1.3  # by how much the end of a race may take longer than measured
EVALUATIONS = 16
PLAN = "plan.json"


class Clock:
    """The time of a comparison's budget; time of earlier starts counts, time between two starts does not."""

    def __init__(self, budget_seconds: float, spent_seconds: float = 0.0):
        """spent_seconds: the time that earlier starts spent."""
        self.budget = budget_seconds
        self._start = time.perf_counter() - spent_seconds

    @property
    def spent(self) -> float:
        """Seconds of work so far."""
        return time.perf_counter() - self._start

    @property
    def left(self) -> float:
        """Seconds until the budget is used up."""
        return self.budget - self.spent


@dataclass
class Plan:
    """How the budget is spent; it is stored in plan.json, and an interrupted race resumes with it.

    Attributes:
        steps: steps of the race; they change with the time that steps take, unless the plan is `fixed`.
        sweep_steps: steps of each run that tries a learning rate; 0 if there is no time for them.
        seconds_per_step, seconds_per_score: by model; the latter for a token that is scored.
        evaluations: points of each curve.
        quick_tokens, full_tokens: held-out tokens for a point and for the final score.
        spent_seconds: seconds of the budget that were spent when the plan was last written.
    """

    steps: int
    sweep_steps: int
    precision: str
    batch_tokens: int
    seconds_per_step: dict[str, float]
    seconds_per_score: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    evaluations: int = EVALUATIONS
    quick_tokens: int = SCORED_TOKENS[1]
    full_tokens: int = FINAL_SCORES * SCORED_TOKENS[1]
    spent_seconds: float = 0.0
    fixed: bool = True

    @property
    def tail_seconds(self) -> float:
        """Seconds that follow the last step of a race."""
        return SAFETY * (self.full_tokens + self.quick_tokens) * sum(self.seconds_per_score.values()) + REST_SECONDS

    @property
    def point_seconds(self) -> float:
        """Seconds that a point of both curves takes."""
        return self.quick_tokens * sum(self.seconds_per_score.values())


def read_plan(file: Path, batch_tokens: int) -> Plan | None:
    """Return the plan of a folder, None if there is none.

    Raises:
        RunError: it is damaged.
    """
    if not file.is_file():
        return None
    try:
        plan = Plan(**json.loads(file.read_text(encoding="utf-8")))
        good = plan.steps >= 1 and plan.sweep_steps >= 0 and plan.precision in ("float32", "bfloat16")
        good = good and plan.batch_tokens == batch_tokens and set(plan.seconds_per_step) == set(NAMES)
        good = good and all(x >= 0 for x in (*plan.seconds_per_step.values(), *plan.seconds_per_score.values()))
        good = good and plan.evaluations >= 1 and plan.quick_tokens >= 1 and plan.full_tokens >= 1
    except (ValueError, TypeError, AttributeError, RecursionError, OSError):
        good = False
    if not good:
        raise RunError(f"{file}: is damaged, or of other text; remove it and the plan is made again")
    return plan


def read_sweep(file: Path) -> list[dict[str, Any]]:
    """Return the scores of the learning rates that were tried.

    Raises:
        RunError: it is damaged.
    """
    if not file.is_file():
        return []
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        good = all(r["model"] in NAMES and r["learning_rate"] in RATES for r in rows)
        good = good and all(math.isfinite(r["held_out_bits_per_byte"]) for r in rows)
    except (ValueError, TypeError, KeyError, RecursionError, OSError):
        good = False
    if not good:
        raise RunError(f"{file}: is damaged; remove it and the learning rates are tried again")
    return rows
