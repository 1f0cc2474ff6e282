"""How often an evaluation's intervals hold the truth: 95 % is what they say.

    python benchmarks/evaluation_intervals.py          # two minutes

Shares of items, paired differences of shares, scores between 0 and 1, bits per byte of texts of very different lengths,
and differences of bits per byte; beside each, the percentile bootstrap by item, which is what most tools print.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from interlace.evaluate.intervals import Figure, difference, difference_of_ratios, mean, ratio

Draw = np.random.Generator
Made = tuple[Figure, np.ndarray, np.ndarray]
"""An interval, and above and below the line of what is bootstrapped beside it."""


def share(p: float, items: int) -> Callable[[Draw], Made]:
    """Return what draws items that are right with a probability."""

    def make(draw: Draw) -> Made:
        x = (draw.random(items) < p).astype(float)
        return mean(x.tolist()), x, np.ones(items)

    return make


def paired(wins: float, losses: float, items: int) -> Callable[[Draw], Made]:
    """Return what draws items that two models are right or wrong on."""

    def make(draw: Draw) -> Made:
        u = draw.random(items)
        first, second = (u < losses) | (u > 0.6), ((u >= losses) & (u < losses + wins)) | (u > 0.6)
        a, b = first.astype(float), second.astype(float)
        return difference(a.tolist(), b.tolist()), b - a, np.ones(items)

    return make


def graded(items: int) -> Callable[[Draw], Made]:
    """Return what draws scores between 0 and 1."""

    def make(draw: Draw) -> Made:
        x = draw.beta(0.5, 2, items)
        return mean(x.tolist()), x, np.ones(items)

    return make


def texts(items: int) -> Callable[[Draw], Made]:
    """Return what draws bits and bytes of texts."""

    def make(draw: Draw) -> Made:
        size = draw.lognormal(6, 1, items)
        bits = 1.2 * draw.gamma(20, 1 / 20, items) * size
        return ratio(bits, size), bits, size

    return make


def two_models_of_texts(items: int) -> Callable[[Draw], Made]:
    """Return what draws bits of two models on the same texts."""

    def make(draw: Draw) -> Made:
        size, each = draw.lognormal(6, 1, items), draw.gamma(20, 1 / 20, items)
        first, second = 1.2 * each * size, 1.15 * each * size * draw.gamma(100, 1 / 100, items)
        return difference_of_ratios((first, size), (second, size)), second - first, size

    return make


def percentile(draw: Draw, above: np.ndarray, below: np.ndarray, resamples: int = 500) -> tuple[float, float]:
    """Return the percentile bootstrap interval of sum(above) / sum(below)."""
    places = draw.integers(len(above), size=(resamples, len(above)))
    low, high = np.quantile(above[places].sum(1) / below[places].sum(1), (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    """Print the coverage of each kind of figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000, help="intervals of each kind")
    times = parser.parse_args().times
    print(f"{'figure':34} {'items':>5} {'ours':>7} {'percentile bootstrap':>21}")
    for items in (50, 200, 1000):
        kinds = {f"share {p}": (share(p, items), p) for p in (0.02, 0.1, 0.5, 0.9)}
        for wins, losses in ((0.02, 0.01), (0.1, 0.05), (0.3, 0.1), (0.05, 0.05)):
            kinds[f"paired, {wins} won and {losses} lost"] = paired(wins, losses, items), wins - losses
        kinds["scores from 0 to 1, mean 0.2"] = graded(items), 0.2
        kinds["bits per byte"] = texts(items), 1.2
        kinds["difference of bits per byte"] = two_models_of_texts(items), -0.05
        for name, (make, truth) in kinds.items():
            draw, ours, theirs = np.random.default_rng(0), 0, 0
            count = times if items < 1000 or name.startswith(("share", "paired")) else times // 4
            for _ in range(count):
                figure, above, below = make(draw)
                ours += figure.low <= truth <= figure.high
                low, high = percentile(draw, above, below)
                theirs += low <= truth <= high
            print(f"{name:34} {items:>5} {ours / count:>7.1%} {theirs / count:>21.1%}", flush=True)


if __name__ == "__main__":
    main()
