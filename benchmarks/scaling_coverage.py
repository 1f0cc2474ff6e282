"""How often 95 % intervals hold the true saving of tokens: runs resampled, beside points resampled as if independent.

    python benchmarks/scaling_coverage.py [--trials 500] [--resamples 200]

Each trial is a ladder of two architectures whose laws are known, 4 sizes x 4 token multiples x 3 seeds, with noise of a
run (which its points share) and of a point. The laws are those of Merrill et al., arXiv 2604.03444, table 18.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from interlace.study.scaling.bootstrap import Kind, bootstrap
from interlace.study.scaling.compare import token_saving
from interlace.study.scaling.fit import Law, fit
from interlace.study.scaling.simulate import simulate

LAWS = {"transformer": Law(1.55, 66.6, 94.9, 0.22, 0.22), "hybrid": Law(1.55, 66.6, 83.7, 0.22, 0.22)}
SIZES, MULTIPLES, SEEDS = np.geomspace(60e6, 760e6, 4), (10, 20, 40, 80), 3
RUN_NOISE, POINT_NOISE = 0.004, 0.001
KINDS: tuple[Kind, ...] = ("runs", "points")


def trial(seed: int, resamples: int, shared: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Intervals by kind, and the saving found."""
    n, d = float(SIZES[-1]), float(SIZES[-1] * MULTIPLES[-1])
    noise = {"run_noise": RUN_NOISE, "point_noise": POINT_NOISE}
    found = fit(simulate(LAWS, SIZES, MULTIPLES, seeds=SEEDS, seed=seed, **noise), shared)
    out = {"found": (token_saving(found.laws, "transformer", "hybrid", n, d),) * 2}
    for kind in KINDS:
        again = bootstrap(found, kind, resamples, seed)
        out[kind] = again.interval(lambda laws: token_saving(laws, "transformer", "hybrid", n, d))
    return out


def main() -> None:
    """Print coverage and width."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=200)
    given = parser.parse_args()
    n, d = float(SIZES[-1]), float(SIZES[-1] * MULTIPLES[-1])
    truth = token_saving(LAWS, "transformer", "hybrid", n, d)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name, shared in (("free exponents", ()), ("shared exponents", ("alpha", "beta"))):
        with ProcessPoolExecutor() as pool:
            work = partial(trial, resamples=given.resamples, shared=shared)
            results = list(pool.map(work, range(given.trials), chunksize=5))
        row = {"fit": name, "trials": given.trials, "resamples": given.resamples, "true saving": round(truth, 4)}
        row["median found"] = round(float(np.median([r["found"][0] for r in results])), 4)
        for kind in KINDS:
            inside = [r[kind][0] <= truth <= r[kind][1] for r in results]
            row[f"coverage, {kind}"] = round(float(np.mean(inside)), 4)
            row[f"median width, {kind}"] = round(float(np.median([r[kind][1] - r[kind][0] for r in results])), 4)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
