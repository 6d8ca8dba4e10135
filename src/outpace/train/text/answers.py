"""Requests to the target, many at once, their results in the order they were asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from outpace.api import LanguageModel

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def in_order(
    lm: LanguageModel, jobs: Iterable[Job], work: Callable[[Job], Answer], at_once: int, go_on: Callable[[], bool]
) -> Generator[Answer, None, None]:
    """Yield `work(job)` for each job, in order, while `go_on` says so; calls from `at_once` threads share passes.

    What was begun is finished and yielded. A caller that leaves early, by an exception or Ctrl-C, closes the model:
    nothing of what is under way is waited for.
    """
    waiting: deque[Future[Answer]] = deque()
    source = iter(jobs)
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while True:
                going = go_on()
                while going and len(waiting) < 2 * at_once:
                    try:
                        waiting.append(pool.submit(work, next(source)))
                    except StopIteration:
                        break
                while not going and waiting and waiting[-1].cancel():
                    waiting.pop()  # not begun yet
                if not waiting:
                    return
                yield waiting.popleft().result()
        except BaseException:
            for future in waiting:
                future.cancel()
            lm.close()
            raise
