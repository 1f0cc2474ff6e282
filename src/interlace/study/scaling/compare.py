"""Compare two architectures: what one saves, whether the data show it, and whether their laws differ at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from interlace.base.errors import DataError
from interlace.study.scaling.bootstrap import Resampled, Tell
from interlace.study.scaling.fit import Fit, Law, fit, scaled_likelihood
from interlace.study.scaling.points import Points, check_identified

Laws = dict[str, Law]
BELIEVED = ("runs", "seeds")  # kinds of interval that a claim may rest on
NESTED: dict[str, tuple[str, ...]] = {  # each with one more coefficient in common
    "nothing": (),
    "alpha, beta": ("alpha", "beta"),
    "alpha, beta, E": ("alpha", "beta", "E"),
    "all but B": ("alpha", "beta", "E", "A"),
    "everything": ("alpha", "beta", "E", "A", "B"),
}


def token_saving(laws: Laws, base: str, other: str, n: float, d: float) -> float:
    """Return the tokens that `base` needs for its loss at (n, d), over those that `other` needs for it at size n.

    2 means half the tokens; 0 that `other` never gets there at this size.
    """
    return d / laws[other].tokens(n, float(laws[base].loss(n, d)))


def flops_per_token(points: Points, arch: str) -> Callable[[float], float]:
    """Return training FLOPs per token by size: between the measured sizes, and in proportion beyond them."""
    own = points.of(arch)
    sizes = own.sizes
    logs = [math.log(float(np.mean((own.flops / own.d)[np.abs(own.n / s - 1) < 0.01]))) for s in sizes]
    at = [math.log(s) for s in sizes]

    def rate(n: float) -> float:
        x = math.log(n)
        outside = x - min(max(x, at[0]), at[-1])
        return math.exp(float(np.interp(x, at, logs)) + outside)

    return rate


@dataclass(frozen=True)
class Saving:
    """How much less one architecture needs than another, at one size.

    Attributes:
        n, d: the size and tokens at which the base's loss is taken.
        loss: that loss.
        tokens: saving of tokens, a factor.
        flops: saving of training FLOPs at this size, a factor.
        intervals: by kind of bootstrap, {"tokens": (low, high), "flops": (low, high)}.
        measured: whether n is within the sizes that were trained.
    """

    base: str
    other: str
    n: float
    d: float
    loss: float
    tokens: float
    flops: float
    intervals: dict[str, dict[str, tuple[float, float]]]
    measured: bool


def saving(fit_: Fit, resampled: list[Resampled], base: str, other: str, n: float, d: float) -> Saving:
    """Return the saving at one size with its intervals."""
    laws = fit_.laws
    rates = [flops_per_token(fit_.points, a)(n) for a in (base, other)]
    cheaper = rates[0] / rates[1]
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    for r in resampled:
        low, high = r.interval(lambda x: token_saving(x, base, other, n, d))
        intervals[r.kind] = {"tokens": (low, high), "flops": (low * cheaper, high * cheaper)}
    tokens = token_saving(laws, base, other, n, d)
    sizes = fit_.points.sizes
    measured = 0.99 * sizes[0] <= n <= 1.01 * sizes[-1]
    return Saving(base, other, n, d, float(laws[base].loss(n, d)), tokens, tokens * cheaper, intervals, measured)


def verdict(s: Saving) -> str:
    """Say in a sentence what the data show of a saving; only an interval over runs (or seeds) counts."""
    where = f"at {_count(s.n)} parameters and the loss that {s.base} reaches with {_count(s.d)} tokens"
    where += "" if s.measured else " (a size that was not trained)"
    kind = next((k for k in BELIEVED if k in s.intervals), None)
    if kind is None:
        return f"{_times(s.tokens, s.other, s.base)} {where}; without an interval over runs, nothing is claimed."
    low, high = s.intervals[kind]["tokens"]
    span = f"95 % interval over {kind}: {_share(high)} to {_share(low)} times"
    if low > 1:
        return f"The data support a saving: {_times(s.tokens, s.other, s.base)} {where} ({span})."
    if high < 1:
        return f"The data support a loss, not a saving: {_times(s.tokens, s.other, s.base)} {where} ({span})."
    return f"The data do not say which needs fewer tokens: {_times(s.tokens, s.other, s.base)} {where} ({span})."


def _times(factor: float, other: str, base: str) -> str:
    if factor <= 0:
        return f"{other} never reaches the loss of {base}"
    if math.isinf(factor):
        return f"{base} never reaches what {other} does"
    return f"{other} needs {_share(factor)} times the tokens of {base}"


def _share(factor: float) -> str:
    """Return the tokens needed as a share of the base's, for a saving given as a factor."""
    if factor <= 0:
        return "no bound"
    return f"{1 / factor:.2f}" if factor < 20 else f"{1 / factor:.4f}"


