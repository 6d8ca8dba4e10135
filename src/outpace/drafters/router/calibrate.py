"""Measure what rows cost with throw-away passes, a few at a time, so that no request waits for a calibration.

A probe is run only when real steps have paid for it: while something is unmeasured, all probes together take at most
1 % of the decoding time beyond an advance of a few plain passes; later one ratio after the other is checked again. A
check that contradicts the table (it was measured on a busy machine, or comes from one) makes all of it unmeasured.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from outpace.cache import BlockTable
from outpace.drafters.router.cost import ROWS, PassCost
from outpace.runner import Runner, ScheduledSequence
from outpace.types import Request
from outpace.types.tree import DraftTree

# Rows, and whether behind a long context. First what tells most of a draft's cost, then what lies between.
_WANTED = ((8, 0), (4, 0), (2, 0), (16, 0), (1, 1), (8, 1), (5, 0), (9, 0), (32, 0), (17, 0))
_ADVANCE = 6.0  # plain passes: pays for the first probe (or for one after a contradiction) of all but slow rows
_SHARE = 0.004  # of the decoding time: a check of a ratio every few seconds
_LONG = 512  # positions
_LONG_BYTES = 64 << 20  # maximum memory of the probe's own cache

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
        self._wanted = [wanted for wanted in _WANTED if long or not wanted[1]]
        self._left = deque(self._wanted)
        self._checks = deque(self._wanted)
        self._advance = _ADVANCE
        if any(
            cost.rows.weights
        ):  # a table from disk: nothing is urgent, and the cheapest probe tells whether it holds
            self._advance = 0.0
            self._left = deque(sorted(self._wanted, key=lambda wanted: wanted != (2, 0)))
        self._earned = 0.0
        self.seconds = 0.0  # spent on probes so far
        self.num_probes = 0

    @property
    def is_done(self) -> bool:
        """Whether everything has been probed once; what follows are checks."""
        return not self._left

    def earn(self, seconds: float) -> None:
        """Count the seconds of a real step."""
        self._earned += _SHARE * seconds

    def run_next(self) -> bool:
        """Run the next probe if it is paid for; return whether it was."""
        plain = self._cost.plain
        credit = self._earned + self._advance * plain - self.seconds
        if not plain or credit < 2.0 * plain:
            return False
        rows, far = (self._left or self._checks)[0]
        if self._price(rows, far) > credit:
            return False
        if self._left:
            self._left.popleft()
        else:
            self._checks.rotate(-1)
        started = self._clock()
        self._run(rows, far * self._long)
        self.seconds += self._clock() - started
        self.num_probes += 1
        if not self._left:
            self._rest()
        return True

    def _price(self, rows: int, far: int) -> float:
        """Return the predicted seconds of a probe; a long one has a context to fill first."""
        cost = self._cost
        pair = cost.seconds([(rows, far * self._long)]) + cost.seconds([(rows if far else 1, 0)])
        return pair + far * cost.seconds([(32, 0)])

    def _run(self, rows: int, context: int) -> None:
        """Measure one ratio; a surprising one twice, by turns: then the quicker of each pass counts."""
        base = rows if context else 1
        pairs = [(self._probe(base, 0), self._probe(rows, context))]
        if self._cost.is_surprised(rows, context, *pairs[0]):
            pairs.append((self._probe(base, 0), self._probe(rows, context)))
        if self._cost.observe_probe(rows, context, pairs):
            self._left = deque(wanted for wanted in self._wanted if wanted != (rows, 0))
            self._advance += _ADVANCE


class PassProbe:
    """Time passes of a model on a cache of its own: texts and their shared prefixes do not notice.

    The long context is filled with copies of one token, since only its size matters.
    clock: None takes that of the ops: a busy machine takes the core away in the middle of a pass, which says nothing
    of what a row costs.
    """

    def __init__(self, runner: Runner, clock: Callable[[], float] | None = None) -> None:
        self._target, self._clock = runner, clock or runner.ops.clock
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
