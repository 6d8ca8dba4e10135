from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from outpace.drafters.marginals import Branch, Guess, LevelSampler, best_tree, drafted
from outpace.runner import Runner, ScheduledSequence
from outpace.types.tree import EMPTY, DraftTree
from tests.decoding import request, tiny_ops, tiny_runner

VOCAB = 97
LEVELS: list[list[Branch]] = [[(1, 0.6), (2, 0.3), (3, 0.05)], [(4, 0.5), (5, 0.4)], [(6, 0.9)]]


def chances(tree: DraftTree) -> list[float]:
    found: list[float] = []
    for parent, confidence in zip(tree.parents, tree.confidence, strict=True):
        found.append(confidence * (found[parent] if parent >= 0 else 1.0))
    return found


def every_path(levels: list[list[Branch]]) -> list[float]:
    """Return the chance of every path from the root, by enumeration."""
    paths = []
    for depth in range(1, len(levels) + 1):
        paths += [math.prod(chance for _, chance in path) for path in itertools.product(*levels[:depth])]
    return paths


def test_the_tree_of_n_nodes_expects_the_most_accepted_tokens() -> None:
    rng = np.random.default_rng(0)
    for trial in range(20):
        levels = [
            [(10 * depth + rank, chance) for rank, chance in enumerate(sorted(rng.random(3) / 3, reverse=True))]
            for depth in range(4)
        ]
        for budget in (1, 2, 5, 11, 40):
            tree = best_tree(levels, budget, 0.0, "x")
            assert len(tree) == budget
            best = sorted(every_path(levels), reverse=True)[:budget]
            assert math.isclose(sum(chances(tree)), sum(best)), trial


def test_nodes_come_in_the_order_of_their_chances() -> None:
    tree = best_tree(LEVELS, 6, 0.0, "x")
    assert tree.tokens == (1, 2, 4, 6, 5, 6)
    assert tree.parents == (-1, -1, 0, 2, 0, 4)
    assert tree.confidence == (0.6, 0.3, 0.5, 0.9, 0.4, 0.9)
    assert set(tree.sources) == {("x",)}
    assert chances(tree) == sorted(chances(tree), reverse=True)


def test_a_tree_has_no_node_below_the_minimum_and_none_that_is_not_there() -> None:
    assert len(best_tree(LEVELS, 99, 0.0, "x")) == 3 + 6 + 6
    assert min(chances(best_tree(LEVELS, 99, 0.12, "x"))) >= 0.12
    assert best_tree(LEVELS, 99, 0.61, "x") == EMPTY
    assert best_tree(LEVELS, 0, 0.0, "x") == EMPTY
    assert best_tree([], 5, 0.0, "x") == EMPTY
    assert best_tree([LEVELS[0], [], LEVELS[2]], 99, 0.0, "x").tokens == (1, 2, 3)


def runner() -> Runner:
    return tiny_runner(ops=tiny_ops(), vocab_size=VOCAB)


def guess(target: Runner, logits: Any, tokens: Any = None, text: list[int] | None = None, **sampling: Any) -> Guess:
    x = np.array(logits, np.float32)
    own = np.arange(x.shape[1]) + 10 if tokens is None else np.array(tokens)
    asked = drafted(request(text or [1, 2], **sampling))
    return Guess(target.cache.open(()), asked, text or [1, 2], x, own.astype(np.int64))


def test_a_greedy_request_takes_the_largest_logits_with_their_probabilities() -> None:
    target = runner()
    logits = np.random.default_rng(0).standard_normal((3, 30))
    (levels,) = LevelSampler(target, 4, 2).levels([guess(target, logits)])
    assert len(levels) == 3
    for row, level in zip(logits, levels, strict=True):
        order = np.argsort(-row)[:4]
        assert [token for token, _ in level] == (order + 10).tolist()
        p = np.exp(row) / np.exp(row).sum()
        assert np.allclose([chance for _, chance in level], p[order], rtol=1e-5)


def test_there_are_no_more_choices_than_columns() -> None:
    target = runner()
    (levels,) = LevelSampler(target, 4, 2).levels([guess(target, [[1.0, 2.0]])])
    assert [token for token, _ in levels[0]] == [11, 10]


def test_noisy_positions_take_what_the_target_would_take_of_the_same_logits() -> None:
    target = runner()
    rng = np.random.default_rng(1)
    hot: dict[str, Any] = {"temperature": 5.0, "seed": 7}
    logits = rng.standard_normal((3, VOCAB))
    one = guess(target, logits, np.arange(VOCAB), text=[3, 4, 5], **hot)
    (levels,) = LevelSampler(target, 5, 2).levels([one])
    text = [3, 4, 5]
    for depth in range(2):
        part = ScheduledSequence(one.table, one.request, text, len(text))
        x = target.ops.array(logits[depth : depth + 1].astype(np.float32))
        expected = target.ops.sample(x, target.sampling_batch([part]), 5)[0].tolist()
        assert [token for token, _ in levels[depth]] == expected
        text.append(expected[0])
    assert [token for token, _ in levels[2]] == np.argsort(-logits[2])[:5].tolist()  # too far for noise
    for level in levels:
        found = [chance for _, chance in level]
        assert found == sorted(found, reverse=True)
        assert all(0 < chance <= 1 for chance in found)


def test_a_greedy_request_with_penalties_is_drafted_with_them_at_every_position() -> None:
    target = runner()
    logits = [[0.0, 5.0, 4.9], [0.0, 5.0, 4.9], [0.0, 5.0, 4.9]]
    one = guess(target, logits, [10, 11, 12], text=[1, 2], repetition_penalty=2.0)
    (levels,) = LevelSampler(target, 2, 1).levels([one])
    assert [level[0][0] for level in levels] == [11, 12, 11]  # each guess is history for the next


def test_guesses_are_the_same_alone_and_in_a_batch() -> None:
    target = runner()
    rng = np.random.default_rng(2)
    kinds: list[dict[str, Any]] = [{}, {"temperature": 0.7, "seed": 1}, {"repetition_penalty": 1.3}, {"seed": 4}]
    guesses = [guess(target, rng.standard_normal((2 + i, 20 + i)), **kind) for i, kind in enumerate(kinds)]
    sampler = LevelSampler(target, 3, 2)
    together = sampler.levels(guesses)
    assert together == [sampler.levels([one])[0] for one in guesses]
    assert sampler.levels([]) == []


def test_where_nothing_can_be_sampled_the_levels_end_and_others_go_on() -> None:
    target = runner()
    banned = {token: float("-inf") for token in range(10, 13)}
    logits = [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    both = [
        guess(target, logits, temperature=0.5, seed=1, logit_bias=banned),
        guess(target, logits, temperature=0.5, seed=1),
    ]
    none, some = LevelSampler(target, 2, 2).levels(both)
    assert none == [[]]
    assert [len(level) for level in some] == [2, 2]


def test_what_only_the_target_may_do_is_no_part_of_a_draft() -> None:
    asked = request([1, 2], temperature=0.5, seed=3, logits_processors=(lambda tokens, x: x,), logprobs=2)
    options = drafted(asked).options
    assert (options.logits_processors, options.logprobs, options.constraint) == ((), None, None)
    assert options.sampling == asked.options.sampling


@pytest.mark.parametrize("width", [1, 3])
def test_equal_logits_are_taken_in_the_order_of_columns(width: int) -> None:
    target = runner()
    (levels,) = LevelSampler(target, width, 0).levels([guess(target, [[1.0, 1.0, 1.0]])])
    assert [token for token, _ in levels[0]] == [10, 11, 12][:width]
