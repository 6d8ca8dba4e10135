from __future__ import annotations

import itertools
import random

import pytest

from outpace.tree import DraftTree, Forecast, TreeBuilder
from outpace.drafters.router.acceptance import Acceptance, Habits
from outpace.drafters.router.selection import Guesses, choose
from outpace.drafters.router.cost import ROWS, PassCost

ANY = Forecast(1.0, 0.0, 0.0, 0.0, "test")


class Sure(Acceptance):
    """Chances are the confidences."""

    def chances(self, tree: DraftTree, length: int) -> list[float]:
        return list(tree.confidence)


SURE = Sure(Habits())


def machine(slope: float, steps: dict[int, float] | None = None) -> PassCost:
    """A plain pass takes 1; `steps`: what is added from a number of rows on."""
    cost = PassCost()
    cost.observe([(1, 0)], 1.0)
    for _ in range(4):
        for rows in ROWS[1:]:
            extra = sum(added for first, added in (steps or {}).items() if rows >= first)
            cost.observe_probe(rows, 0, 1 + slope * (rows - 1) + extra)
    return cost


def guesses(*trees: DraftTree, budget: int = 16) -> Guesses:
    merged = Guesses(100, budget)
    for drafter, tree in enumerate(trees):
        merged.add(tree, drafter, SURE, 100)
    return merged


def chosen(cost: PassCost, *batch: Guesses, sunk: float = 0.0) -> list[int]:
    choose(batch, cost, 0.0, cost.seconds([(1, 0)] * len(batch)), sunk)
    return [len(g.kept) for g in batch]


def test_as_many_likely_guesses_are_verified_as_pay() -> None:
    chain = DraftTree.chain(range(10), "x", 0.7)  # reach 0.7, 0.49, 0.34, 0.24, ...
    assert chosen(machine(0.01), guesses(chain)) == [9]
    assert 2 <= chosen(machine(0.2), guesses(chain))[0] <= 4
    assert chosen(machine(0.75), guesses(chain)) == [0]


def test_the_choice_is_the_best_of_all_beginnings() -> None:
    dice = random.Random(4)
    for _ in range(50):
        cost = machine(dice.uniform(0.02, 0.5), {5: dice.uniform(0, 1)})
        chances = [dice.uniform(0.3, 0.99) for _ in range(8)]
        reach = list(itertools.accumulate(chances, lambda a, b: a * b))
        rates = [(1 + sum(reach[:n])) / cost.seconds([(1 + n, 0)]) for n in range(9)]
        best = chosen(cost, guesses(DraftTree.chain(range(8), "x", chances)))[0]
        assert rates[best] >= max(rates) / 1.02


def test_a_dear_step_is_taken_when_enough_lies_behind_it() -> None:
    cost = machine(0.0, {5: 0.5})
    assert chosen(cost, guesses(DraftTree.chain(range(8), "x", 0.95))) == [8]
    assert chosen(cost, guesses(DraftTree.chain(range(8), "x", 0.5))) == [3]


def test_a_batch_spends_its_rows_where_they_are_likeliest_to_pay() -> None:
    good, bad = DraftTree.chain(range(8), "x", 0.95), DraftTree.chain(range(8), "x", 0.2)
    kept = chosen(machine(0.1), guesses(good), guesses(bad), guesses())
    assert kept[0] >= 4
    assert kept[1:] == [0, 0]


def test_budgets_hold_request_by_request() -> None:
    chain = DraftTree.chain(range(8), "x", 0.95)
    assert chosen(machine(0.01), guesses(chain, budget=2), guesses(chain, budget=0), guesses(chain)) == [2, 0, 8]


def test_a_predicted_pass_is_the_one_that_was_chosen() -> None:
    cost = machine(0.1)
    one = guesses(DraftTree.chain(range(8), "x", 0.9))
    seconds = choose([one], cost, 0.05, cost.seconds([(1, 0)]), 0.0)
    assert seconds == pytest.approx(cost.seconds([(1 + len(one.kept), 0)]) + 0.05 * len(one.kept), rel=1e-6)
    assert one.expected == pytest.approx(1 + sum(0.9**n for n in range(1, 1 + len(one.kept))))
    none = guesses()
    assert choose([none], cost, 0.05, 1.0, 0.0) == 1.0
    assert none.expected == 1.0


def test_common_nodes_are_one_and_name_all_who_proposed_them() -> None:
    a = DraftTree.chain([1, 2, 3], "a", 0.9)
    b = DraftTree.chain([1, 2, 4], "b", 0.95)
    merged = guesses(a, b)
    choose([merged], machine(0.01), 0.0, 1.0, 0.0)
    tree = merged.tree({1: ("a",), 2: ("b",), 3: ("a", "b")}, ANY)
    assert sorted(zip(tree.tokens, tree.parents, tree.sources, strict=True)) == [
        (1, -1, ("a", "b")),
        (2, 0, ("a", "b")),
        (3, 1, ("a",)),
        (4, 1, ("b",)),
    ]
    assert tree.q is None
    assert tree.forecast is ANY
    assert tree.confidence == pytest.approx([0.95, 0.95, *(c for c in tree.confidence[2:])])


def test_every_choice_is_a_tree_with_its_parents() -> None:
    dice = random.Random(8)
    for _ in range(200):
        trees = []
        for name in "ab":
            tree = TreeBuilder()
            for _ in range(dice.randrange(12)):
                tree.add(dice.randrange(-1, len(tree)), dice.randrange(3), dice.random())
            trees.append(tree.build(name))
        budget = dice.randrange(10)
        merged = guesses(*trees, budget=budget)
        choose([merged], machine(dice.choice([0.0, 0.1])), 0.0, 1.0, 0.0)
        tree = merged.tree({1: ("a",), 2: ("b",), 3: ("a", "b")}, ANY)  # DraftTree checks parents and siblings
        assert len(tree) <= budget


def test_hopeless_guesses_are_dropped_with_all_that_hangs_on_them() -> None:
    tree = TreeBuilder()
    hopeless = tree.add(-1, 1, 0.001)
    tree.add(hopeless, 2, 1.0)
    tree.add(-1, 3, 0.5)
    assert guesses(tree.build("x")).tokens == [3]
