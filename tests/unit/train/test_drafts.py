from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from outpace.train.drafting import Drafted
from outpace.train.drafts import accepted
from outpace.train.export import read_network
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome


@pytest.mark.parametrize("kind", ["eagle", "medusa", pytest.param("block", marks=pytest.mark.slow)])
def test_more_nodes_confirm_more_and_never_more_than_there_are(
    trained_of: Callable[[str], Outcome[Drafted]], target: EngineTarget, held_out: list[Conversation], kind: str
) -> None:
    network = read_network(trained_of(kind).path, kind, target)
    for own, found in accepted(network, target, held_out[:3], (1, 2, 4, 8), 0.0):
        left = len(own.tokens) - 1 - np.arange(own.num_prompt, len(own.tokens) - 1)
        assert found.shape == (len(left), 4)
        assert (found <= np.minimum(left[:, None] - 1, [1, 2, 4, 8])).all()
        assert (np.diff(found, axis=1) >= 0).mean() > 0.97  # a wider tree may leave a deep node out
    assert found.any()


@pytest.mark.parametrize("kind", ["eagle", "medusa", pytest.param("block", marks=pytest.mark.slow)])
def test_what_is_in_the_call_beside_a_conversation_changes_nothing(
    trained_of: Callable[[str], Outcome[Drafted]], target: EngineTarget, held_out: list[Conversation], kind: str
) -> None:
    network = read_network(trained_of(kind).path, kind, target)
    together = {id(own): found for own, found in accepted(network, target, held_out[:5], (2, 4, 7))}
    for own in held_out[:5]:
        for budget, column in zip((2, 4, 7), together[id(own)].T, strict=True):
            ((_, alone),) = accepted(network, target, [own], (budget,))
            assert alone[:, 0].tolist() == column.tolist()


def test_nothing_is_proposed_where_nothing_is_likely_enough(
    trained: Outcome[Drafted], target: EngineTarget, held_out: list[Conversation]
) -> None:
    network = read_network(trained.path, "eagle", target)
    ((_, found),) = accepted(network, target, held_out[:1], (4,), 1.0)
    assert not found.any()
