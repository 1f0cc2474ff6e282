"""Fit a scaling law; tell whether its optimum is the only one, and how likely other values of a coefficient are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import erf

from interlace.base.errors import ConfigError
from interlace.study.scaling.points import Points, check_identified
from interlace.study.scaling.solve import DELTA, EXPONENTS, LINEAR, NAMES, Problem, Structure, huber

SAME = 1e-4  # optima whose objectives differ by less, relative, and whose exponents by less than 1 %, are one
PARENT = {"A": "alpha", "B": "beta"}
LARGEST_LOG = 700.0  # beyond it a count of tokens is no float64


@dataclass(frozen=True)
class Law:
    """A scaling law: L = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, n: float | np.ndarray, d: float | np.ndarray) -> float | np.ndarray:
        """Return the loss at n parameters and d tokens."""
        return self.E + self.A / n**self.alpha + self.B / d**self.beta

    def tokens(self, n: float, loss: float) -> float:
        """Return how many tokens n parameters need for a loss; infinite if no number is enough."""
        rest = loss - self.E - self.A / n**self.alpha
        if rest <= 0 or (power := math.log(self.B / rest) / self.beta) > LARGEST_LOG:
            return math.inf
        return math.exp(power)

    @property
    def split(self) -> float:
        """The exponent of the best N in the compute, beta / (alpha + beta), where compute is 6 N D."""
        return self.beta / (self.alpha + self.beta)

    def best_parameters(self, flops: float) -> float:
        """Return the N of the least loss at 6 N D = flops. Hoffmann et al., arXiv 2203.15556, equation 4."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return ratio * (flops / 6) ** self.split


@dataclass(frozen=True)
class Fit:
    """Laws of some architectures, fitted together.

    Attributes:
        points: what was fitted.
        structure: what the architectures share.
        delta: of Huber's loss.
        solved: for each part of the structure, its problem and its best vector.
        objective: Huber's loss, summed.
        starts: how many places of the grid were polished.
        optima: how many different optima they ended in.
        second: how much higher the second best is, relative; infinite if there is none.
    """

    points: Points
    structure: Structure
    delta: float
    solved: tuple[tuple[Problem, np.ndarray], ...]
    objective: float
    starts: int
    optima: int
    second: float

    @property
    def laws(self) -> dict[str, Law]:
        """The laws by architecture."""
        return {a: laws_of(p, theta)[a][0] for p, theta in self.solved for a in p.structure.archs}

    @property
    def residuals(self) -> np.ndarray:
        """Log of the measured loss over the predicted loss, [points]."""
        out = np.empty(len(self.points))
        for problem, theta in self.solved:
            own = np.isin(self.points.arch, problem.structure.archs)
            out[own] = problem.log_loss - problem.shares(theta[None])[0][0]
        return out

    @property
    def coefficients(self) -> int:
        """How many coefficients were fitted."""
        return sum(int(p.structure.free.sum()) for p, _ in self.solved)


def laws_of(problem: Problem, theta: np.ndarray) -> dict[str, list[Law]]:
    """Return each architecture's law for every row of theta."""
    rows = problem.natural(theta)
    structure = problem.structure
    places = {a: [structure.place(n, a) for n in NAMES] for a in structure.archs}
    return {a: [Law(*map(float, row[at])) for row in rows] for a, at in places.items()}


def fit(
    points: Points,
    shared: Iterable[str] = (),
    fixed: dict[str, float] | None = None,
    delta: float = DELTA,
) -> Fit:
    """Fit by Huber's loss on log residuals, from many starts.

    Args:
        shared: coefficients that the architectures have in common; A only with alpha, B only with beta.
        fixed: exponents that are known.
        delta: of Huber's loss.

    Raises:
        DataError: the points cannot tell the coefficients apart.
        ConfigError: a name or a value is wrong.
    """
    structure = plan(points, shared, fixed or {})
    check_identified(points, dict(structure.fixed))
    if not 0 < delta < math.inf:
        raise ConfigError(f"delta: must be positive, got {delta}")
    solved, objective, starts, optima, second = [], 0.0, 0, 1, math.inf
    for part in structure.parts:
        problem = problem_of(points, part)
        found, value = problem.search(problem.log_loss, np.ones(len(problem.x)), delta)
        distinct = different(found, value, part)
        solved.append((problem, found[0]))
        objective += float(value[0])
        starts += len(found)
        optima = max(optima, len(distinct))
        if len(distinct) > 1:
            second = min(second, float(distinct[1] / value[0] - 1))
    return Fit(points, structure, delta, tuple(solved), objective, starts, optima, second)


