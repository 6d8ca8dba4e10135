"""The router beside plain decoding and the best fixed strategy, on samples made by hand."""

from __future__ import annotations

import pytest

from outpace.measure.bench.router_comparison import RouterComparison, compare_router
from outpace.measure.bench.sample import Sample
from tests.unit.measure.bench.samples import sample


def groups(*rates: tuple[float, ...], repeats: int = 2, **overrides: object) -> list[Sample]:
    """Return samples of plain, auto, ngram and suffix: one group per tuple of rates, repeats by turns."""
    names = ("none", "auto", "ngram", "suffix")
    return [
        sample(name, group, rate, repeat=group % repeats, **overrides)
        for group, own in enumerate(rates)
        for name, rate in zip(names, own, strict=True)
    ]


def only(samples: list[Sample]) -> RouterComparison:
    chat, together = compare_router(samples)
    assert (chat.category, together.category) == ("chat", "all")
    return chat


def test_the_router_is_compared_with_plain_and_the_best_fixed_strategy() -> None:
    found = only(groups(*[(100, 120, 110, 150)] * 8))
    assert (found.pairs, found.chosen) == (8, ("suffix", "suffix"))
    assert found.plain.median == pytest.approx(1.2)
    assert found.best is not None
    assert found.best.median == pytest.approx(0.8)
    assert found.best.interval == pytest.approx((0.8, 0.8))


def test_what_was_best_on_one_half_is_compared_on_the_other() -> None:
    """Luck does not count: each strategy shone on one half only, and is measured where it did not."""
    found = only(groups(*[(100, 100, 140, 90), (100, 100, 80, 140)] * 3))
    assert found.chosen == ("ngram", "suffix")
    assert found.best is not None
    assert found.best.interval == pytest.approx((100 / 90, 100 / 80))


def test_plain_decoding_may_be_the_best_fixed_strategy() -> None:
    found = only(groups(*[(100, 98, 90, 80)] * 4))
    assert found.chosen == ("none", "none")
    assert found.best == found.plain


def test_pairs_are_halved_where_everything_was_measured_once() -> None:
    found = only(groups(*[(100, 120, 110, 150)] * 4, repeats=1))
    assert found.chosen == ("suffix", "suffix")
    alone = only(groups((100, 120, 110, 150)))
    assert (alone.pairs, alone.best, alone.chosen) == (1, None, ())


def test_other_texts_do_not_count() -> None:
    samples = groups(*[(100, 120, 110, 150)] * 4)
    wrong = [sample("none", 9, 100), sample("auto", 9, 900, equal=False), sample("suffix", 9, 110)]
    assert only(samples + wrong) == only(samples)


def test_without_the_router_there_is_nothing_to_say() -> None:
    assert compare_router([sample("none", 0, 100), sample("suffix", 0, 120)]) == []
    assert compare_router([]) == []
