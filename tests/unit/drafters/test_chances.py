from __future__ import annotations

import math

import numpy as np
import pytest

from outpace.drafters.chances import chances_of_logprobs, chances_of_scores


def test_chances_fall_with_the_probability_and_leave_something_to_the_rest() -> None:
    chances = chances_of_logprobs([math.log(p) for p in (0.5, 0.2, 0.1)])
    assert chances == sorted(chances, reverse=True)
    assert 0.5 < chances[0] < 0.75
    assert 0.8 < sum(chances) < 1


@pytest.mark.parametrize("logprobs", [[0.0], [0.0, -80.0, -1000.0], []])
def test_a_certain_token_is_certain(logprobs: list[float]) -> None:
    chances = chances_of_logprobs(logprobs)
    assert chances[:1] == [1.0][: len(logprobs)]
    assert all(chance < 1e-30 for chance in chances[1:])


def test_the_lead_of_a_score_is_what_counts() -> None:
    close, clear = chances_of_scores([5.0, 4.9, 1.0], 0.8), chances_of_scores([5.0, 2.0, 1.0], 0.8)
    assert close[0] < clear[0] < 0.9
    assert close[1] > clear[1]
    assert chances_of_scores([-3.0], 0.8) == [0.9]
    assert chances_of_scores([], 0.8) == []


def test_at_a_low_temperature_a_lead_means_less() -> None:
    assert chances_of_scores([5.0, 3.0], 0.1)[0] < chances_of_scores([5.0, 3.0], 0.8)[0]


@pytest.mark.parametrize("spread", [0.5, 1.3])
def test_scores_with_gumbel_errors_have_about_these_chances(spread: float) -> None:
    """The target's scores are the drafter's and an error: 4,000 draws, five standard deviations of their mean."""
    rng, scores = np.random.default_rng(0), np.array([3.0, 2.0, 0.5, 0.0])
    drawn = (scores + rng.gumbel(scale=spread, size=(4000, 4))).argmax(axis=1)
    share = float((drawn == 0).mean())
    chance = chances_of_scores(scores.tolist(), 0.8)[0] / 0.9
    assert (abs(share - chance) < 0.04) == (spread == 1.3), "of the spread that they are for, and of no other"
