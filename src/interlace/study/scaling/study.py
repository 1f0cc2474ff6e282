"""Derive all that one set of points can say: the fit, its intervals, savings, nested models, extrapolation, IsoFLOP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from interlace.base.errors import ConfigError, DataError
from interlace.runs.progress import Progress, Watch, silent
from interlace.study.scaling.bootstrap import Kind, Resampled, bootstrap, check_enough
from interlace.study.scaling.compare import Saving, held_out, nested, saving, verdict
from interlace.study.scaling.explained import bound_notes, idle_terms, unknown
from interlace.study.scaling.fit import Fit, fit, profile
from interlace.study.scaling.isoflop import IsoFlop, isoflop
from interlace.study.scaling.points import Points, check_identified
from interlace.study.scaling.solve import DELTA, NAMES

PROFILE_POINTS = 25
LEVEL = 3.84  # of chi squared with one degree of freedom, 95 %


@dataclass(frozen=True)
class Study:
    """The results of `interlace study fit`.

    Attributes:
        resampled: laws by kind of bootstrap.
        times: resamples of each.
        savings: of every architecture against the base, at each size.
        profiles: (values, deviance) by architecture and coefficient.
        idle: by architecture, which of N and D explain nothing of its loss.
        notes: what could not be done, and why.
    """

    fit: Fit
    resampled: list[Resampled]
    times: int
    base: str
    savings: list[Saving]
    nested: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    isoflop: dict[str, IsoFlop]
    profiles: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
    idle: dict[str, tuple[str, ...]]
    notes: list[str]

    @property
    def optimum(self) -> str:
        """Say whether many starts ended in the same place."""
        if self.fit.optima == 1:
            return f"{self.fit.starts} starts ended in one optimum."
        return (
            f"{self.fit.starts} starts ended in {self.fit.optima} different optima; the second is "
            f"{self.fit.second:.2%} worse, and the best is shown."
        )

    @property
    def sentences(self) -> list[str]:
        """Say what the data show about each pair, at the largest size that was trained."""
        largest: dict[str, Saving] = {}
        for s in self.savings:
            if s.measured and (s.other not in largest or s.n >= largest[s.other].n):
                largest[s.other] = s
        claims = [verdict(s) for s in largest.values()]
        for other in self.fit.structure.archs:
            blind = [a for a in (self.base, other) if "D" in self.idle[a]]
            if other != self.base and blind:
                claims.append(
                    f"Nothing is claimed of {other} against {self.base}: tokens explain nothing of the loss of "
                    f"{' and '.join(blind)}."
                )
        return claims

    def known(self, arch: str, name: str) -> bool:
        """Return whether the data determine a coefficient, or "split"."""
        return name not in unknown(self.idle, arch)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        laws = {}
        for arch, law in self.fit.laws.items():
            laws[arch] = {
                name: {
                    "value": getattr(law, name) if self.known(arch, name) else None,
                    "intervals": {
                        r.kind: list(r.interval_of(arch, name)) if self.known(arch, name) else None
                        for r in self.resampled
                    },
                    "profile": self._profile_interval(arch, name),
                }
                for name in NAMES
            }
        points = self.fit.points
        return {
            "points": len(points),
            "runs": len(set(points.run.tolist())),
            "diverged": points.diverged,
            "delta": self.fit.delta,
            "shared": sorted(self.fit.structure.shared),
            "fixed": dict(self.fit.structure.fixed),
            "objective": self.fit.objective,
            "starts": self.fit.starts,
            "optima": self.fit.optima,
            "bootstrap": self.times,
            "laws": laws,
            "base": self.base,
            "savings": [{**asdict(s), "verdict": verdict(s)} for s in self.savings],
            "nested": self.nested,
            "held_out": self.held_out,
            "isoflop": {a: asdict(i) for a, i in self.isoflop.items()},
            "compute_exponent": {a: law.split if self.known(a, "split") else None for a, law in self.fit.laws.items()},
            "explains_nothing": {a: list(letters) for a, letters in self.idle.items() if letters},
            "sentences": self.sentences,
            "notes": self.notes,
        }

    def _profile_interval(self, arch: str, name: str) -> list[float] | None:
        """Return where the profile crosses its 95 % level, or the ends of the examined range where it does not."""
        if (arch, name) not in self.profiles:
            return None
        x, y = self.profiles[arch, name]
        inside = np.flatnonzero(y <= LEVEL)
        ends = []
        for edge, step in ((inside[0], -1), (inside[-1], 1)):
            out = edge + step
            if 0 <= out < len(x):
                share = (LEVEL - y[edge]) / (y[out] - y[edge])
                ends.append(float(x[edge] + share * (x[out] - x[edge])))
            else:
                ends.append(float(x[edge]))
        return ends


def _tell(watch: Watch, label: str, done: int, total: int) -> None:
    watch(Progress(label, done, total))


def study(
    points: Points,
    *,
    shared: Sequence[str] = (),
    fixed: dict[str, float] | None = None,
    base: str | None = None,
    sizes: Sequence[float] = (),
    tokens_per_parameter: float | None = None,
    times: int = 1000,
    delta: float = DELTA,
    seed: int = 0,
    watch: Watch = silent,
) -> Study:
    """Fit, resample, compare.

    Args:
        base: the architecture the others are held against; the first if not given.
        sizes: parameter counts at which savings are told, beside those that were trained.
        tokens_per_parameter: where the base's loss is taken; its largest D / N if not given.
        times: resamples; 0 for no intervals.

    Raises:
        DataError: too few points, sizes or runs; the message says for what.
        ConfigError: an argument is wrong.
    """
    known = dict(fixed or {})
    archs = points.archs
    base = base or archs[0]
    if base not in archs:
        raise ConfigError(f"base: {base!r} is not among the architectures: {', '.join(archs)}")
    check_identified(points, known)
    if seed < 0:
        raise ConfigError(f"seed: must not be negative, got {seed}")
    if not 0 < delta < math.inf:
        raise ConfigError(f"delta: must be positive, got {delta}")
    if times < 0:
        raise ConfigError(f"bootstrap: must not be negative, got {times}")
    kinds: list[Kind] = []
    notes: list[str] = []
    if times:
        if points.grouped:
            check_enough(points, "runs")
            kinds.append("runs")
        else:
            notes.append("No column run or seed: no interval over runs is possible, and the naive one is too narrow.")
        if len(set(points.seed.tolist())) > 1:
            try:
                check_enough(points, "seeds")
                kinds.append("seeds")
            except DataError as error:
                notes.append(str(error))
        kinds.append("points")
    best = fit(points, shared, known, delta)
    idle, said = idle_terms(best)
    notes = said + notes
    resampled = [bootstrap(best, k, times, seed, partial(_tell, watch, f"resampling {k}")) for k in kinds]
    mean_multiple = tokens_per_parameter or float((points.of(base).d / points.of(base).n).max())
    wanted = sorted({*points.of(base).sizes, *sizes})
    notes += bound_notes(resampled, idle)
    seen = [a for a in archs if a != base and "D" not in (*idle[a], *idle[base])]
    savings = [saving(best, resampled, base, a, n, n * mean_multiple) for a in seen for n in wanted]
    compared = []
    if len(archs) > 1 and not known:
        compared = nested(points, known, delta, min(times, 200), seed, partial(_tell, watch, "nested models"))
    profiles = {}
    tasks = [(a, n) for a in archs for n in NAMES if n not in known and n not in unknown(idle, a)]
    for number, (arch, name) in enumerate(tasks):
        profiles[arch, name] = _profile(best, resampled, arch, name)
        watch(Progress("profiles", number + 1, len(tasks)))
    if best.optima > 1:
        notes.append("Different starts ended in different optima: the coefficients are not to be read one by one.")
    iso = {a: isoflop(points.of(a)) for a in archs}
    return Study(best, resampled, times, base, savings, compared, held_out(best), iso, profiles, idle, notes)


def _profile(best: Fit, resampled: Sequence[Resampled], arch: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a profile over the range that the bootstrap reached, and beyond."""
    centre = getattr(best.laws[arch], name)
    low, high = 0.5 * centre, 2.0 * centre
    if resampled:
        low, high = resampled[0].interval_of(arch, name)
    if name in ("A", "B"):
        left, right = (math.log(max(v, 1e-9)) for v in (low, max(high, centre * 1.0001)))
        values = np.exp(np.linspace(left - 0.7 * (right - left), right + 0.7 * (right - left), PROFILE_POINTS))
    else:
        wide = max(high - low, 1e-6 + 0.05 * abs(centre))
        floor = 1e-6 if name == "E" else 0.005
        values = np.linspace(max(floor, low - 0.7 * wide), high + 0.7 * wide, PROFILE_POINTS)
    values = np.sort(np.append(values, centre))
    return values, profile(best, arch, name, values)
