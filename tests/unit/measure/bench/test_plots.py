from __future__ import annotations

import pytest

from outpace.errors import UsageError
from outpace.measure.bench import plots
from outpace.measure.bench.growth import Point, summarise_growth
from outpace.measure.bench.rows import summarise
from outpace.measure.bench.sample import Condition
from tests.unit.measure.bench.samples import sample

PNG = b"\x89PNG\r\n\x1a\n"
needs_matplotlib = pytest.mark.skipif(not plots.available(), reason="needs matplotlib")


@needs_matplotlib
def test_every_condition_has_its_two_pictures() -> None:
    sampled = Condition("sampled", 4, 512)
    samples = [
        sample(name, group, rate, condition=condition)
        for condition in (Condition("greedy", 1, 0), sampled)
        for group in range(6)
        for name, rate in (("none", 100), ("auto", 130))
    ]
    pictures = plots.plot_bench(summarise(samples))
    assert list(pictures) == [
        "speedup-0-greedy-batch1-context0.png", "split-0-greedy-batch1-context0.png",
        "speedup-1-sampled-batch4-context512.png", "split-1-sampled-batch4-context512.png",
    ]  # fmt: skip
    assert all(picture.startswith(PNG) for picture in pictures.values())


@needs_matplotlib
def test_a_run_that_was_cut_to_plain_decoding_can_still_be_drawn() -> None:
    assert len(plots.plot_bench(summarise([sample("none", 0, 100)]))) == 2


@needs_matplotlib
def test_growth_is_drawn_with_and_without_exponents() -> None:
    points = [Point(way, n, 0, n * 1e-4) for way in ("cache", "no cache") for n in (64, 512, 1024)]
    assert plots.plot_growth(summarise_growth(points)).startswith(PNG)
    assert plots.plot_growth(summarise_growth(points[::3])).startswith(PNG)


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    with pytest.raises(UsageError, match=r"pip install 'outpace\[bench\]'"):
        plots.plot_bench(summarise([sample("none", 0, 100)]))
