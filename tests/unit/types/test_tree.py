import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outpace.engine.verify import match
from outpace.errors import DrafterError
from outpace.types.tree import EMPTY, DraftTree, TreeBuilder, merge


@st.composite
def trees(draw, source="a", max_nodes=12, alphabet=3):
    builder = TreeBuilder()
    for _ in range(draw(st.integers(0, max_nodes))):
        parent = draw(st.integers(-1, len(builder) - 1))
        builder.add(parent, draw(st.integers(0, alphabet - 1)), draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])))
    tree = builder.build(source)
    seeds = draw(st.sets(st.integers(0, len(tree) - 1), max_size=2)) if len(tree) else set()
    reserved = frozenset(node for seed in seeds for node in tree.path(seed))
    return DraftTree(tree.tokens, tree.parents, tree.sources, tree.confidence, reserved=reserved)


def paths(tree):
    return [tuple(tree.tokens[n] for n in tree.path(node)) for node in range(len(tree))]


def test_a_chain_is_a_thin_tree():
    chain = DraftTree.chain([5, 6, 7], "a", [0.9, 0.5, 0.1])
    assert chain.parents == (-1, 0, 1)
    assert chain.sources == (("a",),) * 3
    assert chain.depths() == [0, 1, 2]
    assert chain.path(2) == [0, 1, 2]
    assert chain.children(-1) == [0]
    assert DraftTree.chain([5, 6], "a", 1).confidence == (1, 1)
    assert DraftTree.chain([], "a") == EMPTY


def test_children_paths_and_depths_agree_on_a_wide_tree():
    tree = DraftTree((1, 2, 3, 1), (-1, -1, 0, 2), (("a",),) * 4, (0.5,) * 4)
    assert tree.children(-1) == [0, 1]
    assert tree.children(0) == [2]
    assert tree.children(3) == []
    assert tree.path(3) == [0, 2, 3]
    assert tree.path(-1) == []
    assert tree.depths() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (((1, 2), (-1,), (("a",),), (0.5,)), "equally long, got 2, 1, 1, 1"),
        (((1,), (0,), (("a",),), (0.5,)), r"parent in \[-1, 0\), got 0"),
        (((1,), (-2,), (("a",),), (0.5,)), r"parent in \[-1, 0\), got -2"),
        (((1, 1), (-1, -1), (("a",),) * 2, (0.5, 0.5)), "two siblings"),
        (((-1,), (-1,), (("a",),), (0.5,)), "at least 0, got -1"),
        (((1,), (-1,), (("a",),), (1.5,)), r"confidence in \[0, 1\], got 1.5"),
        (((1,), (-1,), (("a",),), (float("nan"),)), r"confidence in \[0, 1\], got nan"),
        (((1, 2), (-1, 0), (("a",),) * 2, (0.5, 0.5), None, frozenset({1})), "needs its parent 0 reserved"),
        (((1,), (-1,), (("a",),), (0.5,), None, frozenset({1})), r"must be in \[0, 1\), got 1"),
    ],
)
def test_what_is_no_tree_is_refused_by_name(fields, message):
    with pytest.raises(DrafterError, match=message):
        DraftTree(*fields)


def test_a_builder_shares_nodes_and_keeps_the_larger_confidence():
    builder = TreeBuilder()
    first = builder.add(-1, 5, 0.2)
    assert builder.add(-1, 5, 0.7) == first
    assert builder.add(-1, 5, 0.1) == first
    child = builder.add(first, 5, 0.4)
    assert builder.find(first, 5) == child
    assert builder.find(child, 5) is None
    assert builder.build("a") == DraftTree((5, 5), (-1, 0), (("a",),) * 2, (0.7, 0.4))
    assert TreeBuilder().build("a") is EMPTY


def test_common_prefixes_share_nodes_and_credit_both_drafters():
    merged = merge([DraftTree.chain([1, 2], "a", [0.5, 0.5]), DraftTree.chain([1, 3], "b", [0.9, 0.4])], 8)
    assert merged.tokens == (1, 2, 3)
    assert merged.parents == (-1, 0, 0)
    assert merged.sources == (("a", "b"), ("a",), ("b",))
    assert merged.confidence == (0.9, 0.5, 0.4)


