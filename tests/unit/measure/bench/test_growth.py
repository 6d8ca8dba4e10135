from __future__ import annotations

import json
from pathlib import Path

import pytest

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.measure.bench import files
from outpace.measure.bench.growth import Point, growth_lines, measure_growth, summarise_growth
from tests.unit.measure.bench.samples import ORIGIN


def test_both_ways_are_measured_at_every_size(lm: LanguageModel) -> None:
    reports: list[tuple[int, int, str]] = []
    points = list(measure_growth(lm, [16, 64], 2, lambda *report: reports.append(report)))
    assert {(p.way, p.n, p.repeat) for p in points} == {
        (way, n, repeat) for way in ("cache", "no cache") for n in (16, 64) for repeat in (0, 1)
    }
    assert [done for done, _, _ in reports] == [0, 16, 32, 96, 160, 176, 192, 256, 320]
    assert {total for _, total, _ in reports} == {320}
    assert all(p.seconds > 0 for p in points)
    assert sum(p.way == "cache" for p in points) == 4 * 8


def test_a_size_beyond_the_context_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="sizes must be in"):
        next(measure_growth(lm, [10**6], 1))


def curve(way: str, exponent: float) -> list[Point]:
    return [Point(way, n, 0, 1e-3 * (n / 256) ** exponent) for n in (64, 256, 512, 1024)]


def test_the_summary_fits_exponents_and_adds_up(tmp_path: Path) -> None:
    points = curve("cache", 0.0) + curve("no cache", 1.5)
    with_cache, without = summarise_growth(points)
    assert with_cache.exponent == pytest.approx(0.0, abs=1e-9)
    assert without.exponent == pytest.approx(1.5)
    assert with_cache.total == pytest.approx(1.024)
    assert "n^1.50" in growth_lines([without])[0]
    files.save_growth(tmp_path, points, ORIGIN, complete=True)
    assert len(json.loads((tmp_path / "growth.json").read_text())["samples"]) == 8
    assert "| 1024 | 1.00 (1.00 to 1.00) | 8.00 (8.00 to 8.00) | 8.0 |" in (tmp_path / "growth.md").read_text()


def test_a_cut_run_keeps_the_sizes_that_both_ways_have() -> None:
    points = [Point("cache", 64, 0, 1.0), Point("no cache", 64, 0, 2.0), Point("cache", 256, 0, 1.0)]
    assert [c.sizes for c in summarise_growth(points)] == [(64,), (64,)]
    assert "too few sizes" in growth_lines(summarise_growth(points))[0]
    assert summarise_growth(points[2:]) == []
