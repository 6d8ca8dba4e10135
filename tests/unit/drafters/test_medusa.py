from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from outpace.drafters.medusa import MedusaDrafter
from outpace.errors import UsageError
from tests.decoding import decode, tiny_ops, tiny_runner
from tests.trained import tiny_medusa, tiny_medusa_drafter

VOCAB = 97


def trees_of(drafter: Any, **options: Any) -> list[Any]:
    (g,) = decode(drafter.runner, [[1, 2, 3]], drafter=Recording(drafter), max_new_tokens=30, **options)
    assert g.stats.steps > 5
    return [tree for tree in RECORDED.pop(id(drafter)) if tree.tokens]


RECORDED: dict[int, list[Any]] = {}


class Recording:
    """Note what a drafter proposes."""

    def __init__(self, drafter: Any) -> None:
        self.drafter, self.name, self.taps = drafter, drafter.name, drafter.taps
        self.observe, self.forget = drafter.observe, drafter.forget
        RECORDED[id(drafter)] = []

    def propose(self, sequences: Any, budgets: Any) -> Any:
        trees = self.drafter.propose(sequences, budgets)
        RECORDED[id(self.drafter)] += trees
        return trees


def test_the_tree_has_the_ranks_that_were_likeliest_when_they_were_measured() -> None:
    drafter = tiny_medusa_drafter(tiny_runner(ops=tiny_ops(), vocab_size=VOCAB))
    accuracies = drafter.network.config.accuracies
    paths = sorted((math.prod(p) for k in (1, 2, 3) for p in itertools.product(*accuracies[:k])), reverse=True)
    trees = trees_of(drafter, max_draft=12)
    shapes = {(tree.parents, tree.confidence) for tree in trees if len(tree) == 12}
    assert len(shapes) == 1  # only its tokens depend on the text
    assert len({tree.tokens for tree in trees}) > 1
    parents, confidence = shapes.pop()
    reached: list[float] = []
    for parent, chance in zip(parents, confidence, strict=True):
        reached.append(chance * (reached[parent] if parent >= 0 else 1.0))
    assert reached == pytest.approx(paths[:12])


@pytest.mark.parametrize("unembedding", ["target", "own"])
def test_heads_with_other_rows_draft_too(unembedding: str) -> None:
    runner = tiny_runner(ops=tiny_ops(), vocab_size=VOCAB)
    drafter = MedusaDrafter(tiny_medusa(runner.model, unembedding=unembedding), runner, min_confidence=0.0)
    known = set(drafter.network.config.head_tokens)
    trees = trees_of(drafter, max_draft=12)
    assert len({tree.tokens for tree in trees}) > 1
    assert all(known >= set(tree.tokens) for tree in trees)


def test_it_adds_no_keys_and_values_and_reads_the_final_norm() -> None:
    runner = tiny_runner(ops=tiny_ops(), vocab_size=VOCAB)
    drafter = tiny_medusa_drafter(runner)
    assert list(runner.cache.groups) == ["target"]
    assert drafter.taps == (runner.model.config.num_layers + 1,)


def test_a_target_whose_layers_slide_is_drafted_for() -> None:
    runner = tiny_runner("mistral", ops=tiny_ops(), vocab_size=VOCAB, sliding_window=40)
    (g,) = decode(runner, [[1, 2, 3]], drafter=tiny_medusa_drafter(runner), max_new_tokens=100)
    assert g.stats.proposed["medusa"] > 200


def test_a_minimum_that_is_no_chance_is_refused() -> None:
    with pytest.raises(UsageError, match=r"min_confidence must be in \[0, 1\], got 2"):
        tiny_medusa_drafter(tiny_runner(), min_confidence=2)
