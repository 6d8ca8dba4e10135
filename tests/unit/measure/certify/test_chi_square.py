from __future__ import annotations

import math

import numpy as np
import pytest

from outpace.measure.certify.chi_square import chi_square, quantile, tail, total_variation


@pytest.mark.parametrize(
    ("statistic", "freedom", "odds"),
    [(3.841459, 1, 0.05), (5.991465, 2, 0.05), (18.307038, 10, 0.05), (59.703, 30, 0.001), (23.928, 1, 1e-6)],
)
def test_the_tail_is_that_of_the_tables(statistic: float, freedom: int, odds: float) -> None:
    assert tail(statistic, freedom) == pytest.approx(odds, rel=2e-3)


@pytest.mark.parametrize("freedom", [1, 2, 7, 100, 999])
def test_the_quantile_turns_the_tail_around(freedom: int) -> None:
    assert tail(quantile(freedom, 1e-7), freedom) == pytest.approx(1e-7, rel=1e-6)
    assert tail(0.0, freedom) == 1.0
    assert tail(1e6, freedom) == pytest.approx(0.0, abs=1e-300)


def test_true_distributions_are_accused_about_as_often_as_asked() -> None:
    """2,000 samples at odds of 5 %: 100 expected; outside [60, 145] with odds below 10^-4."""
    rng = np.random.default_rng(0)
    probs = rng.gamma(0.5, size=60)
    probs /= probs.sum()
    accused = sum(not chi_square(rng.multinomial(800, probs), probs, 0.05).passed for _ in range(2000))
    assert 60 <= accused <= 145


def test_what_it_says_it_would_catch_it_catches() -> None:
    """Probs at the distance that is promised to be caught 99 % of the time: 300 tries, 285 with odds of 10^-6."""
    rng = np.random.default_rng(1)
    probs = np.full(20, 0.05)
    distance = chi_square(rng.multinomial(3000, probs), probs, 1e-6).detectable
    biased = probs + np.where(np.arange(20) % 2, 1, -1) * distance / 10
    assert total_variation(probs, biased) == pytest.approx(distance)
    assert sum(not chi_square(rng.multinomial(3000, biased), probs, 1e-6).passed for _ in range(300)) >= 285


def test_a_count_of_what_is_impossible_is_proof() -> None:
    probs = np.array([0.5, 0.5, 0.0])
    assert chi_square(np.array([500, 500, 0]), probs).passed
    found = chi_square(np.array([500, 500, 1]), probs)
    assert not found.passed
    assert found.p_value == 0.0


def test_rare_cells_are_counted_together() -> None:
    probs = np.append([0.6, 0.3], np.full(1000, 1e-4))
    found = chi_square(np.append([600, 300], np.arange(1000) < 100).astype(np.int64), probs)
    assert found.cells == 3
    assert found.statistic == pytest.approx(0.0)
    assert found.p_value == pytest.approx(1.0)


def test_a_distribution_with_one_outcome_is_no_test_but_no_error() -> None:
    assert chi_square(np.array([9, 0]), np.array([1.0, 0.0])).passed
    assert not chi_square(np.array([9, 1]), np.array([1.0, 0.0])).passed


def test_total_variation_is_the_mass_that_has_to_move() -> None:
    assert math.isclose(float(total_variation(np.array([0.5, 0.5]), np.array([0.7, 0.3]))), 0.2)