def test_a_drafter_that_is_credited_already_is_not_named_twice():
    both = merge([DraftTree.chain([1], "a"), DraftTree.chain([1], "b")], 8)
    assert merge([both, DraftTree.chain([1], "b")], 8).sources == (("a", "b"),)


def test_pruning_keeps_the_likeliest_nodes():
    sure, unsure = DraftTree.chain([1, 2, 3], "a", 0.9), DraftTree.chain([4, 5, 6], "b", 0.5)
    assert merge([unsure, sure], 4).tokens == (4, 1, 2, 3)
    assert merge([unsure, sure], 3).tokens == (1, 2, 3)


def test_a_child_is_as_likely_as_its_path_not_as_its_own_confidence():
    late, early = DraftTree.chain([1, 2], "a", [0.1, 1.0]), DraftTree.chain([3], "b", 0.2)
    assert merge([late, early], 1).tokens == (3,)


def test_reserved_nodes_stay_before_likelier_ones():
    window = DraftTree((1, 2, 3), (-1, 0, -1), (("w",),) * 3, (0.0, 0.0, 0.9), reserved=frozenset({0, 1}))
    merged = merge([DraftTree.chain([7, 8], "a", 0.9), window], 3)
    assert merged.tokens == (7, 1, 2)
    assert merged.reserved == {1, 2}
    assert merge([DraftTree.chain([7, 8], "a", 0.9), window], 1).tokens == (1,)


def test_a_merged_tree_has_no_single_law():
    tree = DraftTree((1,), (-1,), (("a",),), (0.5,), np.full((2, 4), 0.25))
    assert merge([tree], 1).q is None


def test_nothing_merged_is_the_empty_draft():
    assert merge([], 8) == EMPTY
    assert merge([EMPTY, EMPTY], 8) == EMPTY
    assert merge([DraftTree.chain([1], "a")], 0) == EMPTY


@given(st.lists(st.sampled_from("abc").flatmap(trees), max_size=4), st.integers(0, 14))
def test_merging_keeps_reserved_nodes_then_the_best_scores_and_loses_nothing_else(drafts, budget):
    confidence: dict[tuple[int, ...], float] = {}
    sources: dict[tuple[int, ...], set[str]] = {}
    reserved = set()
    for tree in drafts:
        for node, path in enumerate(paths(tree)):
            confidence[path] = max(confidence.get(path, 0.0), tree.confidence[node])
            sources.setdefault(path, set()).update(tree.sources[node])
            if node in tree.reserved:
                reserved.add(path)

    def rank(path):
        return math.prod(confidence[path[:end]] for end in range(1, len(path) + 1)) + 10 * (path in reserved)

    merged = merge(drafts, budget)
    kept = paths(merged)
    assert len(kept) == min(budget, len(confidence))
    best = sorted(map(rank, confidence), reverse=True)[: len(kept)]
    assert sorted(map(rank, kept), reverse=True) == pytest.approx(best)
    for node, path in enumerate(kept):
        assert merged.confidence[node] == confidence[path]
        assert set(merged.sources[node]) == sources[path]
        assert len(merged.sources[node]) == len(sources[path])
        assert (node in merged.reserved) == (path in reserved)


@given(trees(), st.integers(12, 20))
def test_merging_one_tree_within_its_budget_changes_nothing(tree, budget):
    assert merge([tree], budget) == tree


@given(trees("a"), trees("b"), st.lists(st.integers(0, 2), min_size=30, max_size=30))
def test_a_merged_tree_accepts_what_the_better_of_its_trees_accepts(one, other, text):
    def accepted(tree):
        depths = [-1, *tree.depths()]  # a target that recites: its pick depends on the depth only
        return len(match(tree, [text[depth + 1] for depth in depths])[0])

    assert accepted(merge([one, other], 30)) == max(accepted(one), accepted(other))
