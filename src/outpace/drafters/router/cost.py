"""What a pass of the target costs: seconds by rows, context and batch, learned on this machine and never finished.

    seconds = plain * (rows(number of rows) + sum over requests of context * per_position(rows of the request))

`rows` is what rows cost over an empty context and `per_position` what a position of context adds, both in plain passes
(rows(1) = 1): ratios, which belong to the machine. `plain`, the seconds of a plain pass, follows the last few passes:
a busy neighbour makes all passes slower, and a row no more expensive relative to them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import statistics
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outpace.drafters.router.averages import LinearCost

ROWS = (1, 2, 4, 5, 8, 9, 16, 17, 32)  # knots: kernels take rows in tiles of 4, 8 or 16
SCHEMA = 3

_UNMEASURED = 0.05  # of a plain pass: what a row is held to cost at the least where nobody has measured yet
_PLAIN_GAIN = 0.4  # of each pass' error goes to `plain` at once; only the rest can be a matter of rows
_MAX_ERROR = 1.0  # of a logarithm: what one timing counts for at most

# A knot is a mean that forgets. A probe compares two passes back to back and weighs more than a real pass, which is
# compared with `plain`; what is believed without a measurement of this process weighs 1.
_PROBE_WEIGHT, _PASS_WEIGHT, _MAX_WEIGHT = 2.0, 0.5, 4.0
NOISE = 0.1  # relative, of a ratio's probes: what spreads more is not kept on disk, twice as much is a contradiction
_NUM_PROBES = 6  # of a knot that are remembered

Part = tuple[int, int]  # one request's rows in a pass, and the length of its context


class Curve:
    """Plain passes by rows: 1 for one row, never falling, straight between knots; unmeasured knots follow."""

    def __init__(self) -> None:
        self.values = [1.0] * len(ROWS)
        self.weights = [0.0] * len(ROWS)
        self._slopes = [0.0] * len(ROWS)  # from each knot to the next; the last goes on for ever
        self._fill()

    def at(self, rows: int) -> float:
        """Return the value at rows >= 1."""
        i = bisect_right(ROWS, rows) - 1
        return self.values[i] + (rows - ROWS[i]) * self._slopes[i]

    def slope(self, rows: int) -> float:
        """Return what one row more adds."""
        return self._slopes[bisect_right(ROWS, rows) - 1]

    def learn(self, rows: int, error: float, weight: float, prior: float = 0.0) -> None:
        """Move the knots around `rows` by an error (a logarithm), each by its part and by how little is known of it.

        prior: the weight of what is believed without a measurement.
        """
        i = bisect_right(ROWS, rows) - 1
        above = (rows - ROWS[i]) / (ROWS[i + 1] - ROWS[i]) if i + 1 < len(ROWS) else 0.0
        for knot, part in ((i, 1.0 - above), (i + 1, above)):
            if not part or not knot:
                continue
            added = part * weight
            known = self.weights[knot]
            bounded = max(-_MAX_ERROR, min(error, _MAX_ERROR)) if known else error
            self.values[knot] *= math.exp(bounded * added / (known + prior + added))
            self.weights[knot] = min(known + added, _MAX_WEIGHT)
            self._keep_order(knot)
        self._fill()

    def forget(self) -> None:
        """Take everything for unmeasured."""
        self.weights = [0.0] * len(ROWS)

    def restore(self, ratios: Mapping[int, float]) -> None:
        """Take over ratios that were measured earlier."""
        for rows, ratio in ratios.items():
            knot = ROWS.index(rows)
            self.values[knot], self.weights[knot] = ratio, 1.0
            self._keep_order(knot)
        self._fill()

    def _keep_order(self, changed: int) -> None:
        """Let the knots on both sides give way to the one that was measured last: more rows never take less."""
        values = self.values
        value = values[changed] = max(values[changed], 1.0)
        for i in range(1, len(ROWS)):
            values[i] = min(values[i], value) if i < changed else max(values[i], value) if i > changed else value

    def _fill(self) -> None:
        """Derive unmeasured knots from their measured neighbours, and all slopes."""
        values = self.values
        known = [0, *(i for i in range(1, len(ROWS)) if self.weights[i])]
        for low, high in itertools.pairwise(known):
            slope = (values[high] - values[low]) / (ROWS[high] - ROWS[low])
            for i in range(low + 1, high):
                values[i] = values[low] + slope * (ROWS[i] - ROWS[low])
        last = known[-1]
        # Behind the last one the steepest way there counts: a flat stretch may end at the next tile.
        beyond = max(
            [
                _UNMEASURED,
                *((values[last] - values[i]) / (ROWS[last] - ROWS[i]) for i in known if 2 * ROWS[i] <= ROWS[last]),
            ]
        )
        for i in range(last + 1, len(ROWS)):
            values[i] = values[last] + beyond * (ROWS[i] - ROWS[last])
        for i in range(len(ROWS) - 1):
            self._slopes[i] = (values[i + 1] - values[i]) / (ROWS[i + 1] - ROWS[i])
        self._slopes[-1] = max(self._slopes[-2], (values[-1] - 1.0) / (ROWS[-1] - 1))


class PassCost:
    """Predict the seconds of a forward pass, and learn from passes that were timed.

    A pass is given as one `Part` (rows, context) per request. Nothing is known before the first `observe`.
    """

    def __init__(self) -> None:
        self.rows = Curve()
        self.per_position = LinearCost()  # plain passes, by the rows of a request
        self.plain = 0.0  # seconds of a pass of one row; 0: not known
        self.quiet = math.inf  # seconds of the fastest one-row probe behind these ratios
        self.probes: dict[int, deque[float]] = {}  # by rows, the ratios that this process measured last
        self._last: list[Part] = [(1, 0)]  # the real pass that was seen last

    @property
    def is_known(self) -> bool:
        """Whether a pass has ever been timed."""
        return self.plain > 0.0

    def seconds(self, parts: Sequence[Part]) -> float:
        """Return the predicted seconds of a pass."""
        return self.plain * self._plain_passes(parts)

    def more(self, total_rows: int, rows: int, context: int) -> float:
        """Return what one more row costs a request that has `rows` in a pass of `total_rows`."""
        return self.plain * (self.rows.slope(total_rows) + context * self.per_position.per_item)

    def observe(self, parts: Sequence[Part], seconds: float) -> None:
        """Learn from a real pass: the plain pass first, then rows."""
        if seconds <= 0.0:
            return
        self._last = list(parts)
        passes = self._plain_passes(parts)
        if not self.is_known:
            self.plain = seconds / passes
            return
        error = max(-_MAX_ERROR, min(math.log(seconds / (self.plain * passes)), _MAX_ERROR))
        self.plain *= math.exp(_PLAIN_GAIN * error)
        num_rows = sum([own for own, _ in parts])
        self.rows.learn(
            num_rows, (1.0 - _PLAIN_GAIN) * error * self.rows.at(num_rows) / passes, _PASS_WEIGHT, prior=1.0
        )

    def observe_probe(self, rows: int, context: int, pairs: Sequence[tuple[float, float]]) -> bool:
        """Learn from throw-away passes of one request; return whether they contradict what was believed.

        pairs: seconds of two passes, one right after the other. Without context: of one row, and of `rows`. With it:
        of `rows` without and with the context. So neither the speed of the machine nor the context of real requests
        gets into the ratio, and what is predicted for the last real pass stays.
        """
        before = self._plain_passes(self._last)
        below, above = min([low for low, _ in pairs]), min([high for _, high in pairs])
        contradicted = False
        if context:
            self.per_position.learn(rows, max(above / below - 1.0, 0.0) * self.rows.at(rows) / context)
        else:
            contradicted = self.rows.weights[ROWS.index(rows)] > 0.0 and self.is_surprised(rows, 0, below, above)
            if contradicted:
                self.quiet = below
                self.probes.clear()
                self.rows.forget()
            self.quiet = min(self.quiet, below)
            self.rows.learn(rows, math.log(max(above / below, 1.0) / self.rows.at(rows)), _PROBE_WEIGHT)
            self.probes.setdefault(rows, deque(maxlen=_NUM_PROBES)).extend([high / low for low, high in pairs])
        self.plain *= before / self._plain_passes(self._last)
        return contradicted

    def is_surprised(self, rows: int, context: int, below: float, above: float) -> bool:
        """Whether a probe says something else than the table, or that the table comes from a busier machine."""
        if context:
            return False
        error = math.log(max(above / below, 1.0) / self.rows.at(rows))
        return abs(error) > 2.0 * NOISE or below < self.quiet * math.exp(-2.0 * NOISE) < math.inf

    def _plain_passes(self, parts: Sequence[Part]) -> float:
        passes = self.rows.at(sum([rows for rows, _ in parts]))
        if not self.per_position.is_known:
            return passes
        return passes + sum([context * self.per_position.at(rows) for rows, context in parts])

    def as_dict(self) -> dict[str, Any]:
        """Return what this process measured with little spread, as plain JSON values."""
        return {
            "schema": SCHEMA,
            "plain_seconds": self.plain,
            "quiet_seconds": self.quiet,
            "rows": {str(rows): ratio for rows, ratios in self.probes.items() if (ratio := _certain(ratios))},
            "per_position": {"fixed": self.per_position.fixed, "per_row": self.per_position.per_item},
        }

    def restore(self, saved: Mapping[str, Any]) -> bool:
        """Take over what `as_dict` gave, in part trusted; return False, with nothing changed, for anything else."""
        try:
            if saved["schema"] != SCHEMA:
                return False
            plain, quiet = _positive(saved["plain_seconds"]), _positive(saved["quiet_seconds"])
            ratios = {int(rows): _positive(saved["rows"][rows]["ratio"]) for rows in saved["rows"]}
            fixed, per_row = float(saved["per_position"]["fixed"]), float(saved["per_position"]["per_row"])
        except (AttributeError, KeyError, TypeError, ValueError):
            return False
        if not (0.0 <= fixed < math.inf and 0.0 <= per_row < math.inf) or not set(ratios) <= set(ROWS[1:]):
            return False
        self.plain, self.quiet = plain, quiet
        self.rows.restore(ratios)
        for rows in (1, 64):  # far apart, so that they tell its two parts
            self.per_position.learn(rows, fixed + per_row * rows)
        return True


def _certain(ratios: Sequence[float]) -> dict[str, float] | None:
    """Return the median of a knot's probes with its spread, or None where they differ too much, or there is one."""
    if len(ratios) < 2:
        return None
    median = statistics.median(ratios)
    spread = statistics.median([abs(ratio - median) for ratio in ratios]) / median
    return {"ratio": max(median, 1.0), "spread": spread} if spread <= NOISE else None


def _positive(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not 0.0 < number < math.inf:
        raise ValueError("not a cost")
    return number


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
