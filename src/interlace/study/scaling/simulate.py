"""Simulate a study: draw points from known laws, to see what a fit makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interlace.study.scaling.fit import Law
from interlace.study.scaling.points import Points


def simulate(
    laws: Mapping[str, Law],
    sizes: Sequence[float] | np.ndarray,
    multiples: Sequence[float],
    *,
    seeds: int = 3,
    run_noise: float = 0.0,
    point_noise: float = 0.0,
    seed: int = 0,
) -> Points:
    """Return a ladder of every architecture, size and seed, each run read at every multiple.

    Args:
        laws: by architecture.
        sizes: parameters.
        multiples: tokens per parameter.
        run_noise, point_noise: standard deviations of the log of the loss; a run's points share the first.
        seed: of the noise.
    """
    rng = np.random.default_rng([7, seed])
    rows: list[tuple[Any, ...]] = []
    for arch, law in laws.items():
        for n in sizes:
            for k in range(seeds):
                luck = rng.normal(0, run_noise)
                for m in multiples:
                    loss = float(law.loss(n, m * n)) * float(np.exp(luck + rng.normal(0, point_noise)))
                    rows.append((n, m * n, loss, f"{arch}/{n:.0f}/{k}", str(k), arch))
    ns, ds, losses, runs, seeds_, archs = map(list, zip(*rows, strict=True))
    return Points.make(ns, ds, losses, run=runs, seed=seeds_, arch=archs)
