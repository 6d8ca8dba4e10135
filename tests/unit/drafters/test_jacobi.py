import pytest

from outpace.drafters import Jacobi
from outpace.errors import UsageError
from outpace.types.tree import DraftTree, merge
from tests.decoding import decode, tiny_runner
from tests.simulated import NO_PASS, SimulatedView, hashing, simulate, verify

PROMPT = [10, 11, 12, 13, 14, 15, 16, 17]


def counting(tokens):
    """Write one more than the last token."""
    return tokens[-1] + 1


def guesses(drafter, view, target, budget=16):
    """Return a step's draft."""
    [tree] = drafter.propose([view], [budget])
    drafter.observe([verify(view, tree, target)], NO_PASS)
    return list(tree.tokens)


def by_hand(target, tokens, block, count):
    """Iterate x(i) <- f(tokens, x(1) ... x(i - 1)) on a block of fixed places, until all of it stays as it is.

    Returns the fixed point and the number of iterations: the algorithm of arXiv:2305.10427 (parallel Jacobi).
    """
    guess = list(block)
    for iteration in range(1, count + 2):
        new = [target([*tokens, *guess[:i]]) for i in range(count)]
        if new == guess:
            return guess, iteration
        guess = new
    raise AssertionError("a block of n tokens is at its fixed point after n iterations at most")


def test_the_next_guesses_are_the_targets_tokens_behind_the_last_ones():
    drafter, view = Jacobi(block=4), SimulatedView.start(1, PROMPT)
    target = hashing(50)
    first = guesses(drafter, view, target)
    accepted = len(view.output) - 1
    expected = [target([*PROMPT, *first[: i + 1]]) for i in range(4)]  # for the positions behind each guess
    assert guesses(drafter, view, target)[: 4 - accepted - 1] == expected[accepted:-1]


def test_the_draft_converges_to_the_fixed_point_of_the_iteration_by_hand():
    target = hashing(3)  # few tokens: wrong guesses are right by chance, and wrong again
    for prompt in ([1, 2, 0], [2, 2, 1, 0], [0, 1]):
        drafter, view = Jacobi(block=6), SimulatedView.start(1, prompt)
        [tree] = drafter.propose([view], [6])
        first = list(tree.tokens)
        text, iterations = by_hand(target, prompt, first, 6)
        steps = 0
        while len(view.output) < 6:
            [tree] = drafter.propose([view], [6 - len(view.output)])
            drafter.observe([verify(view, tree, target)], NO_PASS)
            steps += 1
        assert view.output[:6] == text
        assert steps <= iterations


def test_guesses_that_came_true_are_committed_together_with_the_token_behind_them():
    drafter, view = Jacobi(block=8), SimulatedView.start(1, PROMPT)
    drafter._guesses[1] = {8 + i: 18 + i for i in range(8)}
    guesses(drafter, view, counting)
    assert view.output == list(range(18, 27))


def test_what_was_cut_away_from_a_draft_waits_at_its_position():
    drafter, view = Jacobi(block=6), SimulatedView.start(1, PROMPT)
    [tree] = drafter.propose([view], [6])
    drafter.observe([verify(view, merge([tree], 2), counting)], NO_PASS)
    waiting = {p: t for p, t in zip(range(8, 14), tree.tokens, strict=True) if p >= 11}
    assert {p: drafter._guesses[1][p] for p in waiting} == waiting


def test_a_step_that_verified_nothing_of_it_changes_nothing():
    drafter, view = Jacobi(block=3), SimulatedView.start(1, PROMPT)
    drafter.propose([view], [3])
    before = dict(drafter._guesses[1])
    drafter.observe([verify(view, DraftTree((9,), (-1,), (("other",),), (0.5,)), counting)], NO_PASS)
    assert drafter._guesses[1] == before


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 3}], ids=["greedy", "sampled"])
def test_it_writes_what_plain_decoding_writes_in_no_more_steps(options):
    runner = tiny_runner(vocab_size=11)
    [plain] = decode(runner, [[1, 2, 3]], max_new_tokens=60, **options)
    [drafted] = decode(tiny_runner(vocab_size=11), [[1, 2, 3]], drafter=Jacobi(), max_new_tokens=60, **options)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.steps < plain.stats.steps  # among 11 tokens some guess comes true


def test_a_text_of_one_token_comes_in_whole_blocks_once_it_has_begun():
    run = simulate(Jacobi(block=8), lambda tokens: 5, PROMPT, 91, budget=8)
    assert run.output == [5] * 91
    assert run.tokens_per_step > 6  # 9 from every block whose guesses the text has, 1 from the others


@pytest.mark.parametrize("block", [0, -1, 65])
def test_an_impossible_block_is_refused(block):
    with pytest.raises(UsageError, match=r"block must be in \[1, 64\]"):
        Jacobi(block=block)
