from __future__ import annotations

from dataclasses import replace

import pytest

from outpace.measure.bench.medians import Spread
from outpace.measure.bench.rows import Row, summarise
from tests.unit.measure.bench.samples import GREEDY, sample


def rows_of(*samples: object) -> dict[tuple[str, str], Row]:
    return {(row.category, row.strategy): row for row in summarise(samples)}  # type: ignore[arg-type]


def test_a_speed_up_is_the_median_of_pairs_in_the_same_group() -> None:
    """The machine got slower and slower: rates alone would tell another story."""
    samples = []
    for group, plain in enumerate((100, 80, 60, 40, 20, 10, 5)):
        samples += [sample("none", group, plain), sample("auto", group, 1.5 * plain)]
    numbers = rows_of(*samples)["chat", "auto"].numbers
    assert numbers is not None
    assert numbers.speedup is not None
    assert numbers.speedup.median == pytest.approx(1.5)
    assert numbers.speedup.interval == pytest.approx((1.5, 1.5))
    assert numbers.rate == Spread(60.0, pytest.approx(22.5), pytest.approx(105.0))
    plain_numbers = rows_of(*samples)["chat", "none"].numbers
    assert plain_numbers is not None
    assert plain_numbers.speedup is None


def test_a_whole_call_counts_its_prefill() -> None:
    numbers = rows_of(sample("none", 0, 100), sample("auto", 0, 200))["all", "auto"].numbers
    assert numbers is not None
    assert numbers.whole is not None
    assert numbers.whole.median == pytest.approx(1.1 / 0.6)


def test_a_call_that_wrote_another_text_does_not_count_and_is_named() -> None:
    samples = [
        sample("none", 0, 100), sample("auto", 0, 900, equal=False), sample("none", 1, 100), sample("auto", 1, 120),
    ]  # fmt: skip
    rows = rows_of(*samples)
    row = rows["all", "auto"]
    assert (row.calls, row.unequal) == (1, 1)
    assert row.numbers is not None
    assert row.numbers.rate.median == pytest.approx(120)
    alone = rows_of(samples[0], samples[1])["all", "auto"]
    assert alone.numbers is None


def test_shares_bytes_and_acceptance_add_up() -> None:
    row = rows_of(sample("none", 0, 50), sample("auto", 0, 100, steps=40, verified=80, accepted=60))["all", "auto"]
    numbers = row.numbers
    assert numbers is not None
    assert sum(numbers.split.values()) == pytest.approx(1.0)
    assert numbers.split["forward"] == pytest.approx(0.5)
    assert (numbers.tokens_per_step, numbers.acceptance) == (2.5, 0.75)
    assert numbers.bytes_per_token == 10_000_000
    assert numbers.bandwidth_fraction == pytest.approx(0.1)


def test_categories_conditions_and_all_have_rows_of_their_own() -> None:
    sampled = replace(GREEDY, sampling="sampled")
    samples = [
        sample("none", 0, 50), sample("none", 1, 70, category="code"), sample("none", 2, 90, condition=sampled),
    ]  # fmt: skip
    keys = [(row.condition.sampling, row.category) for row in summarise(samples)]
    assert keys == [("greedy", "chat"), ("greedy", "code"), ("greedy", "all"), ("sampled", "chat"), ("sampled", "all")]
