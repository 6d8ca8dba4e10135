import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outpace.drafters import Combined, NGram, Prediction
from outpace.engine.verify import EXACT_MATCH, Typical, match, typical
from outpace.types.tree import EMPTY, NO_TOKEN, DraftTree
from tests.decoding import decode, tiny_ops, tiny_runner
from tests.unit.types.test_tree import trees


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


def row(*probs):
    return np.array(probs, np.float64)


SURE, OPEN, DEAD = row(0.97, 0.01, 0.01, 0.01), row(0.25, 0.25, 0.25, 0.25), row(0, 0, 0, 0)


def test_a_typical_guess_is_above_the_threshold_that_falls_with_the_entropy():
    """min(epsilon, delta * exp(-H)): H is 0.168 of the sure row and log 4 of the open one; by hand."""
    guess = DraftTree.chain([1], "d")
    assert typical(guess, np.stack([OPEN, OPEN]), 0.3, 0.9) == [0]  # 0.25 > min(0.3, 0.9 / 4)
    assert typical(guess, np.stack([OPEN, OPEN]), 0.3, 1.01) == []  # 0.25 <= 1.01 / 4
    assert typical(guess, np.stack([OPEN, OPEN]), 0.25, 1.5) == []  # 0.25 <= epsilon
    assert typical(guess, np.stack([SURE, OPEN]), 0.009, 0.9) == [0]
    assert typical(guess, np.stack([SURE, OPEN]), 0.011, 0.9) == []


def test_the_longest_typical_path_wins_and_of_equals_the_likeliest():
    tree = DraftTree((0, 1, 2, 3, 0), (-1, -1, 1, 1, 3), (("d",),) * 5, (0.5,) * 5)
    mild = row(0.4, 0.3, 0.2, 0.1)
    assert typical(tree, np.stack([mild] * 6), 0.05, 0.9) == [1, 3, 4]
    assert typical(tree, np.stack([mild] * 6), 0.15, 0.9) == [1, 2]  # token 3 is too unlikely
    assert typical(tree, np.stack([mild] * 6), 0.25, 0.9) == [0]  # 0.4 before 0.3
    assert typical(EMPTY, mild[None], 0.05, 0.9) == []


def test_a_path_ends_before_a_node_behind_which_nothing_can_be_sampled():
    assert typical(DraftTree.chain([0, 0], "d"), np.stack([OPEN, OPEN, DEAD]), 0.1, 0.9) == [0]


@given(trees(), st.integers(0, 2))
def test_where_only_one_token_is_possible_a_typical_path_is_the_match(tree, token):
    p = np.zeros((len(tree) + 1, 3))
    p[:, token] = 1.0
    assert typical(tree, p, 0.09, 0.3) == match(tree, [token] * (len(tree) + 1))[0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_typical_verification_is_lossy_unless_greedy_and_takes_fewer_steps(temperature):
    texts, steps = [], []
    for verifier in (EXACT_MATCH, Typical(0.09, 0.3)):
        runner = tiny_runner(ops=tiny_ops(), vocab_size=97)
        asked = {"max_new_tokens": 60, "temperature": temperature, "seed": 1, "logprobs": 0}
        guesses = Prediction([i % 7 for i in range(400)])
        drafter = Combined([guesses, NGram(min_ngram=1)])
        (g,) = decode(runner, [[0, 1, 2, 3, 4]], drafter=drafter, verifier=verifier, check=True, **asked)
        texts.append(g.output.tokens)
        steps.append(g.stats.steps)
        assert [logprob.token for logprob in g.logprobs] == g.output.tokens
    assert (texts[0] == texts[1]) == (temperature == 0.0)
    assert (steps[1] < steps[0]) == (temperature > 0.0)
