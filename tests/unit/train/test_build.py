from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace.errors import UsageError
from outpace.train.build import build_network, default_taps, frequent_tokens, fresh_network
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.weights.trained import Entries


def test_the_head_knows_the_most_frequent_tokens_of_the_responses_first() -> None:
    text = [
        Conversation(np.array([9, 9, 9, 3, 4, 3], np.int32), 3, False, "a"),
        Conversation(np.array([8, 5, 4, 3], np.int32), 1, False, "a"),
    ]
    assert frequent_tokens(text, 8 + 2).tolist() == [3, 4, 5, 0, 1, 2, 6, 7, 8, 9]


def test_the_default_taps_of_thirty_layers_are_those_of_the_shipped_drafter() -> None:
    assert default_taps(30) == (6, 14, 22, 30)
    assert default_taps(2) == (1, 2)
    assert default_taps(1) == (1,)


@pytest.mark.parametrize("taps", [(2, 1), (0, 1), (1, 3)])
def test_taps_that_the_target_has_not_are_refused(
    target: EngineTarget, text: list[Conversation], taps: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match=r"taps must be ascending layers in \[1, 2\]"):
        fresh_network("eagle", target, text, TrainSettings(steps=1, taps=taps))


def test_a_fresh_network_depends_on_the_seed_alone(target: EngineTarget, text: list[Conversation]) -> None:
    one, same, other = (fresh_network("eagle", target, text, TrainSettings(steps=1, seed=s)) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.get_parameter("wq"), other.get_parameter("wq"))


def test_a_head_of_more_rows_than_tokens_has_them_all(target: EngineTarget, text: list[Conversation]) -> None:
    network = fresh_network("eagle", target, text, TrainSettings(steps=1))
    assert sorted(network.head_tokens) == list(range(target.config.vocab_size))
    assert network.num_fixed == target.config.vocab_size
    assert torch.equal(network.head, target.unembedding[list(network.head_tokens)])


def test_numbers_and_parameters_make_the_same_network_again(target: EngineTarget, text: list[Conversation]) -> None:
    network = fresh_network("eagle", target, text, TrainSettings(steps=1, head_rows=50, num_fixed=20))
    again = build_network("eagle", Entries(network.numbers(), "here"), network.state_dict(), target)
    assert again.numbers() == network.numbers()
    assert all(torch.equal(x, y) for x, y in zip(network.parameters(), again.parameters(), strict=True))
