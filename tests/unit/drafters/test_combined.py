import pytest

from outpace.drafters import Combined, Lookahead, NGram, Prediction, Suffix
from outpace.errors import DrafterError, UsageError
from outpace.types.tree import EMPTY, DraftTree
from tests.simulated import NO_PASS, SimulatedView, reciting, simulate, verify


class Fixed:
    """Always drafts the same tree, and keeps a diary."""

    def __init__(self, name, tree=EMPTY):
        self.name, self.taps, self.tree, self.diary = name, (), tree, []

    def propose(self, views, budgets):
        self.diary.append(("propose", list(budgets)))
        return [self.tree] * len(views)

    def observe(self, steps, passed):
        self.diary.append(("observe", list(steps)))

    def forget(self, request):
        self.diary.append(("forget", request))


def views(count=1):
    return [SimulatedView.start(number, [1]) for number in range(count)]


def test_trees_merge_under_one_budget_and_each_node_credits_all_who_proposed_it():
    one = Fixed("one", DraftTree.chain([1, 2, 3], "one", [0.9, 0.8, 0.1]))
    two = Fixed("two", DraftTree.chain([1, 5], "two", [0.5, 0.5]))
    [tree] = Combined([one, two]).propose(views(), [3])
    assert tree.tokens == (1, 2, 5)
    assert tree.sources == (("one", "two"), ("one",), ("two",))


def test_every_drafter_is_asked_with_the_whole_budget_of_every_request():
    drafters = [Fixed("one"), Fixed("two")]
    assert Combined(drafters).propose(views(2), [3, 0]) == [EMPTY, EMPTY]
    assert [drafter.diary for drafter in drafters] == [[("propose", [3, 0])]] * 2


def test_nobody_is_asked_when_there_is_no_budget():
    drafter = Fixed("one", DraftTree.chain([1], "one"))
    assert Combined([drafter]).propose(views(2), [0, 0]) == [EMPTY, EMPTY]
    assert drafter.diary == []


def test_every_drafter_observes_and_forgets():
    drafters = [Fixed("one"), Fixed("two")]
    combined, view = Combined(drafters), views()[0]
    step = verify(view, EMPTY, reciting([4]))
    combined.observe([step], NO_PASS)
    combined.forget(7)
    assert [drafter.diary for drafter in drafters] == [[("observe", [step]), ("forget", 7)]] * 2


def test_the_window_of_lookahead_survives_likelier_drafts_of_others():
    text = list(range(12))
    combined = Combined([NGram(), Lookahead(window=2, ngram=3)])
    trees = simulate(combined, reciting(text), text * 2, 100).trees
    assert {"ngram", "lookahead"} <= {name for tree in trees for credits in tree.sources for name in credits}
    for tree in trees[:-1]:  # at the very end, the budget holds no whole diagonal
        assert len(tree.reserved) >= 2
        assert all("lookahead" in tree.sources[node] for node in tree.reserved)


def test_a_combination_accepts_at_least_what_its_best_drafter_does():
    text = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    combined = simulate(Combined([NGram(), Suffix(), Prediction(text * 10)]), reciting(text), [3], 90, budget=30)
    alone = [simulate(drafter, reciting(text), [3], 90, budget=10) for drafter in (NGram(), Suffix())]
    assert len(combined.trees) <= min(len(run.trees) for run in alone)


def test_two_drafters_of_one_name_are_refused_until_one_is_renamed():
    other = NGram(max_ngram=2)
    for drafters in ([NGram(), other], [NGram(), Combined([other])]):
        with pytest.raises(UsageError, match=r"more than one 'ngram'.*rename it"):
            Combined(drafters)
    other.name = "bigram"
    trees = simulate(Combined([NGram(), other]), reciting([1, 2, 3]), [1, 2, 3], 20).trees
    assert ("ngram", "bigram") in {credits for tree in trees for credits in tree.sources}


def test_no_drafters_are_refused():
    with pytest.raises(UsageError, match="at least one drafter"):
        Combined([])


def test_a_drafter_that_returns_too_few_drafts_is_named():
    class Lazy(Fixed):
        def propose(self, views, budgets):
            return []

    with pytest.raises(DrafterError, match="'lazy' returned 0 drafts for 2 sequences"):
        Combined([Fixed("one"), Lazy("lazy")]).propose(views(2), [4, 4])
