import pytest

from outpace.drafters import Suffix, suffix
from outpace.drafters.matching import trust
from outpace.errors import UsageError
from outpace.types.tree import EMPTY
from tests.simulated import SimulatedView, reciting, simulate


def draft(drafter, tokens, budget=8, number=1):
    return drafter.propose([SimulatedView.start(number, tokens)], [budget])[0]


def paths(tree):
    return {tuple(tree.tokens[n] for n in tree.path(node)): tree.confidence[node] for node in range(len(tree))}


def test_the_longest_match_at_any_length_is_continued():
    passage = list(range(100, 140))
    text = [*passage, 1, 2, 3, 9, 138, 139, 5, 5, *passage]
    tree = draft(Suffix(), text, 2)
    assert tree.tokens == (1, 2)
    assert tree.confidence == (trust(40), trust(41))


def test_several_continuations_share_the_trust_by_how_often_they_came():
    text = [1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 4, 5, 1, 2]
    nodes = paths(draft(Suffix(min_score=0.0), text, 12))
    assert nodes[(3,)] == pytest.approx(trust(2) * 3 / 4)
    assert nodes[(4,)] == pytest.approx(trust(2) * 1 / 4)
    assert nodes[(3, 0)] == trust(3)  # given that its parent was accepted


def test_the_most_frequent_continuation_comes_first():
    text = [1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 4, 5, 1, 2]
    assert draft(Suffix(), text, 1).tokens == (3,)


def test_at_most_max_branches_continuations_of_a_match_are_tried():
    text = [token for last in range(10, 20) for token in (1, 2, last)] + [1, 2]
    assert len(draft(Suffix(min_score=0.0, max_branches=2), text, 20).children(-1)) == 2
    assert len(draft(Suffix(min_score=0.0, max_branches=10), text, 20).children(-1)) == 10


def test_a_shorter_match_adds_what_else_may_come():
    text = [7, 1, 2, 3, 0, 8, 1, 2, 4, 5, 7, 1, 2]  # "7 1 2" went on with 3, "1 2" also with 4
    nodes = paths(draft(Suffix(min_score=0.0), text, 20))
    assert nodes[(3,)] == trust(3)
    assert nodes[(4,)] == pytest.approx((1 - trust(3)) * trust(2) / 2)


def test_what_a_longer_match_proposed_is_not_proposed_again_by_a_shorter_one():
    text = [7, 1, 2, 3, 0, 8, 1, 2, 3, 5, 6, 7, 1, 2]  # "7 1 2" and "1 2" both say 3, and then not the same
    nodes = paths(draft(Suffix(min_score=0.0), text, 30))
    assert nodes[(3,)] == trust(3)
    assert nodes[(3, 0)] == trust(4)
    assert nodes[(3, 5)] == pytest.approx((1 - trust(4)) * trust(3) / 2)


def test_nodes_that_are_hardly_ever_reached_are_left_out():
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]
    tree = draft(Suffix(min_score=0.4), text, 20)
    assert tree.tokens == (3, 4, 5)  # 2/3, 2/4, 2/5; the next would be reached and accepted with 2/6
    assert len(draft(Suffix(min_score=0.0), text, 20)) == 20


def test_a_match_that_runs_into_the_end_of_the_text_goes_on_with_the_one_before_it():
    assert draft(Suffix(min_score=0.0, max_branches=1), [1, 2, 3, 1, 2, 3], 7).tokens[:7] == (1, 2, 3, 1, 2, 3, 1)


def test_matches_below_min_match_are_not_drafted():
    assert draft(Suffix(), [1, 2, 3, 1]) == EMPTY
    assert draft(Suffix(min_match=1), [1, 2, 3, 1], 1).tokens == (2,)
    assert draft(Suffix(min_match=1), [1]) == EMPTY


def test_past_requests_are_drafted_from_only_if_that_was_asked_for():
    for remember, expected in ((False, ()), (True, (5, 6, 7))):
        drafter = Suffix(remember=remember)
        draft(drafter, [1, 2, 3, 4, 5, 6, 7])
        drafter.forget(1)
        assert draft(drafter, [9, 3, 4], 3, number=2).tokens == expected


def test_what_was_written_in_the_last_step_is_remembered_too():
    drafter = Suffix(remember=True)
    simulate(drafter, reciting(list(range(30))), [0], 25, budget=4)
    assert draft(drafter, [99, 22, 23], 2, number=2).tokens == (24, 25)


def test_memory_of_past_requests_is_bounded_and_drops_the_oldest(monkeypatch):
    monkeypatch.setattr(suffix, "_MEMORY_TOKENS", 100)
    drafter = Suffix(remember=True)
    for number in range(50):
        draft(drafter, list(range(10 * number, 10 * number + 10)), number=number)
        drafter.forget(number)
        memory = drafter._memory
        assert memory._older.num_appended + memory._newer.num_appended <= 100
    assert draft(drafter, [490, 491], 1, number=100).tokens == (492,)  # the last request
    assert draft(drafter, [450, 451], 1, number=101).tokens == (452,)  # within the last 50 tokens
    assert draft(drafter, [300, 301], 1, number=102) == EMPTY


def test_a_text_longer_than_the_memory_is_remembered_by_its_end(monkeypatch):
    monkeypatch.setattr(suffix, "_MEMORY_TOKENS", 100)
    drafter = Suffix(remember=True)
    draft(drafter, list(range(500)))
    drafter.forget(1)
    assert draft(drafter, [480, 481], 1, number=2).tokens == (482,)
    assert draft(drafter, [100, 101], 1, number=3) == EMPTY


def test_one_requests_text_and_memory_both_propose():
    drafter = Suffix(remember=True, min_score=0.0)
    draft(drafter, [1, 2, 3, 4])
    drafter.forget(1)
    nodes = paths(draft(drafter, [1, 2, 7, 8, 1, 2], 8, number=2))
    assert {(3,), (7,)} <= set(nodes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_match": 0}, r"min_match must be in \[1, 32\], got 0"),
        ({"max_branches": 0}, r"max_branches must be in \[1, 64\], got 0"),
        ({"min_score": 1.5}, r"min_score must be in \[0, 1\], got 1.5"),
        ({"min_score": float("nan")}, r"min_score must be in \[0, 1\], got nan"),
    ],
)
def test_options_that_cannot_work_are_refused_with_what_is_allowed(options, message):
    with pytest.raises(UsageError, match=message):
        Suffix(**options)
