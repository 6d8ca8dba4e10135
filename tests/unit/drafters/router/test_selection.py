from __future__ import annotations

import itertools
import random

import pytest

from outpace.drafters.router.acceptance import Acceptance, Counts
from outpace.drafters.router.cost import ROWS, PassCost
from outpace.drafters.router.selection import Proposals, select
from outpace.types.tree import DraftTree, TreeBuilder


class Sure(Acceptance):
    """Chances are the confidences."""

    def chances(self, tree: DraftTree, length: int) -> list[float]:
        return list(tree.confidence)


SURE = Sure(Counts())


def machine(slope: float, steps: dict[int, float] | None = None) -> PassCost:
    """A plain pass takes 1; `steps`: what is added from a number of rows on."""
    cost = PassCost()
    cost.observe([(1, 0)], 1.0)
    for _ in range(4):
        for rows in ROWS[1:]:
            extra = sum(added for first, added in (steps or {}).items() if rows >= first)
            cost.observe_probe(rows, 0, [(1.0, 1 + slope * (rows - 1) + extra)])
    return cost


def merged(*trees: DraftTree, budget: int = 16) -> Proposals:
    proposals = Proposals(100, budget)
    for drafter, tree in enumerate(trees):
        proposals.add(tree, drafter, SURE)
    return proposals


def kept(cost: PassCost, *batch: Proposals, sunk: float = 0.0) -> list[int]:
    select(batch, cost, 0.0, cost.seconds([(1, 0)] * len(batch)), sunk)
    return [len(g.kept) for g in batch]


def test_as_many_likely_guesses_are_verified_as_pay() -> None:
    chain = DraftTree.chain(range(10), "x", 0.7)  # cumulative 0.7, 0.49, 0.34, 0.24, ...
    assert kept(machine(0.01), merged(chain)) == [9]
    assert 2 <= kept(machine(0.2), merged(chain))[0] <= 4
    assert kept(machine(0.75), merged(chain)) == [0]


def test_the_selection_is_the_best_of_all_beginnings() -> None:
    dice = random.Random(4)
    for _ in range(50):
        cost = machine(dice.uniform(0.02, 0.5), {5: dice.uniform(0, 1)})
        chances = [dice.uniform(0.3, 0.99) for _ in range(8)]
        cumulative = list(itertools.accumulate(chances, lambda a, b: a * b))
        rates = [(1 + sum(cumulative[:n])) / cost.seconds([(1 + n, 0)]) for n in range(9)]
        best = kept(cost, merged(DraftTree.chain(range(8), "x", chances)))[0]
        assert rates[best] >= max(rates) / 1.02


def test_a_costly_step_is_taken_when_enough_lies_behind_it() -> None:
    cost = machine(0.0, {5: 0.5})
    assert kept(cost, merged(DraftTree.chain(range(8), "x", 0.95))) == [8]
    assert kept(cost, merged(DraftTree.chain(range(8), "x", 0.5))) == [3]


def test_a_batch_spends_its_rows_where_they_are_likeliest_to_pay() -> None:
    good, bad = DraftTree.chain(range(8), "x", 0.95), DraftTree.chain(range(8), "x", 0.2)
    verified = kept(machine(0.1), merged(good), merged(bad), merged())
    assert verified[0] >= 4
    assert verified[1:] == [0, 0]


def test_budgets_hold_request_by_request() -> None:
    chain = DraftTree.chain(range(8), "x", 0.95)
    assert kept(machine(0.01), merged(chain, budget=2), merged(chain, budget=0), merged(chain)) == [2, 0, 8]


def test_a_predicted_pass_is_the_one_that_was_kept() -> None:
    cost = machine(0.1)
    one = merged(DraftTree.chain(range(8), "x", 0.9))
    seconds = select([one], cost, 0.05, cost.seconds([(1, 0)]), 0.0)
    assert seconds == pytest.approx(cost.seconds([(1 + len(one.kept), 0)]) + 0.05 * len(one.kept), rel=1e-6)
    assert one.expected == pytest.approx(1 + sum(0.9**n for n in range(1, 1 + len(one.kept))))
    none = merged()
    assert select([none], cost, 0.05, 1.0, 0.0) == 1.0
    assert none.expected == 1.0


def test_common_nodes_are_one_and_name_all_who_proposed_them() -> None:
    a = DraftTree.chain([1, 2, 3], "a", 0.9)
    b = DraftTree.chain([1, 2, 4], "b", 0.95)
    proposals = merged(a, b)
    select([proposals], machine(0.01), 0.0, 1.0, 0.0)
    tree = proposals.tree({1: ("a",), 2: ("b",), 3: ("a", "b")})
    assert sorted(zip(tree.tokens, tree.parents, tree.sources, strict=True)) == [
        (1, -1, ("a", "b")),
        (2, 0, ("a", "b")),
        (3, 1, ("a",)),
        (4, 1, ("b",)),
    ]
    assert tree.q is None
    assert tree.confidence == pytest.approx([0.95, 0.95, *(c for c in tree.confidence[2:])])
    assert proposals.common(1, 0b01) == {0, 1}
    assert proposals.expected_of(1) == pytest.approx(0.95 + 0.95**2 + 0.95**3)


def test_what_a_drafter_brought_is_told_node_by_node_and_beside_another_one() -> None:
    proposals = merged(DraftTree.chain([1, 2], "a", 0.9), DraftTree.chain([1, 3, 4], "b", [0.9, 0.8, 0.001]))
    select([proposals], machine(0.1), 0.0, 1.0, 0.0)
    tokens, rows = proposals.brought_by(1, unit=1.0)
    assert tokens == pytest.approx([0.9, 0.72, 0.0]), "the third is too unlikely to be looked at"
    assert rows == pytest.approx([0.1, 0.1, 0.0], abs=0.01)
    assert proposals.brought_by(1, unit=1.0, beside=0b01)[0] == pytest.approx([0.0, 0.72, 0.0])


def test_every_selection_is_a_tree_with_its_parents() -> None:
    dice = random.Random(8)
    for _ in range(200):
        trees = []
        for name in "ab":
            tree = TreeBuilder()
            for _ in range(dice.randrange(12)):
                tree.add(dice.randrange(-1, len(tree)), dice.randrange(3), dice.random())
            trees.append(tree.build(name))
        budget = dice.randrange(10)
        proposals = merged(*trees, budget=budget)
        select([proposals], machine(dice.choice([0.0, 0.1])), 0.0, 1.0, 0.0)
        names = {1: ("a",), 2: ("b",), 3: ("a", "b")}
        assert len(proposals.tree(names)) <= budget  # DraftTree checks parents and siblings


def test_hopeless_guesses_are_dropped_with_all_that_hangs_on_them() -> None:
    tree = TreeBuilder()
    hopeless = tree.add(-1, 1, 0.001)
    tree.add(hopeless, 2, 1.0)
    tree.add(-1, 3, 0.5)
    assert merged(tree.build("x")).tokens == [3]
