"""Medians with their spread and intervals, and exponents: no assumption about how times are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import numpy as np


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some values and their middle half."""

    median: float
    low: float  # first quartile
    high: float  # third quartile

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        if len(values) == 1:
            return Spread(values[0], values[0], values[0])
        low, middle, high = quantiles(values, n=4, method="inclusive")
        return Spread(middle, low, high)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return an interval that holds the true median with at least this confidence; None for too few values (under 6).

    Between the k-th smallest and the k-th largest value: the true median is outside only if fewer than k values
    lie on one side of it, a binomial event. Holds for independent values of any distribution.
    """
    n = len(values)
    k, outside = 0, 0.0
    while True:
        outside += math.comb(n, k) / 2**n
        if k >= n // 2 or 2 * outside > 1 - confidence:
            break
        k += 1
    if k == 0:
        return None
    ordered = sorted(values)
    return ordered[k - 1], ordered[n - k]


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return e of the best fit seconds = c * size^e (least squares of logarithms)."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def accumulate(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the seconds of all tokens up to the last size: the integral of a line through the points, level before."""
    xs, ys = [0, *sizes], [seconds[0], *seconds]
    return float(np.trapezoid(ys, xs))


__all__ = ["Spread", "accumulate", "fit_exponent", "median", "median_interval"]
