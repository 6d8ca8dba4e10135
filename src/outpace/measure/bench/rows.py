"""From samples to rows: one per condition, category and strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from outpace.measure.bench.medians import Spread, median, median_interval
from outpace.measure.bench.sample import PLAIN, Condition, Sample
from outpace.trace import PHASES

ALL = "all"


@dataclass(frozen=True, slots=True)
class Speedup:
    """Plain decoding's time / this one's, of calls in the same group. interval: 95 %, of the median; None: too few."""

    median: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Numbers:
    """What samples came to. rate: tokens/s. speedup: of decoding; whole: of the call, prefill included.

    split: shares of decoding time, by phase. bandwidth_fraction: of a streaming read.
    """

    rate: Spread
    speedup: Speedup | None  # None: plain decoding itself
    whole: Speedup | None
    tokens_per_step: float
    acceptance: float | None  # None: nothing was drafted
    split: dict[str, float]
    bytes_per_token: float
    bandwidth_fraction: float
    first_seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """Samples that wrote plain decoding's sequences (None: none did). unequal: how many did not, and do not count."""

    condition: Condition
    category: str
    strategy: str
    calls: int
    unequal: int
    numbers: Numbers | None


def summarise(samples: Sequence[Sample]) -> list[Row]:
    """Return rows of every category, and of all together, in the order in which samples came."""
    rows = []
    for condition in dict.fromkeys(sample.condition for sample in samples):
        own = [sample for sample in samples if sample.condition == condition]
        plain = {sample.group: sample for sample in own if sample.strategy == PLAIN}
        for category in (*dict.fromkeys(sample.category for sample in own), ALL):
            for strategy in dict.fromkeys(sample.strategy for sample in own):
                chosen = [s for s in own if s.strategy == strategy and category in (s.category, ALL)]
                if chosen:
                    rows.append(_row(condition, category, strategy, chosen, plain))
    return rows


def _row(
    condition: Condition, category: str, strategy: str, samples: Sequence[Sample], plain: dict[int, Sample]
) -> Row:
    good = [sample for sample in samples if sample.equal]
    numbers = _numbers(good, plain) if good else None
    return Row(condition, category, strategy, len(good), len(samples) - len(good), numbers)


def _numbers(good: Sequence[Sample], plain: dict[int, Sample]) -> Numbers:
    seconds = sum(s.decode_seconds for s in good)
    verified = sum(s.verified for s in good)
    tokens = sum(s.decode_tokens for s in good)
    return Numbers(
        rate=Spread.of([s.rate for s in good]),
        speedup=_speedup(good, plain, lambda s, base: s.rate / base.rate),
        whole=_speedup(good, plain, lambda s, base: base.seconds / s.seconds),
        tokens_per_step=tokens / sum(s.steps for s in good),
        acceptance=sum(s.accepted for s in good) / verified if verified else None,
        split={phase: sum(s.phases[phase] for s in good) / seconds for phase in PHASES},
        bytes_per_token=sum(s.num_bytes for s in good) / tokens,
        bandwidth_fraction=median(s.num_bytes / s.decode_seconds / (s.bandwidth * 1e9) for s in good),
        first_seconds=median(s.first_seconds for s in good),
    )


def _speedup(
    samples: Iterable[Sample], plain: dict[int, Sample], ratio: Callable[[Sample, Sample], float]
) -> Speedup | None:
    """Return the median of paired ratios; None for plain decoding itself."""
    ratios = [ratio(s, plain[s.group]) for s in samples if s.strategy != PLAIN]
    return speedup_of(ratios) if ratios else None


def speedup_of(ratios: Sequence[float]) -> Speedup:
    """Return the median of paired ratios, at least one, with its interval."""
    return Speedup(median(ratios), median_interval(ratios))
