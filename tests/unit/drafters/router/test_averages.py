from __future__ import annotations

import math
import random

import pytest

from outpace.drafters.router.averages import MEMORY, Gain, LinearCost


def test_a_cost_is_its_first_sample_and_all_of_it_is_per_item() -> None:
    cost = LinearCost()
    assert not cost.is_known
    cost.learn(4, 0.8)
    assert (cost.fixed, cost.per_item) == pytest.approx((0.0, 0.2))


@pytest.mark.parametrize(("fixed", "per_item"), [(0.5, 0.0), (0.0, 0.1), (0.3, 0.02)])
def test_two_numbers_of_items_tell_the_parts_of_a_cost(fixed: float, per_item: float) -> None:
    cost = LinearCost()
    for items in (4, 16, 4, 16):
        cost.learn(items, fixed + per_item * items)
    assert cost.at(10) == pytest.approx(fixed + 10 * per_item, rel=0.1)
    assert cost.per_item == pytest.approx(per_item, abs=0.01)


def test_a_flat_cost_is_fixed_until_two_numbers_of_items_say_otherwise() -> None:
    cost = LinearCost(is_flat=True)
    cost.learn(4, 0.8)
    assert (cost.fixed, cost.per_item) == pytest.approx((0.8, 0.0))
    for items in (4, 16, 4, 16):
        cost.learn(items, 0.2 * items)
    assert cost.per_item == pytest.approx(0.2, rel=0.05)
    assert cost.fixed == pytest.approx(0.0, abs=0.1)


def test_what_is_expected_is_the_cost_until_samples_say_otherwise() -> None:
    cost = LinearCost.expected(0.3, 0.1)
    assert cost.is_known
    assert (cost.fixed, cost.per_item) == (0.3, 0.1)
    cost.learn(4, 50.0)
    assert cost.at(4) < 1.5, "one unlucky timing"
    for _ in range(40):
        cost.learn(4, 2.8)
        cost.learn(1, 0.7)
    assert cost.at(4) == pytest.approx(2.8, rel=0.1)
    assert cost.at(1) == pytest.approx(0.7, rel=0.1)


def test_one_timing_of_a_busy_moment_counts_for_four_at_most() -> None:
    cost = LinearCost()
    for _ in range(4 * MEMORY):
        cost.learn(1, 1.0)
    cost.learn(1, 1000.0)
    assert cost.at(1) < 1.0 + 4.0 / MEMORY


def test_questions_without_an_answer_say_nothing_of_what_a_node_costs() -> None:
    cost = LinearCost()
    for _ in range(4):
        cost.learn(8, 4.0)
    for _ in range(30):
        cost.learn(0, 0.0)
    assert cost.fixed == pytest.approx(0.0, abs=0.02)
    assert cost.per_item == pytest.approx(0.5, rel=0.05)


def test_a_gain_is_unbiased_from_the_first_question_on() -> None:
    gain = Gain()
    gain.learn(2, [0.9, 0.8], [0.05, 0.05], 0.0)
    nodes, tokens, passes = gain.best(1.0, 1.0, 0.0, 2, 0.0)
    assert nodes == 2
    assert tokens == pytest.approx(1 + 0.9 + 0.8, rel=0.02)
    assert passes == pytest.approx(1.1)


def test_what_is_expected_of_a_drafter_outweighs_one_question_that_brought_nothing() -> None:
    gain = Gain().expecting(0.6, 2.0)
    assert gain.is_known
    assert gain.best(1.0, 1.1, 0.04, 16, 0.0)[0] in range(2, 7)
    gain.learn(4, [], [], 0.0)
    nodes, tokens, passes = gain.best(1.0, 1.1, 0.04, 16, 0.0)
    assert nodes > 0
    assert tokens > passes
    for _ in range(MEMORY):
        gain.learn(4, [], [], 0.0)
    nodes, tokens, passes = gain.best(1.0, 1.1, 0.04, 16, 0.0)
    assert tokens < passes


def test_a_gain_soon_forgets() -> None:
    gain = Gain()
    for _ in range(100):
        gain.learn(1, [0.0], [0.0], 0.0)
    for _ in range(2 * MEMORY):
        gain.learn(1, [1.0], [0.1], 0.0)
    assert gain.best(0.0, 1.0, 0.0, 1, 0.0)[1] > 0.8


