from __future__ import annotations

from typing import Any

import pytest

from outpace.errors import UsageError
from outpace.train.settings import TrainSettings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "needs an end"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 5, "format": "Q2"}, "unknown format 'Q2'"),
        ({"steps": 5, "clip": -1.0}, "clip must be in"),
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainSettings(**wrong)


def test_a_run_is_over_by_the_first_of_its_ends() -> None:
    assert TrainSettings(steps=10).done(5, 1e9) == 0.5
    assert TrainSettings(budget_s=60).done(5, 15) == 0.25
    assert TrainSettings(budget_s=60).done(5, 61) == 1.0
    both = TrainSettings(steps=10, budget_s=60)
    assert [both.done(2, 59), both.done(2, 60), both.done(10, 1)] == [0.2, 1.0, 1.0]


def test_they_are_plain_values_in_a_checkpoint() -> None:
    values = TrainSettings(steps=3, taps=(1, 2)).as_dict()
    assert values["taps"] == [1, 2]
    assert values["steps"] == 3
