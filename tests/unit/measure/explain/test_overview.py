from __future__ import annotations

import pytest

from outpace.measure.explain import overview
from outpace.trace import Forecast
from tests.traces import Story, small_story


def test_the_headline_counts_tokens_and_steps() -> None:
    trace = small_story().as_dict()
    assert overview.headline(trace) == "This text took 3 steps for 5 tokens"
    assert overview.lead(trace) == "1.7× fewer passes through the model than one token at a time."


def test_nothing_is_claimed_where_nobody_drafted_or_nothing_was_saved() -> None:
    assert "plain decoding" in overview.lead(Story().step("a").step("b").as_dict())
    wrong = Story().step("a").step("b", [("x", -1, "ngram", 0.5)])
    assert "saved nothing" in overview.lead(wrong.as_dict())
    assert overview.lead(Story().as_dict()) == "No token was written."


def test_acceptance_is_counted_by_depth_and_by_drafter() -> None:
    steps = small_story().as_dict()["steps"]
    assert overview.by_depth(steps) == [
        {"verified": 3, "reached": 3, "accepted": 1},
        {"verified": 1, "reached": 1, "accepted": 1},
        {"verified": 1, "reached": 1, "accepted": 0},
        {"verified": 1, "reached": 0, "accepted": 0},
    ]
    assert overview.by_drafter(steps) == [
        {"name": "ngram", "verified": 5, "accepted": 2, "steps": 2},
        {"name": "suffix", "verified": 2, "accepted": 1, "steps": 1},
    ]


def test_drafters_that_agreed_own_a_token_together() -> None:
    owners = overview.owners(small_story().as_dict())
    assert {tuple(o["names"]): o["tokens"] for o in owners} == {("ngram", "suffix"): 1, ("ngram",): 1, ("suffix",): 0}


def test_a_drafter_is_explained_and_its_confidence_held_against_what_came_true() -> None:
    story = Story().step("a")
    for turn in range(10):
        tree = [("b", -1, "eagle", 0.75), ("x", 0, "eagle", 0.5), ("y", -1, "mine", 0.1)]
        story.step("bc" if turn < 8 else "c", tree, path=(0,) if turn < 8 else ())
    eagle, mine = overview.guessers(story.as_dict()["steps"])
    assert eagle["name"] == "eagle"
    assert "hidden states" in eagle["about"]
    # 10 guesses "b", and 8 "x" whose parent was right: (10 * 0.75 + 8 * 0.5) / 18, and 8 / 18 right.
    assert eagle["sure"] == "18 of its guesses came to the test. It was 64% sure of them on average; 44% were right."
    assert mine == {
        "name": "mine",
        "about": "",
        "sure": "10 of its guesses came to the test. It was 10% sure of them on average; 0% were right.",
    }


def test_a_few_guesses_say_nothing_of_a_drafters_confidence() -> None:
    story = Story().step("a").step("b", [("x", -1, "ngram", 0.5)])
    assert [row["sure"] for row in overview.guessers(story.as_dict()["steps"])] == [""]


def test_every_token_takes_its_share_of_a_step() -> None:
    trace = small_story().as_dict()
    assert overview.step_shares(trace) == [1, 1 / 3, 1 / 3, 1 / 3, 1]


def test_tokens_that_a_stop_string_cut_off_take_no_share() -> None:
    trace = small_story().as_dict()
    for field in ("tokens", "pieces", "sources"):
        trace[field] = trace[field][:3]
    assert overview.step_shares(trace) == [1, 1 / 2, 1 / 2]


def test_the_comparison_with_plain_decoding_uses_the_routers_prediction() -> None:
    forecast = Forecast(2.0, 0.0, 0.02, 0.01, "drafting pays")
    story = Story().step("a", seconds=9.0)
    for _ in range(4):
        story.step("c", [("b", -1, "ngram", 0.9)], path=(0,), seconds=0.016, forecast=forecast)
    speed = overview.compare_with_plain(story.as_dict())
    assert speed is not None
    assert speed["seconds"] == pytest.approx(4 * 0.016)
    assert speed["plain_seconds"] == pytest.approx(8 * 0.01)
    assert "1.2× as fast" in overview.speed_sentence(speed)
    assert "router's prediction" in overview.speed_sentence(speed)


def test_without_a_router_the_texts_own_plain_steps_tell_and_a_loss_is_called_one() -> None:
    story = Story().step("a")
    for _ in range(3):
        story.step("b", seconds=0.01)
    story.step("d", [("x", -1, "ngram", 0.9)], seconds=0.05)
    speed = overview.compare_with_plain(story.as_dict())
    assert "0.50× as fast" in overview.speed_sentence(speed)
    assert "its 3 steps without a draft" in overview.speed_sentence(speed)


def test_times_that_other_texts_shared_are_not_compared() -> None:
    story = Story().step("a")
    for _ in range(3):
        story.step("b", batch=2)
    story.step("d", [("c", -1, "ngram", 0.9)], path=(0,))
    assert overview.compare_with_plain(story.as_dict()) is None


def test_the_example_has_right_guesses_and_a_wrong_one() -> None:
    assert overview.example(small_story().as_dict()["steps"]) == 1
    assert overview.example(Story().step("a").as_dict()["steps"]) is None