def test_as_many_nodes_are_best_as_give_the_most_tokens_per_time() -> None:
    dice = random.Random(1)
    for _ in range(50):
        chance, row, node = dice.uniform(0.2, 0.98), dice.uniform(0.01, 0.2), dice.uniform(0.0, 0.3)
        gain = Gain()
        for _ in range(20):
            gain.learn(16, [chance ** (k + 1) for k in range(16)], [row] * 16, 0.0)
        rates = [(1 + sum(chance**k for k in range(1, n + 1))) / (1.1 + n * (row + node)) for n in range(1, 17)]
        assert rates[gain.best(1.0, 1.1, node, 16, 0.0)[0] - 1] > 0.999 * max(rates)


def test_looking_no_further_than_where_even_free_nodes_could_not_pay_changes_no_choice() -> None:
    dice = random.Random(4)
    for _ in range(300):
        gain = Gain()
        for _ in range(dice.randint(1, 6)):
            count = dice.randint(1, 9)
            tokens = sorted([dice.random() for _ in range(dice.randint(0, count))], reverse=True)
            gain.learn(count, tokens, [0.3 * dice.random() for _ in tokens], dice.gauss(0.0, 0.5))
        tokens, passes, per_node, offset = (
            1.0 + dice.random(),
            1.0 + dice.random(),
            0.1 * dice.random(),
            dice.gauss(0, 1),
        )
        each = [gain.best(tokens, passes, per_node, limit, offset) for limit in range(1, 17)]
        best = max(each, key=lambda found: found[1] / found[2])
        assert each[-1][1] / each[-1][2] == pytest.approx(best[1] / best[2])


def test_nodes_that_were_not_asked_for_are_as_likely_as_the_last_one() -> None:
    gain = Gain()
    gain.learn(2, [0.9, 0.81], [0.02, 0.02], 0.0)
    nodes, tokens, _ = gain.best(1.0, 1.0, 0.01, 16, 0.0)
    assert nodes > 8
    assert tokens == pytest.approx(sum(0.9**k for k in range(nodes + 1)), rel=0.01)


def test_old_knowledge_of_deep_nodes_gives_way_to_what_shallow_ones_say_now() -> None:
    gain = Gain()
    for _ in range(10):
        gain.learn(8, [0.5] + [0.0] * 7, [0.05] + [0.0] * 7, 0.0)
    for _ in range(8 * MEMORY):
        gain.learn(2, [0.95, 0.9], [0.05, 0.05], 0.0)
    assert gain.best(1.0, 1.0, 0.05, 8, 0.0)[0] == 8


def test_proposals_that_end_early_cost_no_more_than_they_have_nodes() -> None:
    gain = Gain()
    for _ in range(40):
        gain.learn(8, [0.9, 0.8], [0.05, 0.05], 0.0)
    assert gain.expected_nodes(8) == pytest.approx(2.0)
    assert gain.best(1.0, 1.0, 0.1, 8, 0.0)[2] == pytest.approx(1.0 + 2 * 0.15, abs=0.02)


def test_what_was_found_under_another_offset_is_shifted_to_the_present_one() -> None:
    gain = Gain()
    for _ in range(20):
        gain.learn(1, [0.8], [0.0], 1.0)
    assert gain.best(0.0, 1.0, 0.0, 1, 1.0)[1] == pytest.approx(0.8)
    odds = math.exp(-2.0) * 0.8 / 0.2
    assert gain.best(0.0, 1.0, 0.0, 1, -1.0)[1] == pytest.approx(odds / (1 + odds))


def test_what_is_inherited_counts_for_half_of_the_memory() -> None:
    gain = Gain()
    for _ in range(100):
        gain.learn(1, [0.0], [0.0], 0.0)
    assert gain.is_settled
    heir = gain.inherited()
    assert heir.is_settled
    for _ in range(MEMORY):
        heir.learn(1, [1.0], [0.0], 0.0)
    assert heir.best(0.0, 1.0, 0.0, 1, 0.0)[1] > 0.65
    assert gain.best(0.0, 1.0, 0.0, 1, 0.0)[1] == 0.0, "the original is left alone"
