from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from outpace.drafters.growth import GrowingTree, Shape
from outpace.types.tree import EMPTY

Model = Callable[[tuple[int, ...]], list[tuple[int, float]]]


def steady(path: tuple[int, ...]) -> list[tuple[int, float]]:
    """Return three tokens behind any path, with chances of 0.6, 0.25, 0.1."""
    return [(10 * len(path), 0.6), (10 * len(path) + 1, 0.25), (10 * len(path) + 2, 0.1)]


def fickle(path: tuple[int, ...]) -> list[tuple[int, float]]:
    dice = random.Random(hash(path))
    cuts = sorted(dice.random() for _ in range(3))
    chances = sorted([cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1]], reverse=True)
    return list(zip(dice.sample(range(50), 3), chances, strict=True))


def grown(model: Model, shape: Shape, budget: int) -> GrowingTree:
    tree = GrowingTree(shape, budget)
    tree.add([model(())])
    while tree.front:
        tree.segment([0], 5)
        tree.add([model(tree.path(node)) for node in tree.front])
    return tree


def best_by_hand(model: Model, budget: int, depth: int = 6) -> list[float]:
    """Return the values of the likeliest nodes of the whole tree."""
    values, level = [], [((), 1.0)]
    for _ in range(depth):
        level = [((*path, token), value * chance) for path, value in level for token, chance in model(path)]
        values += [value for _, value in level]
    return sorted(values, reverse=True)[:budget]


@pytest.mark.parametrize("model", [steady, fickle])
@pytest.mark.parametrize("budget", [1, 4, 7])
def test_the_draft_is_the_likeliest_nodes_of_all(model: Model, budget: int) -> None:
    tree = grown(model, Shape(width=40, min_value=0.0, min_expanded=0.0), budget).build("me")
    values: list[float] = []
    for parent, confidence in zip(tree.parents, tree.confidence, strict=True):
        values.append(confidence * (values[parent] if parent >= 0 else 1.0))
    assert values == pytest.approx(best_by_hand(model, budget))
    assert values == sorted(values, reverse=True)
    assert {source for names in tree.sources for source in names} == {"me"}


def test_fewer_nodes_are_the_beginning_of_the_draft() -> None:
    shape = Shape(width=40, min_value=0.0, min_expanded=0.0)
    six, nine = grown(steady, shape, 6).build("me"), grown(steady, shape, 9).build("me")
    assert nine.tokens[:6] == six.tokens
    assert nine.parents[:6] == six.parents


@pytest.mark.parametrize("model", [steady, fickle])
def test_a_width_of_one_follows_the_best_token_of_each_level(model: Model) -> None:
    tree = grown(lambda path: model(path)[:1], Shape(width=1, min_value=0.0, min_expanded=0.0), 5).build("me")
    path: list[int] = []
    for _ in range(5):
        path.append(model(tuple(path))[0][0])
    assert list(tree.tokens) == path
    assert tree.parents == (-1, 0, 1, 2, 3)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_expanded_nodes_have_slots_of_their_own_behind_each_other(width: int, seed: int) -> None:
    tree = GrowingTree(Shape(width, 0.0, 0.0), 8)
    tree.add([fickle((seed,))])
    stored: list[int] = []
    while tree.front:
        front = list(tree.front)
        segment = tree.segment([3, 4], 20)
        assert 1 <= len(segment.tokens) <= width
        assert list(segment.stored) == stored
        assert segment.num_pending == 0
        assert segment.num_scored == len(segment.tokens)
        assert list(segment.tokens) == [tree.tokens[node] for node in front]
        stored += segment.parents
        assert all(-1 <= parent < len(stored) for parent in segment.parents)
        tree.add([fickle((seed, *tree.path(node))) for node in tree.front])
        assert [front[origin] for origin in tree.origins] == [tree.parents[node] for node in tree.front]
    assert len(stored) <= 8, "there are no more slots than nodes asked for"


def test_unlikely_nodes_are_neither_proposed_nor_expanded() -> None:
    tree = grown(steady, Shape(width=3, min_value=0.2, min_expanded=0.3), 20)
    depths: list[int] = []
    for parent in tree.parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    # 0.6 and 0.25; behind 0.6: 0.36 (0.15 is too little); behind 0.36: 0.216, which is not expanded.
    assert sorted(tree.values, reverse=True) == pytest.approx([0.6, 0.36, 0.25, 0.216])
    assert max(depths) == 2


def test_a_node_whose_children_cannot_be_among_the_best_is_not_expanded() -> None:
    levels: list[Sequence[int]] = []
    tree = GrowingTree(Shape(3, 0.0, 0.0), 2)
    tree.add([steady(())])
    while tree.front:
        levels.append(list(tree.front))
        tree.segment([0], 5)
        tree.add([steady(tree.path(node)) for node in tree.front])
    assert levels == [[0]]  # behind 0.6 there may be more than 0.25; then 0.36 is the second best


def test_without_a_guess_there_is_no_draft() -> None:
    tree = GrowingTree(Shape(2, 0.5, 0.5), 4)
    tree.add([[(1, 0.4)]])
    assert not tree.front
    assert tree.build("me") == EMPTY
