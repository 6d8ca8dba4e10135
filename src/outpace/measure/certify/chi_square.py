"""Is a sample drawn from a distribution? Pearson's chi-square, with its exact tail and what it would have caught."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_MIN_EXPECTED = 10.0  # counts in a cell: below, the statistic's tail is not that of chi-square
_POWER = 0.99


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """How well counts fit a distribution. The true one gives a p-value below a with odds a.

    detectable: any distribution further than this from the target, in total variation over the cells, would have been
    caught with odds of 99 % (at the odds of a false alarm that were asked for). distance: total variation between the
    counts and the distribution, over the cells; of a true one it is about the root of cells / draws.
    """

    draws: int
    cells: int
    statistic: float
    p_value: float
    false_alarm: float
    detectable: float
    distance: float

    @property
    def passed(self) -> bool:
        """Whether the counts may well come from the distribution."""
        return self.p_value >= self.false_alarm


def chi_square(counts: NDArray[np.int64], probs: NDArray[np.float64], false_alarm: float = 1e-6) -> ChiSquare:
    """Compare counts [K] with probs [K]: the likely cells one by one, the others together.

    A count in a cell of probability 0 is proof by itself: its p-value is 0. false_alarm: odds that true probs fail.
    """
    n = int(counts.sum())
    impossible = bool(counts[probs == 0].any())
    expected, seen = _pool(probs * n, counts)
    freedom = len(expected) - 1
    distance = float(total_variation(seen, expected)) / max(n, 1)
    if freedom < 1:
        return ChiSquare(n, len(expected), 0.0, float(not impossible), false_alarm, 1.0, distance)
    statistic = float(((seen - expected) ** 2 / expected).sum())
    p_value = 0.0 if impossible else tail(statistic, freedom)
    detectable = _detectable(freedom, n, false_alarm)
    return ChiSquare(n, len(expected), statistic, p_value, false_alarm, detectable, distance)


def _pool(expected: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return expected and seen counts of the likely cells, and of all others as one (with the rarest of the likely)."""
    order = np.argsort(-expected, kind="stable")
    expected, counts = expected[order], counts[order]
    likely = max(1, int((expected >= _MIN_EXPECTED).sum()))
    while likely > 1 and 0 < expected[likely:].sum() < _MIN_EXPECTED:
        likely -= 1
    groups = [np.append(values[:likely], values[likely:].sum()).astype(np.float64) for values in (expected, counts)]
    used = groups[0] > 0
    return groups[0][used], groups[1][used]


def tail(statistic: float, freedom: int) -> float:
    """Return the odds that chi-square with `freedom` degrees of freedom is at least `statistic`.

    Exactly: Q(a + 1, x) = Q(a, x) + x^a e^-x / Gamma(a + 1), from Q(1/2, x) = erfc(sqrt x) or Q(1, x) = e^-x.
    """
    x = statistic / 2
    if x <= 0:
        return 1.0
    a = 0.5 if freedom % 2 else 1.0
    total = math.erfc(math.sqrt(x)) if freedom % 2 else math.exp(-x)
    while a < freedom / 2:
        total += math.exp(a * math.log(x) - x - math.lgamma(a + 1))
        a += 1
    return min(1.0, total)


def quantile(freedom: int, odds: float) -> float:
    """Return the value that chi-square reaches with these odds."""
    low, high = 0.0, 1.0
    while tail(high, freedom) > odds:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, freedom) > odds else (low, middle)
    return high


def _detectable(freedom: int, draws: int, false_alarm: float) -> float:
    """Return the total variation d that is caught with odds of 99 %.

    A distribution at distance d has noncentrality of at least 4 n d^2 (Cauchy-Schwarz), and noncentral chi-square is
    about normal with mean f + c and variance 2 (f + 2 c): solve f + c - z sqrt(2 (f + 2 c)) = bound for c.
    """
    bound, z = quantile(freedom, false_alarm), NormalDist().inv_cdf(_POWER)
    low, high = 0.0, 1.0

    def caught(c: float) -> bool:
        return freedom + c - z * math.sqrt(2 * (freedom + 2 * c)) >= bound

    while not caught(high):
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if caught(middle) else (middle, high)
    return min(1.0, math.sqrt(high / (4 * draws)))


def total_variation(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return half the summed difference of two distributions, along the last axis."""
    distance: NDArray[np.float64] = 0.5 * np.abs(p - q).sum(axis=-1)
    return distance
