"""Does a neighbour that waits cost anybody anything? An A/A run: one engine against itself.

The same engine writes the same tokens right after a neighbour has written, and again after a pause in which everybody
came to rest. Where the ratio of the two speeds is not 1, the neighbour still took part in the measurement.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.peers.process import Worker
from benchmarks.peers.turns import Batch, Ourselves, Writer, name_of, write
from outpace.api import LanguageModel
from outpace.measure.bench.rows import Speedup, speedup_of
from outpace.measure.bench.sample import PLAIN
from outpace.measure.progress import Progress, Work

_PAUSE = 2.0  # seconds: longer than any engine's threads are known to spin
_TOLERANCE = 0.03


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An engine's speed right after a neighbour wrote, relative to its own speed after a pause.

    ours: our plain decoding, with this engine as the neighbour. its: this engine, with ours as the neighbour.
    """

    engine: str
    variant: str
    ours: Speedup
    its: Speedup

    @property
    def disturbed(self) -> bool:
        """Whether one of them was clearly slowed down or sped up: by more than 3 %, with 95 % confidence."""
        return any(map(_is_off, (self.ours, self.its)))


def _is_off(speedup: Speedup) -> bool:
    if speedup.interval is None:
        return False
    low, high = speedup.interval
    return low > 1 + _TOLERANCE or high < 1 - _TOLERANCE


def check_neighbours(
    lm: LanguageModel,
    workers: Sequence[Worker],
    batch: Batch,
    *,
    num_tokens: int,
    repeats: int,
    progress: Progress | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> list[Neighbour]:
    """Return a comparison per worker, from `repeats` pairs (at least 6 for an interval); those that fail are left out.

    progress counts pairs.
    """
    ours, rng = Ourselves(lm, PLAIN), random.Random(0)
    work = Work(2 * repeats * len(workers), progress)
    found = []
    for worker in workers:
        engine, variant = name_of(worker)
        pairs: dict[str, list[float]] = {"ours": [], "its": []}
        for who, writer, neighbour in (("ours", ours, worker), ("its", worker, ours)):
            for _ in range(repeats):
                work.begin(1, f"A/A with a neighbour: {engine}, {variant}")
                ratio = _pair(writer, neighbour, batch, num_tokens, rng, pause)
                if ratio is not None:
                    pairs[who].append(ratio)
        if pairs["ours"] and pairs["its"]:
            found.append(Neighbour(engine, variant, speedup_of(pairs["ours"]), speedup_of(pairs["its"])))
    work.finish()
    return found


def _pair(
    writer: Writer,
    neighbour: Writer,
    batch: Batch,
    num_tokens: int,
    rng: random.Random,
    pause: Callable[[float], None],
) -> float | None:
    """Return the writer's speed right after the neighbour wrote / after a pause, in either order; None if it failed."""
    rates: dict[bool, float] = {}
    for beside in rng.sample((True, False), 2):
        if "error" in write(neighbour, batch, num_tokens):
            return None
        if not beside:
            pause(_PAUSE)
        answer = write(writer, batch, num_tokens)
        if "error" in answer:
            return None
        rates[beside] = 1 / (answer["seconds"] - answer["first_seconds"])
    return rates[True] / rates[False]
