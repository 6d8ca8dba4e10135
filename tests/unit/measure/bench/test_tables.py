from __future__ import annotations

from outpace.measure.bench.router_comparison import compare_router
from outpace.measure.bench.rows import Speedup, summarise
from outpace.measure.bench.sample import Condition
from outpace.measure.bench.tables import bench_markdown, headlines, origin, ratio_cell, title
from tests.unit.measure.bench.samples import ORIGIN, sample


def test_calls_that_wrote_other_tokens_are_named() -> None:
    samples = [
        sample("none", 0, 100), sample("auto", 0, 900, equal=False), sample("none", 1, 100), sample("auto", 1, 120),
    ]  # fmt: skip
    rows = summarise(samples)
    assert "1, 1 UNEQUAL" in bench_markdown(rows, compare_router(samples), ORIGIN, True)
    assert headlines(rows)[1] == (
        "Greedy, batch 1: auto: 120 tokens/s, speed-up 1.20; not counted: 1 call that wrote OTHER TOKENS"
    )
    assert "NO call" in headlines(summarise(samples[:2]))[1]


def test_the_router_has_a_table_where_it_was_measured() -> None:
    samples = [s for g in range(4) for s in (sample("none", g, 100, repeat=g), sample("auto", g, 150, repeat=g))]
    assert "| **all** | 4 | 1.50 | 1.50 | none |" in bench_markdown(
        summarise(samples), compare_router(samples), ORIGIN, True
    )
    plain = samples[::2]
    assert "best fixed" not in bench_markdown(summarise(plain), compare_router(plain), ORIGIN, True)


def test_a_ratio_has_its_interval_where_there_are_enough_pairs() -> None:
    assert ratio_cell(Speedup(1.234, (1.1, 1.3))) == "1.23 (1.10 to 1.30)"
    assert ratio_cell(Speedup(1.234, None)) == "1.23"
    assert ratio_cell(None) == ""


def test_a_condition_and_an_origin_are_told_in_words() -> None:
    assert title(Condition("greedy", 4, 512)) == "Greedy, batch 4, at least 512 tokens of prompt"
    assert "no checkout" in origin(ORIGIN)
    assert "reference ops, avx2, 1 threads" in origin({**ORIGIN, "isa": "avx2"})
