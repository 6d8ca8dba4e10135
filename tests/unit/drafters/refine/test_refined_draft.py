from __future__ import annotations

import pytest

from outpace.drafters.refine.refined_draft import RefinedDraft
from outpace.drafters.refine.rules import ByConfidence
from outpace.errors import UsageError
from tests.decoding import decode, tiny_runner
from tests.refining import Dense, probabilities, refiner

PROMPT = [5, 6, 7, 8, 9]


def test_a_draft_is_the_block_that_the_refiner_fills() -> None:
    runner = tiny_runner()
    seen = []

    class Watched(RefinedDraft):
        def propose(self, sequences, budgets):  # type: ignore[no-untyped-def]
            trees = super().propose(sequences, budgets)
            seen.append((list(sequences[0].tokens), trees[0].tokens, trees[0].confidence))
            return trees

    one = Watched(refiner(4, ByConfidence(threshold=2.0, passes=1)), runner, 1)
    decode(runner, [PROMPT], drafter=one, max_new_tokens=9, max_draft=8)
    text, tokens, confidence = seen[0]
    p = probabilities(Dense().block_logits(text, [-1] * 4))
    assert tokens == tuple(p.argmax(axis=1))
    assert confidence == pytest.approx(p.max(axis=1), rel=1e-4)


def test_the_first_guess_of_a_block_of_one_is_the_targets_own_token() -> None:
    runner = tiny_runner()
    one = RefinedDraft(refiner(1, ByConfidence(threshold=2.0, passes=1)), runner, 1)
    (g,) = decode(runner, [PROMPT], drafter=one, max_new_tokens=20)
    assert g.stats.accepted == {"block_diffusion": 10}
    assert g.stats.tokens_per_step == 2


def test_sampled_blocks_are_guessed_with_the_targets_noise() -> None:
    runner = tiny_runner()
    one = RefinedDraft(refiner(1, ByConfidence(threshold=2.0, passes=1)), runner, 1)
    options = {"temperature": 1.0, "seed": 5, "max_new_tokens": 20}
    (g,) = decode(runner, [PROMPT], drafter=one, **options)
    (expected,) = decode(tiny_runner(), [PROMPT], **options)
    assert g.output.tokens == expected.output.tokens
    assert g.stats.tokens_per_step == 2


def test_a_network_that_sees_the_whole_text_is_refused() -> None:
    with pytest.raises(UsageError, match="has no next token to verify"):
        RefinedDraft(refiner(4, sees_all=True), tiny_runner(), 1)
