"""Fit L = E + A / N^alpha + B / D^beta many times at once, by Huber's loss on the residuals of log L.

For fixed exponents the law is linear in (E, A, B). The outer search is over the exponents alone, with the linear
coefficients projected out (Golub and Pereyra's variable projection). Its results are polished in all coefficients
together. Loss and form are those of Hoffmann et al., arXiv 2203.15556, appendix D.3.

Inside, log N and log D are centred, and (E, A, B) are logarithms: they are positive and of one scale.
"""

from __future__ import annotations

import itertools
from copy import copy
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

NAMES = ("E", "A", "B", "alpha", "beta")
LINEAR, EXPONENTS = NAMES[:3], NAMES[3:]
DELTA = 1e-3
EXPONENT_GRID = np.geomspace(0.03, 1.5, 14)
LOWEST, HIGHEST = 1e-3, 4.0  # exponents
SMALLEST = -30.0  # logarithm of a linear coefficient that is nought
STEPS, ROUNDS = 400, 10
TOLERANCE, PATIENCE = 1e-10, 12  # of the objective, relative; so many steps on end must gain no more


@dataclass(frozen=True)
class Structure:
    """Which coefficients the architectures have in common, and which are known.

    Attributes:
        archs: in order.
        shared: names of NAMES that all of them share.
        fixed: exponents that are not fitted, by name.
    """

    archs: tuple[str, ...]
    shared: frozenset[str] = frozenset()
    fixed: tuple[tuple[str, float], ...] = ()

    @property
    def places(self) -> list[tuple[str, str | None]]:
        """(name, architecture, or None if it is shared) of each coefficient of the vector."""
        return [(n, a) for n in NAMES for a in ((None,) if n in self.shared else self.archs)]

    def place(self, name: str, arch: str) -> int:
        """Return the index of an architecture's coefficient in the vector."""
        return self.places.index((name, None if name in self.shared else arch))

    @property
    def free(self) -> np.ndarray:
        """Mask of the coefficients that are fitted."""
        return np.array([n not in dict(self.fixed) for n, _ in self.places])

    @property
    def parts(self) -> list[Structure]:
        """Return the structures that can be solved by themselves: one for each architecture if nothing is shared."""
        return [self] if self.shared else [Structure((a,), self.shared, self.fixed) for a in self.archs]


