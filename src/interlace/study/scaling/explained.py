"""Test whether a fit explains anything: how much is lost without the term of N, or of D."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interlace.study.scaling.bootstrap import Resampled
from interlace.study.scaling.fit import Fit, scaled_likelihood
from interlace.study.scaling.solve import HIGHEST, LOWEST, SMALLEST

TERMS = {"N": ("A", "alpha"), "D": ("B", "beta")}
LEVEL = 5.99  # of chi squared with two degrees of freedom, 95 %: a term has a factor and an exponent


def deviance(fit: Fit, arch: str, letters: Sequence[str]) -> float:
    """Return the deviance of leaving terms out of an architecture's law.

    This is twice the fall of the log-likelihood when these terms are left out and the rest is fitted anew, times runs /
    points: as in a profile, a run counts as one observation.
    """
    problem, best = next((p, t) for p, t in fit.solved if arch in p.structure.archs)
    structure, theta, free = problem.structure, best[None].copy(), problem.structure.free
    floor = structure.place("E", arch)
    for letter in letters:
        factor, exponent = TERMS[letter]
        at = structure.place(factor, arch)
        theta[:, floor] = np.logaddexp(theta[:, floor], theta[:, at])  # the floor takes over the term's mean
        theta[:, at] = SMALLEST
        free[at] = False
        if exponent not in structure.shared:
            free[structure.place(exponent, arch)] = False
    goal, weight = problem.log_loss[None], np.ones((1, len(problem.x)))
    if len(letters) == 1:  # a loss that rises with the other one is no noise of this one
        other = problem.y if letters[0] == "N" else problem.x
        residual = problem.log_loss - problem.shares(best[None])[0][0]
        degree = min(2, len(np.unique(other.round(6))) - 1)
        goal = goal - np.polynomial.Polynomial.fit(other, residual, degree)(other)
    _, before = problem.polish(best[None], goal, weight, fit.delta)
    for wide in (30, 5, 1):
        theta, height = problem.descend(theta, goal, weight, wide * fit.delta, free)
    own = fit.points.where(np.isin(fit.points.arch, structure.archs))
    count = len(own)
    fall = scaled_likelihood(float(before[0]), count, fit.delta) - scaled_likelihood(float(height[0]), count, fit.delta)
    return 2 * max(0.0, fall) * len(set(own.run.tolist())) / count


def idle_terms(fit: Fit) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return (by architecture, which of N and D explain nothing of its loss; notes about it).

    If each could be left out, but not both together, N and D rise together: then neither is called idle.
    """
    idle: dict[str, tuple[str, ...]] = {}
    notes = []
    for arch in fit.structure.archs:
        found = tuple(t for t in TERMS if deviance(fit, arch, (t,)) < LEVEL)
        if len(found) == 2 and deviance(fit, arch, found) >= LEVEL:
            notes.append(
                f"{arch}: N and D rise together in these points, so that their shares in the loss cannot be told "
                "apart: train sizes at several token counts each."
            )
            found = ()
        idle[arch] = found
        if len(found) == 2:
            notes.append(
                f"{arch}: nothing is explained: neither N nor D lowers the loss by more than its noise, so that no "
                "exponent is given."
            )
        elif found:
            factor, exponent = TERMS[found[0]]
            notes.append(
                f"{arch}: {found[0]} explains nothing: the loss does not fall with it by more than its noise, so that "
                f"{factor} and {exponent} are not given."
            )
    return idle, notes


def bound_notes(resampled: Sequence[Resampled], idle: dict[str, tuple[str, ...]]) -> list[str]:
    """Return notes on exponents whose interval ends where the search ends, not where the data end it."""
    notes = []
    for arch, letters in idle.items():
        for letter, (_, exponent) in TERMS.items():
            ends = [r.interval_of(arch, exponent) for r in resampled] if letter not in letters else []
            low, high = any(e[0] <= 1.001 * LOWEST for e in ends), any(e[1] >= 0.999 * HIGHEST for e in ends)
            if low or high:
                where = " and ".join(f"{v:g}" for v, reached in ((LOWEST, low), (HIGHEST, high)) if reached)
                notes.append(
                    f"{arch}: the interval of {exponent} ends at {where}, where the search ends: the data bound it no "
                    "further."
                )
    return notes


def unknown(idle: dict[str, tuple[str, ...]], arch: str) -> set[str]:
    """Return the names of an architecture's coefficients that the data do not determine."""
    return {name for letter in idle.get(arch, ()) for name in TERMS[letter]} | ({"split"} if idle.get(arch) else set())