def plan(points: Points, shared: Iterable[str], fixed: dict[str, float]) -> Structure:
    """Return the structure that was asked for."""
    names = frozenset(shared)
    if names - set(NAMES):
        raise ConfigError(f"share: {sorted(names - set(NAMES))[0]!r} is not a coefficient; name {', '.join(NAMES)}")
    for name, parent in PARENT.items():
        if name in names and parent not in names and parent not in fixed:
            raise ConfigError(f"share: {name} can only be shared together with {parent}, which sets its unit")
    for name, value in fixed.items():
        if name not in EXPONENTS or not 0 < value < 4:
            raise ConfigError(f"{name}: must be an exponent between 0 and 4, got {value}")
    if fixed and names:
        names |= set(fixed)
    return Structure(points.archs, names, tuple(sorted(fixed.items())))


def problem_of(points: Points, structure: Structure) -> Problem:
    """Return the problem of the points of a structure's architectures."""
    own = points.where(np.isin(points.arch, structure.archs))
    return Problem(structure, own.n, own.d, own.loss, own.arch)


def different(found: np.ndarray, value: np.ndarray, structure: Structure) -> list[float]:
    """Return the objectives of the distinct optima, best first."""
    exponents = [i for i, (n, _) in enumerate(structure.places) if n in EXPONENTS]
    kept: list[tuple[np.ndarray, float]] = []
    for theta, height in zip(found[:, exponents], value, strict=True):
        if not any(np.allclose(theta, t, rtol=0.01) and height < h * (1 + SAME) + 1e-15 for t, h in kept):
            kept.append((theta, float(height)))
    return [h for _, h in kept]


def scaled_likelihood(objective: float, points: int, delta: float) -> float:
    """Return the log-likelihood of residuals with density exp(-huber(r) / s) / Z(s), at the s that makes it largest.

    It runs from Gauss' to Laplace's as delta falls; Z(s) = sqrt(2 pi s) erf(delta / sqrt(2 s)) + 2 s / delta
    exp(-delta^2 / 2 s).
    """

    def cost(log_s: float) -> float:
        s = math.exp(log_s)
        tail = 2 * s / delta * math.exp(-(delta**2) / (2 * s))
        z = math.sqrt(2 * math.pi * s) * float(erf(delta / math.sqrt(2 * s))) + tail
        return objective / s + points * math.log(z)

    return -float(minimize_scalar(cost, bounds=(-40.0, 5.0), method="bounded").fun)


def profile(fit_: Fit, arch: str, name: str, values: np.ndarray) -> np.ndarray:
    """Return the profile deviance [values] at values of one coefficient (natural units), with all others fitted anew.

    Twice the fall of the log-likelihood, times runs / points: the points of a run share its luck, so a run counts as
    one observation. 3.84 bounds 95 %.
    """
    problem, best = next((p, t) for p, t in fit_.solved if arch in p.structure.archs)
    if name in PARENT:  # A and B are held in the law's own units
        problem, best = problem.uncentred(best, name)
    structure = problem.structure
    at = structure.place(name, arch)
    free = structure.free
    free[at] = False
    count = len(problem.x)
    goal, weight = problem.log_loss[None], np.ones((1, count))
    height = np.empty(len(values))
    middle = int(np.argmin(np.abs(values - problem.natural(best)[0, at])))
    for direction in (range(middle, len(values)), range(middle - 1, -1, -1)):
        theta = best[None].copy()
        for i in direction:  # each from its neighbour's: a ridge is followed, not jumped on
            theta[:, at] = values[i] if name in EXPONENTS else math.log(max(float(values[i]), 1e-12))
            theta, height[i : i + 1] = problem.descend(theta, goal, weight, fit_.delta, free)
    own = fit_.points.where(np.isin(fit_.points.arch, structure.archs))
    share = len(set(own.run.tolist())) / count
    top = scaled_likelihood(float(problem.objective(best[None], goal, weight, fit_.delta)[0]), count, fit_.delta)
    fall = [2 * (top - scaled_likelihood(h, count, fit_.delta)) for h in height]
    return share * np.maximum(0.0, np.array(fall))


__all__ = ["LINEAR", "NAMES", "Fit", "Law", "fit", "huber", "laws_of", "plan", "problem_of", "profile"]
