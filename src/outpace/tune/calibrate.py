"""Fill the cost table with throw-away passes, a few at a time, so that no request waits for a calibration.

A probe is run only when the real steps so far have paid for it: all probes together take at most 1 % of the decoding
time, beyond an advance (0.1 s, or three passes of a slow model), and two seconds (or twelve passes) in all. Later one
price after the other is checked again, at a five-hundredth of the time: a table measured on a busy machine, or read
from disk, may be wrong where no real step would ever find out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from outpace.cache import BlockTable
from outpace.runner import Runner, ScheduledSequence
from outpace.tree import DraftTree
from outpace.tune.cost import ROWS, PassCost
from outpace.types import Request

# Rows upwards, so that each price is predicted from the one before. A context of 1 means a long one.
_WANTED = ((2, 0), (4, 0), (8, 0), (8, 1), (5, 0), (16, 0), (16, 1), (1, 1), (9, 0), (17, 0), (32, 0))
_REPEATS = 2  # of the two passes that are compared, by turns: the quicker of each counts
_LASTING = 0.1  # seconds: a pair that takes longer is not repeated, it averages by itself
_ADVANCE, _ADVANCE_PASSES = 0.1, 3.0  # seconds, in several pieces; at least the first probe of a slow model
_SHARE = 0.01  # of the decoding time
_IN_ALL, _IN_ALL_PASSES = 2.0, 12.0  # seconds
_LATER_SHARE = 0.002
_DEAR = 0.7  # of a pass: where a row costs that much, drafts of more rows can hardly pay
_LONG = 512  # positions
_LONG_BYTES = 64 << 20  # most memory of the probe's own cache

_ANY = Request.of((0,))  # probes are never sampled

Prober = Callable[[int, int], float]  # rows, context -> seconds of such a pass


class Calibration:
    """Decides when to probe, and hands what is measured to the cost table.

    probe: runs a pass; long: the context of its long probes (0: it has none). rest: called when no more probes are
    due for a while.
    """

    def __init__(
        self,
        cost: PassCost,
        probe: Prober,
        long: int,
        rest: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cost, self._probe, self._long, self._rest, self._clock = cost, probe, long, rest, clock
        self._left = [wanted for wanted in _WANTED if (long or not wanted[1]) and not self._is_measured(*wanted)]
        self._later = deque(wanted for wanted in _WANTED if long or not wanted[1])
        self._has_advance = not cost.is_known
        self._earned = 0.0
        self.seconds = 0.0  # spent on probes so far
        self.num_probes = 0

    @property
    def is_done(self) -> bool:
        """Whether everything has been probed once; what follows are checks."""
        return not self._left

    def earn(self, seconds: float) -> None:
        """Count the seconds of a real step."""
        self._earned += (_SHARE if self._left else _LATER_SHARE) * seconds

    def run_next(self) -> bool:
        """Run the next probe if it is due; return whether it was."""
        credit = self._credit()
        if credit < 2.0 * self._cost.pace or not self._cost.is_known:
            return False
        if not self._left:
            return self._check_again()
        while self._left and self._is_futile(*self._left[0]):
            del self._left[0]
        is_due = bool(self._left) and self._price(*self._left[0]) <= credit
        if is_due:
            self._run(*self._left.pop(0))
        if not self._left:
            self._rest()
        return is_due

    def _check_again(self) -> bool:
        rows, far = self._later[0]
        if self._price(rows, far) > self._credit():
            return False
        self._later.rotate(-1)
        if self._is_futile(rows, far):
            return False
        self._run(rows, far)
        self._rest()
        return True

    def _credit(self) -> float:
        """Return the seconds that may go into probes now."""
        advance = max(_ADVANCE, _ADVANCE_PASSES * self._cost.pace) if self._has_advance else 0.0
        return advance + self._earned - self.seconds

    def _is_measured(self, rows: int, far: int) -> bool:
        curve = self._cost.reach if far else self._cost.base
        return curve.samples[curve.knots.index(rows)] >= 1.0

    def _price(self, rows: int, far: int) -> float:
        """Return the predicted seconds of a probe; a long one has a context to fill first."""
        cost = self._cost
        pair = cost.seconds([(rows, far * self._long)]) + cost.seconds([(rows if far else 1, 0)])
        return _repeats(pair) * pair + far * cost.seconds([(32, 0)])

    def _run(self, rows: int, far: int) -> None:
        started = self._clock()
        below, above = self._probe(rows if far else 1, 0), self._probe(rows, far * self._long)
        for _ in range(_repeats(below + above) - 1):
            below = min(below, self._probe(rows if far else 1, 0))
            above = min(above, self._probe(rows, far * self._long))
        self._cost.observe_probe(rows, far * self._long, above / below)
        spent = self._clock() - started
        self.seconds += spent
        self.num_probes += 1

    def _is_futile(self, rows: int, far: int) -> bool:
        """Return whether too little time is left, or half of the rows were so dear that nobody will want as many."""
        base, half = self._cost.base, rows // 2
        if self._left and self._price(rows, far) > max(_IN_ALL, _IN_ALL_PASSES * self._cost.pace) - self.seconds:
            return True
        return any(base.samples[1:]) and base.at(half) - base.at(1) > _DEAR * (half - 1) * base.at(1) > 0


def _repeats(seconds: float) -> int:
    """Return how often a pair of passes that takes so long is run."""
    return 1 if seconds > _LASTING else _REPEATS


class PassProbe:
    """Time passes of a model on a cache of its own: texts and their shared prefixes do not notice.

    The long context is filled with copies of one token, since only its size matters.
    """

    def __init__(self, runner: Runner, clock: Callable[[], float] = time.perf_counter) -> None:
        self._target, self._clock = runner, clock
        self._tables: dict[int, BlockTable] = {}  # by context
        spec = runner.cache.spec
        room = min(_LONG_BYTES // spec.bytes_per_token, runner.context) - 2 * spec.block_size
        self.long = max(0, min(_LONG, room) // spec.block_size * spec.block_size)
        self._scratch: Runner | None = None

    def __call__(self, rows: int, context: int) -> float:
        """Return the seconds of a pass of that many rows after `context` positions."""
        table = self._tables.get(context) or self._open(context)
        text = [0] * (context + 1)
        s = ScheduledSequence(table, _ANY, text, len(text), DraftTree.chain([0] * (rows - 1), "probe"))
        runner = self._runner()
        started = self._clock()
        runner.forward([s])
        return self._clock() - started

    def close(self) -> None:
        """Give the memory back."""
        self._tables.clear()
        self._scratch = None

    def _runner(self) -> Runner:
        target = self._target
        if self._scratch is None:
            size = target.cache.block_size
            self._scratch = target.scratch(self.long // size + 2 * (max(ROWS) // size + 2))
        return self._scratch

    def _open(self, context: int) -> BlockTable:
        runner = self._runner()
        table = self._tables[context] = runner.cache.open(())
        if context:
            runner.forward([ScheduledSequence(table, _ANY, [0], 1)])
            table.commit([0], [0])
            table.reserve(context - 1)
            size = runner.cache.block_size
            slots = [slot for block in table.blocks for slot in range(block * size, (block + 1) * size)]
            runner.ops.kv_move(runner.cache.kv(), slots[:1] * (context - 1), slots[1:context])
            table.commit(range(context - 1), [0] * (context - 1))
        return table
