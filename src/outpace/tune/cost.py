"""What a pass of the target costs: seconds by rows, context and batch, learned on this machine and never finished.

    seconds = pace * (base(rows of the pass) + sum over requests of context * reach(rows of the request))

`base` is the price of rows over an empty past, `reach` what a position of the past adds, both in plain passes
(base(1) = 1): the shape, which belongs to the machine. `pace`, the seconds of a plain pass, follows the last few
passes: a busy neighbour changes the pace and not the price of a row.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import le
from pathlib import Path
from typing import Any

ROWS = (1, 2, 4, 5, 8, 9, 16, 17, 32)  # knots of `base`: kernels take rows in tiles of 4, 8 or 16
REACH_ROWS = (1, 8, 16)  # knots of `reach`
SCHEMA = 1

# Passes are timed on machines that do other things too: errors are taken as logarithms, and bounded. The pace goes
# first and takes its part at once: only what it leaves over can be a matter of rows or context.
_PACE_GAIN = 0.4
_NUDGE = 0.12
_MOST_NUDGE = 0.3
_MOST_ERROR = 1.0
_PROBE_SAMPLES = 2.0
_MOST_SAMPLES = 12.0
_RESTORED_SAMPLES = 2.0  # what a knot from disk counts for at most: this session may differ
_UNMEASURED = 0.2  # of a plain pass: the least that a row is held to cost where nobody has measured yet
_KNOWN = 0.5  # samples from which a knot counts as measured

Part = tuple[int, int]  # one request's rows in a pass, and the length of its context


class Curve:
    """A positive, never falling function of a row count, straight between knots; unmeasured knots follow from measured.

    While one knot is measured, or given as the first, values are in proportion to rows: a second one costs as much.
    """

    def __init__(self, knots: Sequence[int], first: float | None = None) -> None:
        self.knots = tuple(knots)
        self.values = [0.0] * len(knots)
        self.samples = [0.0] * len(knots)
        self._slopes = [0.0] * len(knots)  # from each knot to the next; the last goes on for ever
        self._fixed = first is not None
        if first is not None:
            self.values[0], self.samples[0] = first, 1.0
            self._fill()

    @property
    def is_known(self) -> bool:
        """Whether anything was measured or given."""
        return any(self.samples)

    def at(self, x: int) -> float:
        """Return the value at x >= the first knot."""
        i = bisect_right(self.knots, x) - 1
        return self.values[i] + (x - self.knots[i]) * self._slopes[i]

    def slope(self, x: int) -> float:
        """Return what going from x to x + 1 adds, at least 0."""
        return self._slopes[bisect_right(self.knots, x) - 1]

    def learn(self, x: int, value: float, count: float = 1.0) -> None:
        """Take in a measurement at x that counts as `count` ordinary ones: a mean, which soon forgets."""
        if not self.is_known:
            nearest = bisect_right(self.knots, x) - 1
            self.values[nearest], self.samples[nearest] = value * self.knots[nearest] / x, count
            self._fill()
            return
        error = math.log(value / self.at(x))
        for knot, part in self._parts(x):
            # A new knot takes what it sees; one that is known moves less and less, and by a bounded error.
            samples, weight = self.samples[knot], part * count
            bounded = _bounded(error, _MOST_ERROR) if samples else error
            self.values[knot] *= math.exp(bounded * weight / (samples + weight))
            self.samples[knot] = min(samples + weight, _MOST_SAMPLES)
        self._fill()

    def nudge(self, x: int, error: float) -> None:
        """Move measured knots around x by a part of an error (a logarithm)."""
        for knot, part in self._parts(x):
            self.values[knot] *= math.exp(_NUDGE * part * error)
        self._fill()

    def _parts(self, x: int) -> list[tuple[int, float]]:
        """Return the knots next to x that may move, each with its part in the value at x."""
        i = bisect_right(self.knots, x) - 1
        above = 0.0 if i == len(self.knots) - 1 else (x - self.knots[i]) / (self.knots[i + 1] - self.knots[i])
        parts = ((i, 1.0 - above), (i + 1, above))
        return [(knot, part) for knot, part in parts if part and not (knot == 0 and self._fixed)]

    def restore(self, values: Sequence[float], samples: Sequence[float]) -> None:
        """Take over measurements made earlier."""
        self.values, self.samples = list(values), list(samples)
        self._fill()

    def _straighten(self, known: Sequence[int]) -> None:
        """Let neighbours of which the larger count seems cheaper meet in the middle: it never is."""
        groups: list[tuple[float, float, list[int]]] = []  # value, weight, knots (pool adjacent violators)
        for i in known[1:] if self._fixed else known:
            value, weight, members = self.values[i], self.samples[i], [i]
            while groups and groups[-1][0] > value:
                other, more, before = groups.pop()
                value = (value * weight + other * more) / (weight + more)
                weight, members = weight + more, before + members
            groups.append((value, weight, members))
        for value, _, members in groups:
            for i in members:
                self.values[i] = max(value, self.values[0]) if self._fixed else value

    def _fill(self) -> None:
        """Derive unmeasured knots from their measured neighbours, and all slopes."""
        knots, values = self.knots, self.values
        if min(self.samples) < _KNOWN or not all(map(le, values, values[1:])):
            self._derive()
        for i in range(len(knots) - 1):
            self._slopes[i] = (values[i + 1] - values[i]) / (knots[i + 1] - knots[i])
        self._slopes[-1] = max(self._slopes[-2], (values[-1] - values[0]) / (knots[-1] - knots[0]))

    def _derive(self) -> None:
        """Put unmeasured knots where their measured neighbours say."""
        knots, values = self.knots, self.values
        known = [i for i, samples in enumerate(self.samples) if samples >= _KNOWN]
        self._straighten(known)
        first = known[0]
        for i in range(first):  # the least that a pass of fewer rows may cost
            values[i] = values[first] * knots[i] / knots[first]
        for low, high in itertools.pairwise(known):
            slope = (values[high] - values[low]) / (knots[high] - knots[low])
            for i in range(low + 1, high):
                values[i] = values[low] + slope * (knots[i] - knots[low])
        last = known[-1]
        slope = self._beyond(known)
        for i in range(last + 1, len(knots)):
            values[i] = values[last] + slope * (knots[i] - knots[last])

    def _beyond(self, known: Sequence[int]) -> float:
        """Return the slope after the last measured knot: the steeper of two, and never next to nothing."""
        knots, values, last = self.knots, self.values, known[-1]
        if len(known) == 1:
            return values[last] / knots[last]
        stretches = [(values[last] - values[i]) / (knots[last] - knots[i]) for i in (known[0], known[-2])]
        return max(*stretches, _UNMEASURED * values[known[0]] / knots[known[0]])


class PassCost:
    """Predict the seconds of a forward pass, and learn from passes that were timed.

    A pass is given as one `Part` (rows, context) per request. Nothing is known before the first `observe`.
    """

    def __init__(self) -> None:
        self.base = Curve(ROWS, first=1.0)
        self.reach = Curve(REACH_ROWS)
        self.pace = 0.0  # seconds; 0: not known
        self._last: list[Part] = [(1, 0)]  # the real pass that was seen last

    @property
    def is_known(self) -> bool:
        """Whether a pass has ever been timed."""
        return self.pace > 0.0

    def seconds(self, parts: Sequence[Part]) -> float:
        """Return the predicted seconds of a pass."""
        return self.pace * self._shape(parts)

    def more(self, total_rows: int, rows: int, context: int) -> float:
        """Return what one more row costs a request that has `rows` in a pass of `total_rows`."""
        return self.pace * (self.base.slope(total_rows) + context * self.reach.slope(rows))

    def observe(self, parts: Sequence[Part], seconds: float) -> None:
        """Learn from a real pass: first the pace, then the curves, each by its share of the time."""
        if seconds <= 0.0:
            return
        self._last = list(parts)
        shape = self._shape(parts)
        if not self.is_known:
            self.pace = seconds / shape
            return
        error = math.log(seconds / (self.pace * shape))
        taken = _PACE_GAIN * _bounded(error, _MOST_ERROR)
        self.pace *= math.exp(taken)
        left = _bounded(error - taken, _MOST_NUDGE)
        rows = sum([own for own, _ in parts])
        share = self.base.at(rows) / shape
        self.base.nudge(rows, share * left)
        if share < 1.0 and len(parts) == 1:
            self.reach.nudge(rows, (1.0 - share) * left)

    def observe_probe(self, rows: int, context: int, ratio: float) -> None:
        """Learn from two throw-away passes of one request, one right after the other.

        ratio: seconds of a pass of that many rows after that context by those of one row (context 0), or of the same
        rows without the context. So neither the pace nor the context of real texts gets into it, and what is predicted
        for the last real pass stays.
        """
        before = self._shape(self._last)
        if context:
            # Below a ten-thousandth of a pass a context is free; zero could never grow again.
            added = max((ratio - 1.0) * self.base.at(rows), 1e-4)
            self.reach.learn(rows, added / context, _PROBE_SAMPLES)
        else:
            self.base.learn(rows, ratio, _PROBE_SAMPLES)
        self.pace *= before / self._shape(self._last)

    def _shape(self, parts: Sequence[Part]) -> float:
        base = self.base.at(sum([rows for rows, _ in parts]))
        if not self.reach.is_known:
            return base
        return base + sum([context * self.reach.at(rows) for rows, context in parts])

    # -- on disk -------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Return what was learned as plain JSON values."""
        curves = {"base": self.base, "reach": self.reach}
        return {"schema": SCHEMA, "pace_seconds": self.pace} | {
            name: {"rows": list(curve.knots), "plain_passes": curve.values, "samples": curve.samples}
            for name, curve in curves.items()
        }

    def restore(self, saved: Mapping[str, Any]) -> bool:
        """Take over what `as_dict` gave, in part trusted; return False, with nothing changed, for anything else."""
        try:
            pace = float(saved["pace_seconds"])
            if saved["schema"] != SCHEMA or not 0.0 < pace < math.inf:
                return False
            read = [_numbers(saved[name], knots) for name, knots in (("base", ROWS), ("reach", REACH_ROWS))]
        except (KeyError, TypeError, ValueError):
            return False
        self.pace = pace
        for curve, (values, samples) in zip((self.base, self.reach), read, strict=True):
            if any(samples):
                curve.restore(values, [min(count, _RESTORED_SAMPLES) for count in samples])
        return True


def _bounded(error: float, most: float) -> float:
    return max(-most, min(error, most))


def _numbers(saved: Mapping[str, Any], knots: Sequence[int]) -> tuple[list[float], list[float]]:
    values, samples = [float(x) for x in saved["plain_passes"]], [float(x) for x in saved["samples"]]
    if tuple(saved["rows"]) != tuple(knots) or not len(values) == len(samples) == len(knots):
        raise ValueError("other knots")
    if not all(math.isfinite(x) and x >= 0.0 for x in (*values, *samples)):
        raise ValueError("not a price")
    if any(samples) and not all(values):
        raise ValueError("a measured curve has no zeros")
    return values, samples


def load_cost(path: Path | None) -> PassCost:
    """Return what an earlier process learned, or an empty table where there is no readable file."""
    cost = PassCost()
    if path is not None:
        # Never written, cut short or from a stranger: then it is learned again.
        with contextlib.suppress(OSError, ValueError, TypeError):
            cost.restore(json.loads(path.read_text(encoding="utf-8")))
    return cost


def save_cost(cost: PassCost, path: Path) -> None:
    """Write the table; a reader sees the old file or the new one. A folder that cannot be written is left alone."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(cost.as_dict()), encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
