import random

import pytest

from outpace.drafters import Prediction
from outpace.drafters.matching import trust
from outpace.errors import UsageError
from outpace.types.tree import EMPTY
from tests.simulated import SimulatedView, reciting, simulate

TEXT = random.Random(1).choices(range(1000), k=120)  # 120 tokens in which hardly anything repeats


def steps_to_write(text, prediction, budget=8):
    run = simulate(Prediction(prediction), lambda tokens: text[len(tokens) - 1], [5], len(text), budget)
    assert run.output == text
    return len(run.trees)


def test_text_that_was_foreseen_takes_one_step_per_full_draft():
    assert steps_to_write(TEXT, TEXT) == -(-len(TEXT) // 9)


@pytest.mark.parametrize("place", [0, 1, 30, 60, 110])
@pytest.mark.parametrize(
    ("edit", "removed", "added"),
    [
        ("one token replaced", 1, [2001]),
        ("two tokens replaced", 2, [2001, 2002]),
        ("one token put in", 0, [2001]),
        ("one token left out", 1, []),
        ("a sentence left out", 9, []),
        ("two tokens replaced by four", 2, [2001, 2002, 2003, 2004]),
    ],
)
def test_an_edit_costs_few_steps(place, edit, removed, added):
    text = TEXT[:place] + added + TEXT[place + removed :]
    unedited = -(-len(text) // 9)
    assert steps_to_write(text, TEXT) <= unedited + max(1, len(added)) + 2


def test_a_long_passage_put_in_costs_its_length_and_few_steps():
    added = list(range(3000, 3030))
    text = TEXT[:50] + added + TEXT[50:]
    assert steps_to_write(text, TEXT) <= -(-len(TEXT) // 9) + len(added) + 4


def test_edits_everywhere_still_save_most_steps():
    text = [token for at, token in enumerate(TEXT) if at % 20 != 10]
    text = [2000 + at if at % 19 == 5 else token for at, token in enumerate(text)]
    assert steps_to_write(text, TEXT) < len(text) / 3


def test_passages_that_changed_places_are_found_again():
    text = TEXT[80:] + TEXT[40:80] + TEXT[:40]
    assert steps_to_write(text, TEXT) <= -(-len(text) // 9) + 3 * 4


def test_the_place_is_taken_up_after_the_departure_rather_than_before_it():
    # "1 2 3" stands at both ends; lost in the middle, the output comes back to the later one.
    prediction = [1, 2, 3, 50, 51, 52, 53, 54, 55, 1, 2, 3, 60, 61]
    drafter = Prediction(prediction)
    view = SimulatedView.start(1, [9])
    view.tokens += [1, 2, 3, 50, 51, 52, 99, 98, 97, 96, 95, 1, 2, 3]
    assert drafter.propose([view], [2])[0].tokens == (60, 61)


def test_a_place_found_again_wrongly_does_not_lose_the_expected_one():
    # After the departure, "1 2 3" leads far ahead by mistake; the place after 52 is still the one to look from.
    prediction = [50, 51, 52, 53, 54, 55, 56, *range(100, 130), 1, 2, 3, 4, 54, 55, 56, 70]
    drafter = Prediction(prediction)
    view = SimulatedView.start(1, [9])
    view.tokens += [50, 51, 52, 1, 2, 3, 54, 55, 56]
    assert drafter.propose([view], [2])[0].tokens == (100, 101)


def test_while_lost_the_small_edits_are_guessed_side_by_side():
    drafter = Prediction([10, 11, 12, 13, 14, 15, 16])
    view = SimulatedView.start(1, [9])
    view.tokens += [10, 11, 14]
    tree = drafter.propose([view], [6])[0]
    starts = {tree.tokens[node] for node in tree.children(-1)}
    assert starts == {15, 13, 12}  # 12 and 13 left out; 12 replaced; 14 put in


def test_confidence_grows_while_the_output_agrees():
    drafter = Prediction(TEXT)
    view = SimulatedView.start(1, [9])
    assert drafter.propose([view], [2])[0].confidence == (trust(4), trust(5))
    view.tokens += TEXT[:10]
    assert drafter.propose([view], [2])[0].confidence == (trust(14), trust(15))


def test_nothing_is_drafted_when_the_prediction_is_used_up_or_the_output_is_another_text():
    drafter = Prediction(TEXT)
    done, other = SimulatedView.start(1, [9]), SimulatedView.start(2, [9])
    done.tokens += TEXT
    other.tokens += range(5000, 5040)
    assert drafter.propose([done, other], [8, 8]) == [EMPTY, EMPTY]


def test_all_requests_share_the_prediction_each_at_its_own_place():
    drafter = Prediction(TEXT)
    views = [SimulatedView.start(1, [9]), SimulatedView.start(2, [9, 9])]
    views[1].tokens += TEXT[:3]
    assert [tree.tokens for tree in drafter.propose(views, [2, 2])] == [tuple(TEXT[:2]), tuple(TEXT[3:5])]


def test_a_prediction_shorter_than_a_match_works():
    assert simulate(Prediction([1, 2]), reciting([1, 2]), [1, 2], 6).tokens_per_step >= 1.5


@pytest.mark.parametrize("given", ["some text", [1, -2], [1.5], ["a"]])
def test_what_is_not_token_ids_is_refused_with_what_to_do(given):
    with pytest.raises(UsageError, match="encode it first"):
        Prediction(given)


def test_an_empty_prediction_is_refused():
    with pytest.raises(UsageError, match="empty"):
        Prediction([])
