"""Plans of batches, made in a thread of their own while a device computes the steps before them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from outpace.train.batch import Plan

Planner = Callable[[int], Plan | None]  # of the batch of a step, counted from 0
_AHEAD = 4  # plans that wait


@contextmanager
def feed(plan: Planner, first: int, *, is_ahead: bool) -> Iterator[Iterator[Plan | None]]:
    """Give the plans of all steps from `first` on.

    is_ahead: made in the background and in pinned memory; what the planner raises there is raised here, in its turn.
    The thread has ended when the context is left.
    """
    if not is_ahead:
        yield map(plan, _from(first))
        return
    waiting: queue.Queue[Plan | Exception | None] = queue.Queue(_AHEAD)
    is_over = threading.Event()

    def fill() -> None:
        for step in _from(first):
            found: Plan | Exception | None
            try:
                found = plan(step)
                found = None if found is None else found.pinned()
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


def _taken(waiting: queue.Queue[Plan | Exception | None]) -> Iterator[Plan | None]:
    while True:
        found = waiting.get()
        if isinstance(found, Exception):
            raise found
        yield found
