"""Another way to a law: find the best size at equal compute. Hoffmann et al., arXiv 2203.15556, section 3.2."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from interlace.study.scaling.points import Points

BUDGETS, FEWEST, FINE = 6, 3, 200  # valleys; sizes that make one; places that are looked at
AROUND = 2  # sizes on each side of the lowest that the parabola is put through


@dataclass(frozen=True)
class Valley:
    """Losses of the sizes at one compute budget.

    Attributes:
        flops: training FLOPs.
        n, loss: by size, the loss read between the token counts that were measured.
        best: the size at the bottom of the parabola in log N, or None where it lies outside the sizes, or upside down.
    """

    flops: float
    n: list[float]
    loss: list[float]
    best: float | None


@dataclass(frozen=True)
class IsoFlop:
    """The valleys of one architecture.

    Attributes:
        split: exponent of the best size in the compute, by a line through the bottoms; None for fewer than two.
    """

    valleys: list[Valley]
    split: float | None


def isoflop(points: Points) -> IsoFlop:
    """Return the valleys of one architecture, at budgets that lie within the measurements of at least three sizes."""
    curves = []
    for size in points.sizes:
        own = points.where(np.abs(points.n / size - 1) < 0.01)
        groups: dict[int, list[int]] = {}
        for i, c in enumerate(own.flops):
            groups.setdefault(round(100 * math.log(c)), []).append(i)
        flops = np.array([own.flops[g].mean() for g in groups.values()])
        loss = np.array([own.loss[g].mean() for g in groups.values()])
        order = np.argsort(flops)
        curves.append((size, np.log(flops[order]), np.log(loss[order])))
    if len(curves) < FEWEST:
        return IsoFlop([], None)
    ends = [c for _, flops_, _ in curves for c in (flops_[0], flops_[-1])]
    around = {b: _read(curves, b) for b in np.linspace(min(ends), max(ends), FINE)}
    able = [b for b, at in around.items() if len(at) >= FEWEST]
    budgets = [able[i] for i in sorted({round(x) for x in np.linspace(0, len(able) - 1, BUDGETS)})] if able else []
    valleys = [_valley(math.exp(b), around[b]) for b in budgets]
    found = [(math.log(v.flops), math.log(v.best)) for v in valleys if v.best is not None]
    split = float(np.polyfit([x for x, _ in found], [y for _, y in found], 1)[0]) if len(found) > 1 else None
    return IsoFlop(valleys, split)


def _read(curves: list[tuple[float, np.ndarray, np.ndarray]], budget: float) -> list[tuple[float, float]]:
    """Return (size, loss) of sizes that have measurements on both sides of a budget.

    curves: (size, log compute, log loss); budget: log compute.
    """
    near = [(n, c, y) for n, c, y in curves if c[0] - 1e-9 <= budget <= c[-1] + 1e-9]
    return [(n, float(np.exp(np.interp(budget, c, y)))) for n, c, y in near]


def _valley(flops: float, at: list[tuple[float, float]]) -> Valley:
    x, y = np.log([n for n, _ in at]), np.array([loss for _, loss in at])
    first = min(max(0, int(y.argmin()) - AROUND), max(0, len(y) - 2 * AROUND - 1))
    near = slice(first, first + 2 * AROUND + 1)  # a parabola is true close to the bottom only
    x, y = x[near], y[near]
    bend, slope, _ = np.polyfit(x - x.mean(), y, 2)
    bottom = x.mean() - slope / (2 * bend) if bend > 0 else math.inf
    inside = x.min() <= bottom <= x.max()
    return Valley(flops, [n for n, _ in at], [loss for _, loss in at], float(np.exp(bottom)) if inside else None)
