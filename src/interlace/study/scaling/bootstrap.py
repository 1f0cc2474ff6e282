"""Refit laws to resampled points, to see what the same study would have found with other luck.

Points of one run share its initial weights, its data order and its plateau. Therefore a run is resampled, not a point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from interlace.base.errors import ConfigError, DataError
from interlace.study.scaling.fit import Fit, Law, laws_of
from interlace.study.scaling.points import Points

Kind = Literal["runs", "seeds", "points"]
KINDS: tuple[Kind, ...] = ("runs", "seeds", "points")
FEWEST_RUNS = 3
SHARE = 0.95
Tell = Callable[[int, int], None]
CHUNK = 250


@dataclass(frozen=True)
class Resampled:
    """The laws of every resample.

    Attributes:
        kind: what was resampled.
        laws: [resamples] by architecture; the same place is the same resample.
    """

    kind: Kind
    laws: dict[str, list[Law]]

    def values(self, of: Callable[[dict[str, Law]], float]) -> np.ndarray:
        """Return a quantity of every resample."""
        count = len(next(iter(self.laws.values())))
        return np.array([of({a: x[i] for a, x in self.laws.items()}) for i in range(count)])

    def interval(self, of: Callable[[dict[str, Law]], float], share: float = SHARE) -> tuple[float, float]:
        """Return the middle `share` of a quantity; infinite values count as larger than any."""
        return middle(self.values(of), share)

    def interval_of(self, arch: str, name: str) -> tuple[float, float]:
        """Return the interval of an architecture's coefficient, or of another attribute of its law, such as `split`."""
        return self.interval(lambda laws: getattr(laws[arch], name))


def middle(values: np.ndarray, share: float = SHARE) -> tuple[float, float]:
    """Return the (low, high) percentiles around the middle `share`."""
    ordered = np.sort(values)
    places = (0.5 * (1 - share) * (len(ordered) - 1), 0.5 * (1 + share) * (len(ordered) - 1))
    return float(ordered[int(np.floor(places[0]))]), float(ordered[int(np.ceil(places[1]))])


def bootstrap(
    fit: Fit,
    kind: Kind,
    times: int = 1000,
    seed: int = 0,
    tell: Tell = lambda *_: None,
) -> Resampled:
    """Refit `times` resamples, each from the fit itself.

    "runs": runs of each architecture, with all their points, drawn with replacement; benchmarks/scaling_coverage.py
    counts how often such intervals hold the truth. "seeds": seeds drawn with replacement, the same ones for every
    architecture and size. "points": single points, as if they were independent: what most papers do.

    Raises:
        DataError: fewer than three runs of an architecture, or fewer than two seeds.
        ConfigError: an unknown kind, or too few resamples.
    """
    if kind not in KINDS:
        raise ConfigError(f"bootstrap: must be one of {', '.join(KINDS)}, got {kind!r}")
    if seed < 0:
        raise ConfigError(f"seed: must not be negative, got {seed}")
    if times < 20:
        raise ConfigError(f"bootstrap: needs at least 20 resamples for an interval, got {times}")
    check_enough(fit.points, kind)
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    weights = np.stack([draw(fit.points, kind, rng) for _ in range(times)])
    return Resampled(kind, refit(fit, np.broadcast_to(np.log(fit.points.loss), weights.shape), weights, tell))


def refit(fit: Fit, goals: np.ndarray, weights: np.ndarray, tell: Tell = lambda *_: None) -> dict[str, list[Law]]:
    """Return laws by architecture for rows of log losses and of weights, both [many, points], started from the fit."""
    laws: dict[str, list[Law]] = {}
    total = len(fit.solved) * len(goals)
    done = 0
    for problem, theta in fit.solved:
        own = np.isin(fit.points.arch, problem.structure.archs)
        rows = []
        for start in range(0, len(goals), CHUNK):
            some = slice(start, start + CHUNK)
            goal, weight = goals[some][:, own], weights[some][:, own]
            found, _ = problem.polish(np.repeat(theta[None], len(goal), 0), goal, weight, fit.delta)
            rows.append(found)
            done += len(goal)
            tell(done, total)
        laws |= laws_of(problem, np.concatenate(rows))
    return {a: laws[a] for a in fit.structure.archs}


def check_enough(points: Points, kind: Kind) -> None:
    """Raise DataError if there is too little to resample."""
    for arch in points.archs:
        own = points.of(arch)
        runs, seeds = len(set(own.run.tolist())), len(set(own.seed.tolist()))
        if kind == "runs" and runs < FEWEST_RUNS:
            raise DataError(
                f"bootstrap: {arch} has {runs} run{'s' if runs > 1 else ''}, and an interval over runs needs at least "
                f"{FEWEST_RUNS}; train more seeds, or ask for no interval (--bootstrap 0)"
            )
        if kind == "seeds" and seeds < 2:
            raise DataError(f"bootstrap: {arch} has one seed, and an interval over seeds needs at least 2")


def draw(points: Points, kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """Return how often each point is in a resample, [points]."""
    if kind == "points":
        counts = np.zeros(len(points))
        for arch in points.archs:
            own = np.flatnonzero(points.arch == arch)
            counts[own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)))
        return counts
    if kind == "seeds":
        names = sorted(set(points.seed.tolist()))
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))
        return np.array([times[names.index(s)] for s in points.seed], dtype=np.float64)
    counts = np.zeros(len(points))
    for arch in points.archs:
        names = sorted(set(points.run[points.arch == arch].tolist()))
        for name, often in zip(names, rng.multinomial(len(names), np.full(len(names), 1 / len(names))), strict=True):
            counts[(points.arch == arch) & (points.run == name)] = often
    return counts
