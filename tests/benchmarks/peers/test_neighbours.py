from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.peers.neighbours import Neighbour, check_neighbours
from benchmarks.peers.process import Worker
from benchmarks.peers.turns import Batch, Ourselves
from outpace.api import LanguageModel
from outpace.measure.bench.rows import Speedup

Start = Callable[..., Worker]
BATCH = Batch("a", [[5, 6, 7]])


class Spinner:
    """A peer whose threads go on for half a second after each answer, and the model that they slow down to a third."""

    def __init__(self, start: Start, monkeypatch: pytest.MonkeyPatch, spins: float) -> None:
        self.worker, self.spins, self.left, self.pauses = start(), spins, 0.0, 0
        monkeypatch.setattr(self.worker, "ask", self.ask)
        monkeypatch.setattr(Ourselves, "ask", lambda ours, order: self.answer(3.0 if self.left > 0 else 1.0))

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self.left = self.spins
        return self.answer(2.0)

    def answer(self, seconds: float) -> dict[str, Any]:
        return {"tokens": [[1]], "seconds": seconds + 0.5, "first_seconds": 0.5}

    def pause(self, seconds: float) -> None:
        self.pauses += 1
        self.left -= seconds


def test_a_neighbour_that_goes_on_computing_is_found(
    start: Start, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Spinner(start, monkeypatch, spins=0.5)
    (found,) = check_neighbours(lm, [peer.worker], BATCH, num_tokens=4, repeats=6, pause=peer.pause)
    assert found.ours.median == pytest.approx(1 / 3)
    assert found.its.median == 1.0  # we do not disturb it
    assert found.disturbed
    assert peer.pauses == 12


def test_a_quiet_neighbour_is_not_accused(start: Start, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Spinner(start, monkeypatch, spins=0.0)
    reports: list[tuple[int, int, str]] = []
    (found,) = check_neighbours(
        lm, [peer.worker], BATCH, num_tokens=4, repeats=6, pause=peer.pause,
        progress=lambda *report: reports.append(report),
    )  # fmt: skip
    assert (found.ours, found.its) == (Speedup(1.0, (1.0, 1.0)), Speedup(1.0, (1.0, 1.0)))
    assert not found.disturbed
    assert [done for done, _, _ in reports] == list(range(13))


def test_real_processes_can_be_compared(start: Start, lm: LanguageModel) -> None:
    (found,) = check_neighbours(lm, [start()], BATCH, num_tokens=4, repeats=1, pause=lambda seconds: None)
    assert (found.engine, found.variant) == ("llama_cpp", "plain")
    assert found.ours.median > 0
    assert found.its.median > 0


def test_an_engine_that_fails_is_left_out(start: Start, lm: LanguageModel) -> None:
    broken = Batch("a", [[299]])
    assert check_neighbours(lm, [start()], broken, num_tokens=4, repeats=1, pause=lambda seconds: None) == []


@pytest.mark.parametrize(
    ("interval", "disturbed"),
    [((0.9, 0.96), True), ((1.04, 1.1), True), ((0.9, 0.98), False), ((0.98, 1.02), False), (None, False)],
)
def test_it_takes_three_per_cent_with_confidence_to_be_disturbed(
    interval: tuple[float, float] | None, disturbed: bool
) -> None:
    one = Speedup(1.0, (0.99, 1.01))
    assert Neighbour("x", "plain", Speedup(1.0, interval), one).disturbed == disturbed
    assert Neighbour("x", "plain", one, Speedup(1.0, interval)).disturbed == disturbed
