from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from outpace.drafters.block import BlockDrafter
from outpace.drafters.eagle import EagleDrafter
from outpace.drafters.medusa import MedusaDrafter
from outpace.train.corpus import Conversation
from outpace.train.drafts import MIN_CONFIDENCE, accepted
from outpace.train.guesses import Guesses


class _Network:
    """A kind, and the tokens that its head knows: what `accepted` needs of a network."""

    head_tokens = tuple(range(10))

    def __init__(self, kind: str) -> None:
        self.kind = kind


def guesses(tokens: list[int], *depths: list[dict[int, float]]) -> Guesses:
    """Return guesses behind every token but the first and the last; a depth: for each, probabilities of tokens."""
    logits = [np.full((len(rows), 10), -30.0, np.float32) for rows in depths]
    for own, rows in zip(logits, depths, strict=True):
        for row, chances in zip(own, rows, strict=True):
            for token, chance in chances.items():
                row[token] = np.log(chance)
    conversation = Conversation(np.array(tokens, np.int32), 1, False, "x")
    return Guesses(conversation, np.arange(1, len(tokens) - 1), np.arange(10), logits)


def test_a_chain_goes_on_while_it_is_right_and_sure_enough() -> None:
    found = guesses(
        [0, 1, 2, 3, 4],
        [{2: 0.9, 7: 0.1}, {3: 0.6, 7: 0.4}, {7: 0.9, 4: 0.1}],
        [{3: 0.5, 7: 0.4}, {4: 0.1, 7: 0.09}, {7: 1.0}],
    )
    network: Any = _Network("eagle")
    assert accepted(network, found, (1, 2), 0.1).tolist() == [[1, 2], [1, 2], [0, 0]]
    assert accepted(network, found, (1, 2), 0.6).tolist() == [[1, 1], [1, 1], [0, 0]]
    assert accepted(network, found, (1, 2), 0.7).tolist() == [[1, 1], [0, 0], [0, 0]]


def test_a_tree_of_positions_own_guesses_takes_the_likeliest_nodes_first() -> None:
    """At the first anchor 2 (0.5) or 7 (0.4), then 3 (0.9): nodes 2, 2-3, 7, 7-3 in the order of their products."""
    found = guesses(
        [0, 1, 7, 3, 4],
        [{2: 0.5, 7: 0.4, 0: 0.1}, {3: 1.0}, {4: 1.0}],
        [{3: 0.9, 0: 0.1}, {4: 1.0}, {7: 1.0}],
    )
    network: Any = _Network("block")
    assert accepted(network, found, (1, 2, 3, 4), 0.02)[0].tolist() == [0, 0, 1, 2]
    assert accepted(network, found, (1, 2, 3, 4), 0.39)[0].tolist() == [0, 0, 1, 1]
    assert accepted(network, found, (1, 2, 3, 4), 0.02)[1].tolist() == [1, 2, 2, 2]
    assert accepted(network, found, (1, 2, 3, 4), 0.02)[2].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "drafter"), [("eagle", EagleDrafter), ("block", BlockDrafter), ("medusa", MedusaDrafter)]
)
def test_drafts_end_where_the_drafters_own_do(kind: str, drafter: type) -> None:
    assert inspect.signature(drafter).parameters["min_confidence"].default == MIN_CONFIDENCE[kind]
