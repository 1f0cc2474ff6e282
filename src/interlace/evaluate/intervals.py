"""Intervals of a figure over items, and of the difference between two models on the same items.

Scores that are 0 or 1 get Wilson's score interval, and their paired differences Tango's: near 0 and 1 the bootstrap of
so few different values covers much less than it says. Scores between 0 and 1 get Wilson's for as many items as have
their variance, and their differences Agresti and Min's. Bits per byte get a bootstrap by item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)  # standard errors on either side
POWER = 0.8  # at which the number of items needed is counted
FEW = 10  # items, below which an interval is Student's
BLOCK = 1 << 22  # numbers that are drawn at a time


@dataclass(frozen=True)
class Figure:
    """A number with its interval.

    Attributes:
        value: the estimate.
        low, high: of the interval, at 95 %.
        items: over how many items.
    """

    value: float
    low: float
    high: float
    items: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not finite is None."""
        found = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


@dataclass(frozen=True)
class Difference(Figure):
    """How much higher the second model's figure is than the first's, on the same items.

    Attributes:
        wins: items on which the second is better.
        losses: items on which it is worse.
        items_needed: so that a difference of this size would be told from 0 in 80 % of such evaluations; 0 for none.
    """

    wins: int = 0
    losses: int = 0
    items_needed: int = 0


def mean(scores: Sequence[float]) -> Figure:
    """Return the mean of scores with its interval."""
    x = np.asarray(scores, dtype=np.float64)
    if not len(x):
        return Figure(math.nan, math.nan, math.nan, 0)
    share = float(x.mean())
    if np.isin(x, (0, 1)).all() or len(x) == 1 or not x.var():
        return Figure(share, *wilson(share * len(x), len(x)), len(x))
    alike = share * (1 - share) / float(x.var(ddof=1)) * len(x)  # items of 0 and 1 with as large an error
    return Figure(share, *wilson(share * alike, alike), len(x))


def wilson(right: float, items: float) -> tuple[float, float]:
    """Return the score interval of a share. Source: Wilson, "Probable inference", 1927."""
    share, extra = right / items, Z * Z / items
    centre = (share + extra / 2) / (1 + extra)
    half = Z / (1 + extra) * math.sqrt(share * (1 - share) / items + extra / (4 * items))
    low = 0.0 if right == 0 else max(0.0, centre - half)
    return low, 1.0 if right == items else min(1.0, centre + half)


Sums = tuple[np.ndarray, np.ndarray]
"""By item, what is above and what is below the line of a ratio of sums, such as bits and bytes."""


def ratio(above: np.ndarray, below: np.ndarray) -> Figure:
    """Return sum(above) / sum(below) with its interval."""
    if not len(above) or not below.sum():
        return Figure(math.nan, math.nan, math.nan, len(above))
    return Figure(*_studentised([(above, below)]), len(above))


def _studentised(parts: Sequence[Sums]) -> tuple[float, float, float]:
    """Return (value, low, high) of a ratio of sums over items, or of the second ratio minus the first.

    The interval is the studentised bootstrap by item, with errors by linearisation. Source: Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, section 12.5.
    """
    n = len(parts[0][0])
    whole = [(above[None], below[None]) for above, below in parts]
    value, error = (float(x[0]) for x in _values_and_errors(whole))
    if n < 2:
        return value, -math.inf, math.inf
    if error == 0:
        return value, value, value
    if n < FEW:  # resamples would hold the same few values
        from scipy.special import stdtrit  # slow to import, as all of scipy

        half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
        return value, value - half, value + half
    draw, found = np.random.default_rng(0), list[float]()
    while len(found) < RESAMPLES:
        places = draw.integers(n, size=(min(RESAMPLES - len(found), max(1, BLOCK // n)), n))
        values, errors = _values_and_errors([(above[places], below[places]) for above, below in parts])
        found += ((values - value) / np.where(errors > 0, errors, np.inf)).tolist()
    low, high = np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return value, float(value - high * error), float(value - low * error)


def _values_and_errors(parts: Sequence[Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Return the value and the standard error of each resample; above and below are [resamples, items]."""
    value, spread = np.zeros(1), np.zeros(1)
    for sign, (above, below) in zip((-1, 1)[-len(parts) :], parts, strict=True):
        own = above.sum(1) / below.sum(1)
        value = value + sign * own
        spread = spread + sign * (above - own[:, None] * below) / below.mean(1, keepdims=True)
    n = parts[0][0].shape[1]
    return value, np.sqrt(np.square(spread).sum(1) / (n * max(1, n - 1)))


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare the scores of two models on the same items."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (first, second))
    d = b - a
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    if not len(d):
        return Difference(math.nan, math.nan, math.nan, 0)
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        low, high = tango(wins, losses, len(d))
    else:
        low, high = agresti_min(d)
    return Difference(float(d.mean()), low, high, len(d), wins, losses, needed(d))


def difference_of_ratios(first: Sums, second: Sums) -> Difference:
    """Compare two ratios of sums over the same items, such as bits per byte; the lower one wins."""
    (a, n), (b, m) = first, second
    if not len(a) or not n.sum() or not m.sum():
        return Difference(math.nan, math.nan, math.nan, len(a))
    found = _studentised([first, second])
    each = b / np.maximum(m, 1) - a / np.maximum(n, 1)
    influence = (b - b.sum() / m.sum() * m) / m.mean() - (a - a.sum() / n.sum() * n) / n.mean()
    wins, losses = int((each < 0).sum()), int((each > 0).sum())
    return Difference(*found, len(a), wins, losses, needed(influence + found[0]))


def agresti_min(differences: np.ndarray) -> tuple[float, float]:
    """Return an interval of the mean of differences between -1 and 1, which never has no width.

    Two pairs are added: half of one won, half of one lost, one alike. Source: Agresti and Min, "Simple improved
    confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005.
    """
    n = len(differences) + 2
    centre = float(differences.sum()) / n
    variance = (float(np.square(differences).sum()) + 1) / n - centre**2
    half = Z * math.sqrt(variance / n)
    return max(-1.0, float(centre - half)), min(1.0, float(centre + half))


def tango(wins: int, losses: int, items: int) -> tuple[float, float]:
    """Return the score interval of the difference of two paired shares.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17, 1998.
    """
    return -_upper(losses, wins, items), _upper(wins, losses, items)


def _upper(wins: int, losses: int, items: int) -> float:
    """Return the upper bound of Tango's interval."""
    from scipy.optimize import brentq

    d = (wins - losses) / items

    def above(delta: float) -> float:
        b = -wins - losses + (2 * items - wins + losses) * delta
        c = -losses * delta * (1 - delta)
        q = (math.sqrt(max(0.0, b * b - 8 * items * c)) - b) / (4 * items)  # share of losses, if delta is right
        variance = items * (2 * q + delta * (1 - delta))
        return wins - losses - items * delta + Z * math.sqrt(max(0.0, variance))

    if wins == items:
        return 1.0
    return float(brentq(above, d + 1e-6, 1.0, xtol=1e-9))  # at d itself all is 0 where the models never differ


def needed(differences: np.ndarray) -> int:
    """Return how many items would tell a difference like this from 0, with a power of 80 %; 0 if there is none."""
    size = float(differences.mean())
    if not size or len(differences) < 2:
        return 0
    z = Z + NormalDist().inv_cdf(POWER)
    return math.ceil((z / size) ** 2 * float(differences.var(ddof=1))) or len(differences)