class Problem:
    """Points laid out for the solver.

    Attributes:
        structure: which coefficients there are.
        x, y: [points], log N and log D, centred.
        log_loss: [points].
        index: [5, points], where each point's coefficients stand in the vector.
        onehot: [5, points, coefficients].
    """

    def __init__(self, structure: Structure, n: np.ndarray, d: np.ndarray, loss: np.ndarray, arch: np.ndarray):
        """Take arrays of shape [points]; every arch must be one of the structure's."""
        self.structure = structure
        self.x, self.y = np.log(n), np.log(d)
        self.centre = self.x.mean(), self.y.mean()
        self.x, self.y = self.x - self.centre[0], self.y - self.centre[1]
        self.log_loss = np.log(loss)
        self.index = np.array([[structure.place(name, a) for a in arch] for name in NAMES])
        self.onehot = np.eye(len(structure.places))[self.index]

    def shares(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta [many, coefficients] -> (log of the loss predicted [many, points], shares of E, A, B in it)."""
        e, a, b, alpha, beta = (theta[:, i] for i in self.index)
        terms = np.stack([e, a - alpha * self.x, b - beta * self.y])
        top = terms.max(0)
        weights = np.exp(terms - top)
        total = weights.sum(0)
        return top + np.log(total), weights / total

    def objective(self, theta: np.ndarray, goal: np.ndarray, weight: np.ndarray, delta: float) -> np.ndarray:
        """Weighted Huber loss [many] of log L against `goal`."""
        return (weight * huber(goal - self.shares(theta)[0], delta)).sum(-1)

    def jacobian(self, theta: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Return the Jacobian of the predicted log L: [many, points, coefficients]."""
        slopes = np.concatenate([share, -share[1:2] * self.x, -share[2:3] * self.y])
        return np.einsum("kmp,kpc->mpc", slopes, self.onehot)

    def descend(
        self,
        theta: np.ndarray,
        goal: np.ndarray,
        weight: np.ndarray,
        delta: float,
        free: np.ndarray,
        tolerance: float = TOLERANCE,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take Levenberg and Marquardt's steps on reweighted squares, each row for itself.

        Args:
            theta: [many, coefficients] to start from.
            goal, weight: [many, points], the log losses to fit and how much each point counts.
            delta: Huber's.
            free: mask [coefficients].
            tolerance: of the objective, relative; a few steps must gain no more.

        Returns:
            (theta, objective [many]).
        """
        theta = theta.copy()
        value = self.objective(theta, goal, weight, delta)
        damping = np.full(len(theta), 1e-3)
        still = np.zeros(len(theta), dtype=np.int64)
        active = np.arange(len(theta))
        eye = np.eye(int(free.sum()))
        for _ in range(STEPS):
            now = theta[active]
            predicted, share = self.shares(now)
            residual = goal[active] - predicted
            pull = weight[active] * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
            slope = self.jacobian(now, share)[:, :, free]
            weighted = slope * pull[:, :, None]
            hessian = np.einsum("mpc,mpd->mcd", weighted, slope)
            gradient = np.einsum("mpc,mp->mc", weighted, residual)
            scale = np.einsum("mcc->mc", hessian) + 1e-12
            system = hessian + (damping[active, None] * scale)[:, :, None] * eye
            step = np.linalg.solve(system, gradient[:, :, None])[:, :, 0]
            tried = now.copy()
            tried[:, free] += np.clip(step, -2.0, 2.0)
            tried = self.bounded(tried)
            new = self.objective(tried, goal[active], weight[active], delta)
            better = new <= value[active]
            gain = value[active] - new
            gained = better & (gain > tolerance * value[active] + 1e-300)
            still[active] = np.where(gained, 0, still[active] + 1)
            done = still[active] >= PATIENCE
            theta[active[better]] = tried[better]
            value[active[better]] = new[better]
            damping[active] = np.clip(damping[active] * np.where(better, 0.2, 8.0), 1e-12, 1e12)
            active = active[~done]
            if not active.size:
                break
        return theta, value

    def bounded(self, theta: np.ndarray) -> np.ndarray:
        """Return coefficients within bounds: neither too small to differ from 0, nor exponents as steep as a cliff."""
        low = np.array([SMALLEST if n in LINEAR else LOWEST for n, _ in self.structure.places])
        high = np.array([np.inf if n in LINEAR else HIGHEST for n, _ in self.structure.places])
        return np.clip(theta, low, high)

    def projected(self, alpha: float, beta: float, goal: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the vector with these exponents and the linear coefficients of the least squares of L'/L - 1."""
        places = self.structure.places
        theta = np.array([{"alpha": alpha, "beta": beta}.get(n, 0.0) for n, _ in places])
        linear = [i for i, (n, _) in enumerate(places) if n in LINEAR]
        columns = np.stack([np.ones_like(self.x), np.exp(-alpha * self.x), np.exp(-beta * self.y)])
        design = np.einsum("kp,kpc->pc", columns, self.onehot[:3])[:, linear]
        root = np.sqrt(weight)[:, None]
        found, _ = nnls(root * design * np.exp(-goal)[:, None], root[:, 0])
        theta[linear] = np.log(np.maximum(found, np.exp(-8.0)))
        return theta

    def search(self, goal: np.ndarray, weight: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
        """Fit once from many starts.

        The linear coefficients are projected out over a grid of exponents. Every valley of the grid is polished, and
        places far from the valleys too, to see whether they end in the same optimum.

        Args:
            goal, weight: [points].

        Returns:
            (theta [starts, coefficients], objective [starts]), best first.
        """
        known = dict(self.structure.fixed)
        first, second = (np.array([known[e]]) if e in known else EXPONENT_GRID for e in EXPONENTS)
        grid = np.array([self.projected(a, b, goal, weight) for a, b in itertools.product(first, second)])
        linear = np.array([n in LINEAR for n, _ in self.structure.places])
        many = len(grid)
        goals, weights = np.broadcast_to(goal, (many, len(goal))), np.broadcast_to(weight, (many, len(goal)))
        grid, height = self.descend(grid, goals, weights, 10 * delta, linear)
        starts = valleys(height.reshape(len(first), len(second)))
        starts += [i for i in spread(len(first), len(second)) if i not in starts]
        found, value = self.polish(grid[starts], goals[: len(starts)], weights[: len(starts)], delta)
        for _ in range(ROUNDS):  # starts that are on a long flat way down have not arrived yet
            late = np.flatnonzero(value > 1.0001 * value.min() + 1e-15)
            before = value[late]
            found[late], value[late] = self.descend(
                found[late], goals[: len(late)], weights[: len(late)], delta, self.structure.free
            )
            if not np.any(value[late] < 0.999 * before):
                break
        order = np.argsort(value)
        return found[order], value[order]

    def polish(
        self, theta: np.ndarray, goal: np.ndarray, weight: np.ndarray, delta: float, tolerance: float = TOLERANCE
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit all coefficients together; Huber's corner is sharpened in steps, as a sharp one is slow from afar."""
        free = self.structure.free
        for wide in (30 * delta, 5 * delta):
            theta, _ = self.descend(theta, goal, weight, wide, free, max(tolerance, 1e-4))
        return self.descend(theta, goal, weight, delta, free, tolerance)

    def uncentred(self, theta: np.ndarray, name: str) -> tuple[Problem, np.ndarray]:
        """Return (the same problem, the same vector [coefficients]) with A or B in the law's units.

        To this end log N, or log D, is not centred.
        """
        linear, exponent, axis = ("A", "alpha", 0) if name == "A" else ("B", "beta", 1)
        other, moved = copy(self), theta.copy()
        for arch in self.structure.archs:
            at, slope = self.structure.place(linear, arch), theta[self.structure.place(exponent, arch)]
            moved[at] = theta[at] + slope * self.centre[axis]
        other.x = self.x + self.centre[0] if axis == 0 else self.x
        other.y = self.y + self.centre[1] if axis == 1 else self.y
        other.centre = (0.0, self.centre[1]) if axis == 0 else (self.centre[0], 0.0)
        return other, moved

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """Return vectors [many, coefficients] in the units of the law, instead of logarithms at the centre."""
        theta, out = np.atleast_2d(theta), np.empty_like(np.atleast_2d(theta))
        for i, (name, arch) in enumerate(self.structure.places):
            if name == "E":
                out[:, i] = np.where(theta[:, i] <= SMALLEST + 1, 0.0, np.exp(theta[:, i]))
            elif name in ("A", "B"):
                exponent, centre = ("alpha", self.centre[0]) if name == "A" else ("beta", self.centre[1])
                own = arch if arch is not None else self.structure.archs[0]
                out[:, i] = np.exp(theta[:, i] + theta[:, self.structure.place(exponent, own)] * centre)
            else:
                out[:, i] = theta[:, i]
        return out


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """Return r^2 / 2 within delta of 0, delta (|r| - delta / 2) outside."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def valleys(height: np.ndarray, most: int = 12) -> list[int]:
    """Return the flat indices of the places of a grid that have no lower neighbour, the lowest first."""
    padded = np.pad(height, 1, constant_values=np.inf)
    rows, columns = height.shape
    lowest = np.min(
        [padded[1 + i : 1 + i + rows, 1 + j : 1 + j + columns] for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0
    )
    found = np.flatnonzero((height <= lowest).ravel())
    return [int(i) for i in found[np.argsort(height.ravel()[found])][:most]]


def spread(rows: int, columns: int) -> list[int]:
    """Return the flat indices of nine places over a grid, its corners among them."""
    down, across = (sorted({0, m // 2, m - 1}) for m in (rows, columns))
    return [i * columns + j for i in down for j in across]
