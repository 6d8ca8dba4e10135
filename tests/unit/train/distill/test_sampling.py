from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace.train.distill.sampling import written_by
from outpace.train.networks.transformer import TransformerNetwork
from outpace.train.text.corpus import Conversation
from tests.distilling import network


def conversation(*prompt: int) -> Conversation:
    return Conversation(np.array([*prompt, 9, 9], np.int32), len(prompt), False, "tiny")


PROMPTS = [conversation(5, 6, 7, 8, 9, 10), conversation(11), conversation(12, 13, 14)]


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_each_response_is_drawn_from_the_network_alone(model_type: str) -> None:
    """The same draws, one conversation after another and without memory; mistral's window is shorter than the text."""
    student = network(model_type, num_hidden_layers=2)
    found = written_by(student, PROMPTS, 30, (), seed=3)
    generator = torch.Generator().manual_seed(3)
    texts = [list(own.tokens[: own.num_prompt]) for own in PROMPTS]
    for _ in range(30):
        with torch.no_grad():
            rows = [student.logits(student(torch.tensor([own]).long())[student.last_tap][0, -1]) for own in texts]
        drawn = torch.multinomial(torch.softmax(torch.stack(rows), dim=-1), 1, generator=generator)
        for own, token in zip(texts, drawn.flatten().tolist(), strict=True):
            own.append(token)
    assert [own.tokens.tolist() for own in found] == texts


def test_an_end_token_ends_a_response_and_prompts_stay() -> None:
    student: TransformerNetwork = network()
    whole = written_by(student, PROMPTS, 12, (), seed=1)
    end = int(whole[0].tokens[10])
    cut = written_by(student, PROMPTS, 12, (end,), seed=1)
    for own, long, short in zip(PROMPTS, whole, cut, strict=True):
        response = long.tokens[own.num_prompt :].tolist()
        expected = response[: response.index(end) + 1] if end in response else response
        assert short.tokens[own.num_prompt :].tolist() == expected
        assert short.tokens[: own.num_prompt].tolist() == own.tokens[: own.num_prompt].tolist()
        assert (short.num_prompt, short.sampled) == (own.num_prompt, True)
    assert written_by(student, PROMPTS, 12, (), seed=2)[0].tokens.tolist() != whole[0].tokens.tolist()
