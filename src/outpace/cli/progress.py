"""Show how far a long command is and how long it will take: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from outpace.cli.streams import note

if TYPE_CHECKING:
    from rich.console import Console

Show = Callable[[int, int, str], None]  # (done, total, what is under way)

_PAUSE = 10.0  # seconds between two lines where there is no terminal


class Estimate:
    """How long work will still take, if the rest goes as fast as what is done. Seconds of `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = self._asked = clock()
        self._left: float | None = None

    def update(self, done: float, total: float) -> None:
        """Note that `done` of `total` is finished now."""
        self._asked = self._clock()
        self._left = (self._asked - self._started) * (total - done) / done if done else None

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def __str__(self) -> str:
        if self._left is None:
            return ""
        return f", about {clock_time(self._left - (self._clock() - self._asked))} left"


def clock_time(seconds: float) -> str:
    """Return 0:05, 12:34 or 1:02:03."""
    minutes, seconds = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def progress_on_stderr(
    *, at_once: bool = True, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Show]:
    """Give the callback that shows progress on standard error; the bar vanishes at the end.

    at_once: whether the first line, where there is no terminal, is due at once or only when the work takes long.
    """
    console = console or stderr_console()
    estimate = Estimate(clock)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _lines(estimate, at_once)
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
    from rich.text import Text

    class Times(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            return Text(f"{clock_time(estimate.elapsed)}{estimate}")

    columns = (BarColumn(bar_width=20), TaskProgressColumn(), Times(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(done: int, total: int, what: str) -> None:
            estimate.update(done, total)
            bar.update(task, description=what, completed=done, total=total)

        yield show


def _lines(estimate: Estimate, at_once: bool) -> Show:
    due = 0.0 if at_once else _PAUSE

    def show(done: int, total: int, what: str) -> None:
        nonlocal due
        estimate.update(done, total)
        if estimate.elapsed >= due and what:
            due = estimate.elapsed + _PAUSE
            note(f"{100 * done // max(total, 1)} % done in {clock_time(estimate.elapsed)}{estimate}; {what}")

    return show


def stderr_console() -> Console:
    """Return rich's console on standard error; what a command produces never goes through it."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)
