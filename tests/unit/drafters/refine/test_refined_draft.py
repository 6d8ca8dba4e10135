from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from outpace.drafters.refine.block import Block, Guesses
from outpace.drafters.refine.refined_draft import RefinedDraft
from outpace.drafters.refine.rules import ByConfidence
from outpace.errors import UsageError
from tests.decoding import decode, tiny_runner
from tests.refining import Dense, probabilities, refiner

PROMPT = [5, 6, 7, 8, 9]


class Watched(RefinedDraft):
    """Remember the first draft, and the text that it was made for."""

    first: tuple[list[int], Any] | None = None

    def propose(self, sequences: Any, budgets: Any) -> list[Any]:
        trees = super().propose(sequences, budgets)
        self.first = self.first or (list(sequences[0].tokens), trees[0])
        return trees


def first_draft(passes: int, max_draft: int = 8) -> tuple[list[int], Any]:
    runner = tiny_runner()
    watched = Watched(refiner(4, ByConfidence(threshold=2.0, passes=passes)), runner, passes, min_confidence=0.0)
    decode(runner, [PROMPT], drafter=watched, max_new_tokens=9, max_draft=max_draft)
    assert watched.first is not None
    return watched.first


def test_one_pass_drafts_the_likeliest_combinations_of_what_it_says_of_each_place() -> None:
    text, tree = first_draft(1)
    p = probabilities(Dense().block_logits(text, [-1] * 4))
    paths = {
        places: float(np.prod([p[depth, token] for depth, token in enumerate(places)]))
        for depth in range(1, 5)
        for places in product(*(np.argsort(-p[i])[:8].tolist() for i in range(depth)))
    }
    best = sorted(paths, key=lambda places: -paths[places])[:8]
    found = {tuple(tree.tokens[node] for node in tree.path(i)) for i in range(len(tree))}
    assert found == set(best)


def test_several_passes_draft_the_block_that_the_refiner_fills() -> None:
    text, tree = first_draft(2)
    network, rule, block = Dense(), ByConfidence(threshold=2.0, passes=2), Block.masked_from(len(text), 4)
    for _ in range(2):
        p = probabilities(network.block_logits(text, block.tokens))
        rule.refine(block, Guesses(p.argmax(axis=1).tolist(), p.max(axis=1).tolist()), ())
        block.num_passes += 1
    assert list(tree.tokens) == block.tokens
    assert tree.parents == (-1, 0, 1, 2)
    assert tree.confidence == pytest.approx(block.confidence, rel=1e-4)


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
