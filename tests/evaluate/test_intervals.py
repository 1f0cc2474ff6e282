"""Intervals hold the truth as often as they say, of one model and of two on the same items."""

from __future__ import annotations

import math

import numpy as np
import pytest

from interlace.evaluate.intervals import difference, difference_of_ratios, mean, needed, ratio, tango, wilson

TIMES = 400
LEAST, MOST = 0.91, 0.995  # of 400 intervals of 95 %, by three standard errors


def held(make, truth, times=TIMES):
    """The share of intervals that hold the truth."""
    found = [make() for _ in range(times)]
    return sum(f.low <= truth <= f.high for f in found) / times


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("items", [40, 200])
def test_of_a_share(share, items):
    draw = np.random.default_rng(1)
    assert LEAST < held(lambda: mean((draw.random(items) < share).astype(float)), share) < MOST


@pytest.mark.parametrize(("wins", "losses"), [(0.3, 0.1), (0.1, 0.1)])
@pytest.mark.parametrize("items", [40, 200])
def test_of_a_paired_difference(wins, losses, items):
    draw = np.random.default_rng(2)

    def make():
        u = draw.random(items)
        return difference(((u < losses) | (u > 0.7)).astype(float), (((u >= losses) & (u < losses + wins)) | (u > 0.7)))

    assert LEAST < held(make, wins - losses) < MOST


def test_of_bits_per_byte_and_their_difference():
    draw = np.random.default_rng(3)

    def texts():
        size = draw.lognormal(6, 0.7, 60)
        each = draw.gamma(30, 1 / 30, 60)
        return size, 1.2 * each * size, 1.15 * each * size * draw.gamma(200, 1 / 200, 60)

    def one():
        size, bits, _ = texts()
        return ratio(bits, size)

    def two():
        size, first, second = texts()
        return difference_of_ratios((first, size), (second, size))

    assert 0.9 < held(one, 1.2, 150) < MOST
    assert 0.9 < held(two, -0.05, 150) < MOST


def test_known_values():
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = tango(12, 8, 96)
    assert low == pytest.approx(-0.0528, abs=1e-3)
    assert high == pytest.approx(0.1381, abs=1e-3)
    assert tango(0, 0, 24)[0] == -tango(0, 0, 24)[1] < 0
    assert math.isnan(mean([]).value)
    assert mean([0.5, 0.7]).low < 0.6 < mean([0.5, 0.7]).high


def test_items_needed_tell_the_difference_as_often_as_they_say():
    draw = np.random.default_rng(4)
    effect = draw.normal(0.1, 0.5, 100_000)
    count = needed(effect)
    told = [
        abs(x.mean()) > 1.96 * x.std(ddof=1) / math.sqrt(count)
        for x in (draw.normal(0.1, 0.5, count) for _ in range(600))
    ]
    assert 0.75 < sum(told) / 600 < 0.85
