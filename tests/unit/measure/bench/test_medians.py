from __future__ import annotations

import math

import numpy as np
import pytest

from outpace.measure.bench.medians import Spread, accumulate, fit_exponent, median_interval


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_five_values_are_too_few_for_an_interval_and_six_give_their_ends() -> None:
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert median_interval([1.0, 6.0, 2.0, 5.0, 3.0, 4.0]) == (1.0, 6.0)
    assert median_interval(list(range(1, 21))) == (6, 15)  # the table's ranks for n = 20


@pytest.mark.parametrize("n", [6, 9, 20, 61])
def test_the_interval_holds_the_median_as_often_as_promised(n: int) -> None:
    """1,000 samples of a skewed distribution: fewer than 925 hits have odds below 10^-3 at a coverage of 95 %."""
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(1000):
        low, high = median_interval(rng.exponential(size=n).tolist()) or (0.0, 0.0)
        hits += low <= math.log(2) <= high
    assert hits >= 925


def test_exponents_of_power_laws_are_found() -> None:
    sizes = [256, 512, 1024, 2048]
    assert fit_exponent(sizes, [3e-6 * n**2 for n in sizes]) == pytest.approx(2.0)
    assert fit_exponent(sizes, [0.01] * 4) == pytest.approx(0.0, abs=1e-9)


def test_the_seconds_of_all_tokens_are_the_area_under_the_curve() -> None:
    assert accumulate([10, 20], [1.0, 1.0]) == pytest.approx(20.0)
    assert accumulate([10, 20], [1.0, 3.0]) == pytest.approx(30.0)
