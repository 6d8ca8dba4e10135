"""How the router compares with plain decoding, and with the best strategy that one could have fixed beforehand.

The best of several noisy numbers looks better than it is. So the best fixed strategy is chosen on one half of the
repeats and compared on the other, both ways round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outpace.measure.bench.medians import median
from outpace.measure.bench.rows import ALL, Speedup, speedup_of
from outpace.measure.bench.sample import PLAIN, Condition, Sample

ROUTER = "auto"

Calls = Mapping[str, Sample]  # of one group, by strategy


@dataclass(frozen=True, slots=True)
class RouterComparison:
    """The router's speed relative to another one's, of calls that alternated on the same prompts.

    plain: relative to plain decoding. best: relative to the best fixed strategy (plain decoding may be it), chosen on
    even and on odd repeats (pairs, where everything was measured once); None: nothing was left to choose on.
    """

    condition: Condition
    category: str
    pairs: int
    plain: Speedup
    best: Speedup | None
    chosen: tuple[str, ...]


def compare_router(samples: Sequence[Sample]) -> list[RouterComparison]:
    """Return the comparison in every category and in all together; nothing if the router was not measured."""
    found = []
    for condition in dict.fromkeys(sample.condition for sample in samples):
        own = [sample for sample in samples if sample.condition == condition]
        for category in (*dict.fromkeys(sample.category for sample in own), ALL):
            groups = _groups([sample for sample in own if category in (sample.category, ALL)])
            if groups:
                found.append(_comparison(condition, category, groups))
    return found


def _groups(samples: Sequence[Sample]) -> list[Calls]:
    """Return the groups that the router answered, without calls that did not write plain decoding's sequences."""
    groups: dict[int, dict[str, Sample]] = {}
    for sample in samples:
        if sample.equal:
            groups.setdefault(sample.group, {})[sample.strategy] = sample
    return [calls for calls in groups.values() if ROUTER in calls and PLAIN in calls]


def _comparison(condition: Condition, category: str, groups: Sequence[Calls]) -> RouterComparison:
    repeats = [calls[PLAIN].repeat for calls in groups]
    keys = repeats if len(set(repeats)) > 1 else range(len(groups))
    halves: list[list[Calls]] = [[], []]
    for key, calls in zip(keys, groups, strict=True):
        halves[key % 2].append(calls)
    chosen = tuple(_best(half) for half in halves) if all(halves) else ()
    over_plain = [calls[ROUTER].rate / calls[PLAIN].rate for calls in groups]
    over_best = [
        calls[ROUTER].rate / calls[name].rate
        for half, name in zip(halves, reversed(chosen), strict=False)
        for calls in half
        if name in calls
    ]
    return RouterComparison(
        condition, category, len(groups), speedup_of(over_plain), speedup_of(over_best) if over_best else None, chosen
    )


def _best(groups: Sequence[Calls]) -> str:
    """Return the fixed strategy with the highest median speed beside plain decoding."""
    names = dict.fromkeys(name for calls in groups for name in calls if name != ROUTER)
    return max(names, key=lambda name: median(c[name].rate / c[PLAIN].rate for c in groups if name in c))
