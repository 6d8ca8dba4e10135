from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

import outpace
from outpace.api import LanguageModel
from outpace.errors import EngineError
from outpace.train.text.answers import in_order


def test_answers_come_in_order_whoever_is_first(lm: LanguageModel) -> None:
    first_may_end = threading.Event()

    def work(job: int) -> int:
        if job == 0:
            assert first_may_end.wait(20)
        elif job == 5:
            first_may_end.set()
        return 10 * job

    assert list(in_order(lm, range(9), work, 3, lambda: True)) == [10 * job for job in range(9)]


def test_what_was_begun_is_finished_when_no_more_is_wanted(lm: LanguageModel) -> None:
    begun: list[int] = []

    def work(job: int) -> int:
        begun.append(job)
        return job

    found = list(in_order(lm, range(1000), work, 2, lambda: len(begun) < 10))
    assert found == list(range(len(found)))
    assert sorted(begun) == found
    assert 10 <= len(found) <= 14


def test_no_more_than_so_many_run_at_once(lm: LanguageModel) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(job: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0)
        with lock:
            running -= 1

    list(in_order(lm, range(60), work, 3, lambda: True))
    assert most <= 3


def test_a_failure_is_raised_and_closes_the_model(folder: Path) -> None:
    own = outpace.load(folder, threads=1)

    def work(job: int) -> int:
        if job == 3:
            raise ValueError("three")
        return job

    with pytest.raises(ValueError, match="three"):
        list(in_order(own, range(9), work, 2, lambda: True))
    with pytest.raises(EngineError):
        own.generate([1, 2])


def test_whoever_leaves_early_waits_for_nothing(folder: Path) -> None:
    """A text of 2,000 tokens is under way: closing the model ends it."""
    own = outpace.load(folder, threads=1)

    def work(job: int) -> int:
        return len(own.generate([2, 3, 4], max_new_tokens=1 if job == 0 else 2000, ignore_eos=True).tokens)

    with closing(in_order(own, range(9), work, 2, lambda: True)) as results:
        assert next(results) == 1
    with pytest.raises(EngineError):
        own.generate([1, 2])
