"""What the n-th token costs, with the KV cache and without it: why the cache exists.

Measured at a few n, by starting from a text of n tokens: with the cache, the steps right after its prefill; without
it, one pass over everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.measure.bench.medians import Spread, accumulate, fit_exponent, median
from outpace.measure.progress import Progress, Work
from outpace.measure.prompts import builtin

SIZES = (16, 32, 64, 128, 256, 512, 1024, 1536, 2048)
WAYS = {"cache": "none", "no cache": "recompute"}  # way -> strategy
_STEPS = 8  # with the cache, after each prefill
_TAIL = 256  # exponents are fitted from here on: below, fixed costs hide the growth


@dataclass(frozen=True, slots=True)
class Point:
    """Seconds of one step that wrote the token after n others."""

    way: str
    n: int
    repeat: int
    seconds: float


def measure_growth(
    lm: LanguageModel, sizes: Sequence[int], repeats: int, progress: Progress | None = None
) -> Iterator[Point]:
    """Yield points, both ways in turn at every size; `progress` counts the tokens of the prompts.

    Raises UsageError for a size that the model's context or the built-in texts cannot fill.
    """
    background = lm.tokenizer.encode_text("\n\n".join(prompt.text for prompt in builtin()))
    longest = min(len(background), lm.runner.context - _STEPS - 1)
    wrong = [n for n in sizes if not 2 <= n <= longest]
    if wrong:
        raise UsageError(f"--sizes must be in [2, {longest}] for this model, got {', '.join(map(str, wrong))}")
    work = Work(repeats * len(WAYS) * sum(sizes), progress)
    for repeat, n, way in itertools.product(range(repeats), sizes, WAYS):
        work.begin(n, f"{n} tokens, {way}")
        for seconds in _seconds(lm, background[:n], way):
            yield Point(way, n, repeat, seconds)
    work.finish()


def _seconds(lm: LanguageModel, prompt: list[int], way: str) -> list[float]:
    """Return the seconds of steps that write what follows `prompt`: without the cache one, else a few."""
    steps = 1 if way == "no cache" else 1 + _STEPS
    result = lm.generate(prompt, strategy=WAYS[way], max_new_tokens=steps, ignore_eos=True, trace=True)
    assert result.trace is not None
    times = [step.times.total for step in result.trace.steps]
    return times if way == "no cache" else times[1:]  # the first of them belongs to the prefill


@dataclass(frozen=True, slots=True)
class Growth:
    """A way's curve: seconds at each size, the exponent e of seconds ~ n^e, and the seconds of all tokens so far."""

    way: str
    sizes: tuple[int, ...]
    seconds: tuple[Spread, ...]
    exponent: float | None  # None: fewer than two sizes from 256 on
    total: float


def summarise_growth(points: Sequence[Point]) -> list[Growth]:
    """Return the curve of each way, from the sizes that both ways have (a cut run may lack some)."""
    values: dict[tuple[str, int], list[float]] = {}
    for point in points:
        values.setdefault((point.way, point.n), []).append(point.seconds)
    sizes = sorted({n for _, n in values if all((way, n) in values for way in WAYS)})
    return [_growth(way, sizes, [values[way, n] for n in sizes]) for way in WAYS] if sizes else []


def _growth(way: str, sizes: list[int], values: list[list[float]]) -> Growth:
    middles = [median(seconds) for seconds in values]
    tail = [i for i, n in enumerate(sizes) if n >= _TAIL]
    exponent = fit_exponent([sizes[i] for i in tail], [middles[i] for i in tail]) if len(tail) > 1 else None
    return Growth(way, tuple(sizes), tuple(map(Spread.of, values)), exponent, accumulate(sizes, middles))


def growth_lines(curves: Sequence[Growth]) -> list[str]:
    """Return what the curves say, in words."""
    lines = []
    for c in curves:
        how = (
            f"grows like n^{c.exponent:.2f} from {_TAIL} tokens on"
            if c.exponent is not None
            else "too few sizes to fit"
        )
        lines.append(
            f"{c.way}: token {c.sizes[0]} takes {c.seconds[0].median * 1e3:.1f} ms, token {c.sizes[-1]} "
            f"{c.seconds[-1].median * 1e3:.1f} ms ({how}); all {c.sizes[-1]} tokens would take {c.total:.1f} s"
        )
    return lines
