"""False alarms: 10^-6 per test that passes; what must fail is far outside."""

from __future__ import annotations

import numpy as np
import pytest

from outpace.engine.verify import EXACT_MATCH, REJECTION_SAMPLING
from outpace.measure.certify.distribution import Careless, Contrary, Question, examine
from outpace.runner import Runner
from tests.decoding import decode, request, tiny_ops, tiny_runner

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def runner() -> Runner:
    return tiny_runner(ops=tiny_ops(), vocab_size=40)


@pytest.fixture(scope="module")
def question(runner: Runner) -> Question:
    return Question.of(runner, PROMPT)


def test_the_question_leaves_the_first_token_open_and_its_pairs_are_a_law(question: Question) -> None:
    assert question.first.max() <= 0.5
    assert question.pairs.sum() == pytest.approx(1.0)
    assert (question.second > 0).sum(axis=1).tolist() == [5] * 5


@pytest.mark.parametrize("name", ["plain", "walk", "rejection", "careless"])
def test_right_rules_pass_and_the_careless_one_is_caught(runner: Runner, question: Question, name: str) -> None:
    verifier = {"plain": EXACT_MATCH, "walk": EXACT_MATCH, "rejection": REJECTION_SAMPLING, "careless": Careless()}[
        name
    ]
    drafter = None if name == "plain" else Contrary(question)
    found = examine(runner, question, verifier, drafter, draws=1500, false_alarm=1e-6)
    assert found.passed == (name != "careless")
    assert found.draws == 1500
    assert found.cells > 10
    assert runner.cache.num_available == runner.cache.capacity


def test_the_contrary_drafters_guesses_have_the_law_that_it_states(question: Question) -> None:
    from outpace.measure.certify.chi_square import chi_square

    drafter = Contrary(question)
    firsts = np.zeros(40, np.int64)
    for seed in range(2000):
        view = _View(seed)
        (tree,) = drafter.propose([view], [3])
        assert tree.q is not None
        assert len(set(tree.tokens[:2])) == 2
        firsts[tree.tokens[0]] += 1
    assert chi_square(firsts, drafter.q_first).passed
    assert drafter.q_first[question.tokens[0]] < drafter.q_first[question.tokens[-1]]


class _View:
    id = 0

    def __init__(self, seed: int) -> None:
        self.request = request(PROMPT, seed=seed)
        self.tokens = PROMPT


def test_most_of_its_guesses_are_rejected_so_the_residual_matters(runner: Runner, question: Question) -> None:
    texts = [
        decode(runner, [PROMPT], drafter=Contrary(question), verifier=REJECTION_SAMPLING, seed=seed, max_new_tokens=4,
               temperature=question.sampling.temperature, top_k=question.sampling.top_k)[0]
        for seed in range(60)
    ]  # fmt: skip
    verified = sum(g.stats.proposed["contrary"] for g in texts)
    accepted = sum(g.stats.accepted.get("contrary", 0) for g in texts)
    assert 0.05 < accepted / verified < 0.6
