"""Find where a text begins to repeat itself for ever: small models do, and there is little to learn from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONGEST_PERIOD = 64  # tokens
KEPT = 40  # tokens of a repetition that may stay: lists and refrains repeat themselves too


def cut_loop(tokens: Sequence[int], kept: int = KEPT, longest_period: int = LONGEST_PERIOD) -> int:
    """Return how many tokens come before a loop, the first `kept` repeated ones included; all where there is none.

    A loop: more than `kept` tokens in a row, and at least one whole period, each the same as the one a period
    (1 to `longest_period` tokens) before it.
    """
    x = np.asarray(tokens)
    end = len(x)
    for period in range(1, min(longest_period, len(x) - 1) + 1):
        same = x[period:] == x[:-period]
        breaks = np.flatnonzero(np.concatenate([[True], ~same, [True]]))  # same[i] stands at i + 1
        runs = np.diff(breaks) - 1
        long = np.flatnonzero(runs > max(kept, period))
        if len(long):
            end = min(end, int(breaks[long[0]]) + period + kept)
    return end
