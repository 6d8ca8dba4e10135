import pytest

from outpace.drafters import NGram
from outpace.drafters.matching import trust
from outpace.errors import UsageError
from outpace.types.tree import EMPTY
from tests.simulated import SimulatedView


def draft(drafter, tokens, budget=8):
    return drafter.propose([SimulatedView.start(1, tokens)], [budget])[0]


def test_what_followed_the_last_tokens_before_is_drafted():
    assert draft(NGram(), [1, 2, 3, 4, 5, 9, 1, 2], 3).tokens == (3, 4, 5)


def test_a_longer_match_wins_over_a_more_recent_one():
    text = [1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]
    assert draft(NGram(), text, 1).tokens == (7,)
    assert draft(NGram(max_ngram=2), text, 1).tokens == (8,)


def test_of_equally_long_matches_the_most_recent_wins():
    assert draft(NGram(), [1, 2, 7, 1, 2, 8, 1, 2], 1).tokens == (8,)


def test_matches_shorter_than_min_ngram_do_not_count():
    assert draft(NGram(), [1, 2, 3, 1]) == EMPTY
    assert draft(NGram(min_ngram=1), [1, 2, 3, 1], 2).tokens == (2, 3)


def test_text_without_repetition_is_not_drafted():
    assert draft(NGram(min_ngram=1), list(range(50))) == EMPTY
    assert draft(NGram(min_ngram=1), [1]) == EMPTY


def test_a_short_period_is_drafted_as_far_as_the_budget_goes():
    assert draft(NGram(), [1, 2, 1, 2], 7).tokens == (1, 2, 1, 2, 1, 2, 1)
    assert draft(NGram(min_ngram=1), [5, 5], 3).tokens == (5, 5, 5)


def test_confidence_grows_with_the_match_and_down_the_chain():
    assert draft(NGram(), [1, 2, 3, 4, 5, 9, 1, 2], 3).confidence == (trust(2), trust(3), trust(4))
    assert draft(NGram(), [1, 2, 3, 4, 5, 9, 2, 3, 4], 1).confidence == (trust(3),)


def test_tokens_that_came_without_a_draft_are_indexed_later():
    drafter, view = NGram(), SimulatedView.start(1, [1, 2, 3, 4])
    drafter.propose([view], [8])
    view.tokens += [5, 6, 7, 1]
    assert drafter.propose([view], [0]) == [EMPTY]
    view.tokens += [9, 5, 6]
    assert drafter.propose([view], [2])[0].tokens == (7, 1)


@pytest.mark.parametrize("options", [{"min_ngram": 0}, {"max_ngram": 65}, {"min_ngram": 3, "max_ngram": 2}])
def test_lengths_that_cannot_work_are_refused_with_what_is_allowed(options):
    with pytest.raises(UsageError, match=r"\[1, 64\]"):
        NGram(**options)
