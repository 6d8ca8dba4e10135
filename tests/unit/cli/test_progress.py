from __future__ import annotations

import io

import pytest
from rich.console import Console

from outpace.cli.progress import Estimate, clock_time, progress_on_stderr


class Clock:
    """A clock that tells what it was set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_estimate_takes_the_rest_to_be_as_fast_as_what_is_done() -> None:
    clock = Clock()
    estimate = Estimate(clock)
    estimate.update(0, 10)
    assert str(estimate) == ""
    clock.now += 60
    estimate.update(4, 10)
    assert str(estimate) == ", about 1:30 left"
    clock.now += 20  # within the next piece
    assert str(estimate) == ", about 1:10 left"
    assert estimate.elapsed == 80
    clock.now += 100
    assert str(estimate) == ", about 0:00 left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (-1, "0:00")]
)
def test_times_read_like_a_clock(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_without_a_terminal_a_line_comes_at_once_and_then_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with progress_on_stderr(console=Console(file=io.StringIO()), clock=clock) as show:
        for done in range(0, 30, 3):
            show(done, 30, f"piece {done}")
            clock.now += 3
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "0 % done in 0:00; piece 0",
        "40 % done in 0:12, about 0:18 left; piece 12",
        "80 % done in 0:24, about 0:06 left; piece 24",
    ]


def test_short_work_needs_no_line_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with progress_on_stderr(at_once=False, console=Console(file=io.StringIO()), clock=clock) as show:
        show(0, 2, "first")
        clock.now += 5
        show(1, 2, "second")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_vanishes() -> None:
    clock, screen = Clock(), io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with progress_on_stderr(console=console, clock=clock) as show:
        clock.now += 30
        show(1, 4, "bf16, greedy: [suffix]")
    shown = screen.getvalue()
    assert "25%" in shown
    assert "0:30, about 1:30 left" in shown
    assert "bf16, greedy: [suffix]" in shown
