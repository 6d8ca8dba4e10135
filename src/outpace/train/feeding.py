"""Plans of steps, made in a thread of their own while a device computes the steps before them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

P = TypeVar("P")
_AHEAD = 4  # plans that wait


@contextmanager
def feed(plan: Callable[[int], P], first: int, *, is_ahead: bool) -> Iterator[Iterator[P]]:
    """Give the plans of all steps from `first` on, each counted from 0.

    is_ahead: made in the background; what the planner raises there is raised here, in its turn. The thread has ended
    when the context is left.
    """
    if not is_ahead:
        yield map(plan, _from(first))
        return
    waiting: queue.Queue[P | Exception] = queue.Queue(_AHEAD)
    is_over = threading.Event()

    def fill() -> None:
        for step in _from(first):
            found: P | Exception
            try:
                found = plan(step)
            except Exception as error:
                found = error
            while not is_over.is_set():
                try:
                    waiting.put(found, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if is_over.is_set() or isinstance(found, Exception):
                return

    thread = threading.Thread(target=fill, name="outpace-feed", daemon=True)
    thread.start()
    try:
        yield _taken(waiting)
    finally:
        is_over.set()
        thread.join()


def _from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def _taken(waiting: queue.Queue[P | Exception]) -> Iterator[P]:
    while True:
        found = waiting.get()
        if isinstance(found, Exception):
            raise found
        yield found
