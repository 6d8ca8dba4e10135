"""Progress of a long measurement: how much of it is done, out of how much, and what comes next."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what): `done` of `total` units of work are finished, `what` has begun."""


class Work:
    """Work of a known size, reported piece by piece. A unit should take about the same time everywhere."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.done = total, 0
        self._progress, self._pending = progress, 0

    def begin(self, units: int, what: str) -> None:
        """Report that a piece of `units` begins; it counts as done when the next one begins."""
        self.done, self._pending = self.done + self._pending, units
        if self._progress is not None:
            self._progress(self.done, self.total, what)

    def finish(self) -> None:
        """Report that all work is done."""
        self.begin(0, "")
