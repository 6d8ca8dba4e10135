from hypothesis import given
from hypothesis import strategies as st

from outpace.engine.verify import match
from outpace.tree import EMPTY, NO_TOKEN, DraftTree
from tests.unit.test_tree import trees


def test_an_empty_draft_gives_the_targets_own_token():
    assert match(EMPTY, [7]) == ([], 7)


def test_full_acceptance_ends_with_the_bonus_token():
    assert match(DraftTree.chain([5, 6], "a"), [5, 6, 9]) == ([0, 1], 9)


def test_the_first_rejection_ends_with_the_correction():
    assert match(DraftTree.chain([5, 6], "a"), [5, 8, 9]) == ([0], 8)
    assert match(DraftTree.chain([5, 6], "a"), [4, 6, 9]) == ([], 4)


def test_a_node_behind_which_nothing_can_be_sampled_is_not_followed():
    assert match(DraftTree.chain([1, 2, 3], "d"), [1, 2, NO_TOKEN, 9]) == ([0], 2)
    assert match(DraftTree.chain([1], "d"), [1, NO_TOKEN]) == ([], 1)


def test_a_match_follows_whichever_sibling_the_target_names():
    tree = DraftTree((1, 2, 3, 4), (-1, -1, 0, 1), (("a",),) * 4, (0.5,) * 4)
    assert match(tree, [2, 0, 4, 0, 8]) == ([1, 3], 8)


@given(trees(), st.lists(st.integers(0, 2), min_size=13, max_size=13))
def test_a_match_writes_the_targets_tokens_and_stops_where_they_leave_the_tree(tree, target_tokens):
    path, last = match(tree, target_tokens)
    end = path[-1] if path else -1
    assert path == tree.path(end)
    at = [-1, *path]
    assert [tree.tokens[node] for node in path] == [target_tokens[node + 1] for node in at[:-1]]
    assert last == target_tokens[end + 1]
    assert last not in [tree.tokens[child] for child in tree.children(end)]
