from __future__ import annotations

import numpy as np
import torch

from outpace.train.distill.labelled import labelled, num_labels
from outpace.train.text.corpus import Conversation

CPU = torch.device("cpu")


def own(tokens: list[int], num_prompt: int) -> Conversation:
    return Conversation(np.array(tokens, np.int32), num_prompt, False, "tiny")


def test_every_token_of_a_response_is_learned_at_the_position_before_it() -> None:
    batch = labelled([own([1, 2, 3, 4], 2), own([5, 6, 7], 3), own([8, 9], 1)], CPU)
    assert batch is not None
    assert batch.tokens.tolist() == [[1, 2, 3, 4], [8, 9, 0, 0]]
    assert (batch.lengths, batch.counts) == ((4, 2), (2, 1))
    assert batch.places.tolist() == [1, 2, 4]
    assert batch.following.tolist() == [3, 4, 9]


def test_text_without_a_prompt_is_learned_from_its_second_token_on() -> None:
    batch = labelled([own([1, 2, 3], 0)], CPU)
    assert batch is not None
    assert batch.following.tolist() == [2, 3]
    assert num_labels(own([1, 2, 3], 0)) == 2


def test_where_nothing_is_to_learn_there_is_no_batch() -> None:
    assert labelled([own([1, 2], 2), own([1], 0)], CPU) is None
    assert num_labels(own([1], 0)) == num_labels(own([1, 2], 2)) == 0