def _count(value: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def nested(
    points: Points, fixed: dict[str, float], delta: float, times: int = 200, seed: int = 0, tell: Tell = lambda *_: None
) -> list[dict[str, Any]]:
    """Compare models with more and more in common, each with the one before it.

    The p-value is the share of simulated studies, in which the smaller model is true, whose objective falls as much as
    the one seen. These studies are made from the smaller model's predictions and residuals. The residuals of a run are
    all kept or all negated together (the wild cluster bootstrap: Cameron, Gelbach and Miller, "Bootstrap-based
    improvements for inference with clustered errors", 2008).
    """
    fits = {name: fit(points, shared, fixed, delta) for name, shared in NESTED.items()}
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng([seed, 77])
    runs = sorted(set(points.run.tolist()))
    run = np.array([runs.index(r) for r in points.run])
    names = list(fits)
    for place, (name, small) in enumerate(fits.items()):
        likelihood = scaled_likelihood(small.objective, len(points), delta)
        row: dict[str, Any] = {
            "shared": name,
            "coefficients": small.coefficients,
            "objective": small.objective,
            "bic": small.coefficients * math.log(len(runs)) - 2 * likelihood * len(runs) / len(points),
            "p": None,
        }
        if place and times:
            large = fits[names[place - 1]]
            seen = small.objective / large.objective
            residuals = small.residuals
            signs = rng.choice([-1.0, 1.0], size=(times, len(runs)))[:, run]
            goals = np.log(points.loss) - residuals + signs * residuals
            drops = _objectives(small, goals) / np.maximum(_objectives(large, goals), 1e-300)
            row["p"] = float((1 + (drops >= seen).sum()) / (1 + times))
            tell(place, len(names) - 1)
        rows.append(row)
    return rows


def _objectives(fit_: Fit, goals: np.ndarray) -> np.ndarray:
    total = np.zeros(len(goals))
    for problem, theta in fit_.solved:
        own = np.isin(fit_.points.arch, problem.structure.archs)
        goal, weight = goals[:, own], np.ones((len(goals), int(own.sum())))
        total += problem.polish(np.repeat(theta[None], len(goal), 0), goal, weight, fit_.delta)[1]
    return total


def held_out(fit_: Fit) -> list[dict[str, Any]]:
    """Fit without each architecture's largest size and predict it; return a row for each of its token counts.

    Empty if the rest cannot be fitted, which takes three sizes and three token counts, or two if the exponent is known.
    """
    points = fit_.points
    top = {a: points.of(a).sizes[-1] for a in points.archs}
    rest = points.where(np.array([n < 0.99 * top[a] for n, a in zip(points.n, points.arch, strict=True)]))
    needed = 2 if "alpha" in dict(fit_.structure.fixed) else 3
    if set(rest.archs) != set(points.archs) or min(len(rest.of(a).sizes) for a in points.archs) < needed:
        return []
    try:
        check_identified(rest, dict(fit_.structure.fixed))
    except DataError:  # the points that are left cannot tell the coefficients apart
        return []
    smaller = fit(rest, fit_.structure.shared - set(dict(fit_.structure.fixed)), dict(fit_.structure.fixed), fit_.delta)
    rows = []
    for arch in points.archs:
        own = points.of(arch)
        largest = own.where(own.n >= 0.99 * top[arch])
        groups: dict[int, list[int]] = {}
        for i, d in enumerate(largest.d):
            groups.setdefault(round(100 * math.log(d)), []).append(i)
        for places in groups.values():
            n, d = float(largest.n[places].mean()), float(largest.d[places].mean())
            found, said = float(largest.loss[places].mean()), float(smaller.laws[arch].loss(n, d))
            rows.append({"arch": arch, "N": n, "D": d, "loss": found, "predicted": said, "error": said / found - 1})
    return rows
