"""The learning rate of an architecture: the best one tried on the smallest sizes, carried to other sizes by a rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from interlace.base.errors import Failure
from interlace.study.ladder.gather import RunOutcome
from interlace.study.ladder.plan import Ladder

Outcomes = Mapping[tuple[str, float], RunOutcome]
"""By (size, rate)."""


def best_rate(ladder: Ladder, arch: str, found: Outcomes) -> dict[str, Any]:
    """Return {"best": the rate at the smallest size, "tried": losses on it by rate, "note": what to doubt}.

    The best rate has the lowest held-out loss at the last horizon. If several sizes were tried, the rule carries each
    one's best rate to the smallest size, and their geometric mean is taken.

    Raises:
        Failure: every rate diverged on a size.
    """
    first = ladder.rungs[arch, ladder.sizes[0]].target
    logs, notes = [], []
    for size in ladder.tuned():
        losses = {rate: _loss(found[size, rate]) for rate in ladder.rate.tried}
        best = min(losses, key=lambda r: losses[r])
        if math.isinf(losses[best]):
            raise Failure(
                f"rate.tried: every rate diverged for {arch} at {size}; add lower ones, and name another --out"
            )
        if len(losses) > 1 and best in (min(losses), max(losses)):
            notes.append(f"best at {size} is at the edge of what was tried")
        logs.append(math.log(best) + ladder.rate.exponent * math.log(ladder.rungs[arch, size].target / first))
    tried = {rate: _loss(found[ladder.sizes[0], rate]) for rate in ladder.rate.tried}
    said = {f"{rate:g}": "diverged" if math.isinf(loss) else f"{loss:.4f}" for rate, loss in tried.items()}
    return {"best": math.exp(sum(logs) / len(logs)), "tried": said, "note": "; ".join(notes)}


def rate_at(ladder: Ladder, arch: str, size: str, best: float) -> float:
    """Return the learning rate of a size; for a tried size exactly the tried rate, if the rule gives it."""
    grown = ladder.rungs[arch, size].target / ladder.rungs[arch, ladder.sizes[0]].target
    rate = best * grown**-ladder.rate.exponent
    return next((r for r in ladder.rate.tried if math.isclose(r, rate, rel_tol=1e-9)), rate)


def _loss(outcome: RunOutcome) -> float:
    return math.inf if outcome.diverged is not None else outcome.points[-1]["held_out_loss"]
