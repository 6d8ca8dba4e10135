from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from outpace import LanguageModel
from outpace.errors import UsageError
from outpace.models.checkpoint import open_checkpoint
from outpace.train.distill.measure import accepted, closeness
from outpace.train.networks.transformer import Dequantised, TransformerNetwork
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation


def test_a_draft_is_accepted_as_far_as_it_is_the_text() -> None:
    """Six tokens; the first is the prompt's own pass'. The last one is never drafted: the target gives it itself."""
    hits = np.array([False, True, True, False, True, True])
    assert accepted(hits, 4).tolist() == [2, 1, 0, 1, 0]
    assert accepted(hits, 1).tolist() == [1, 1, 0, 1, 0]
    assert accepted(np.array([True]), 4).tolist() == []


def test_the_teacher_is_as_near_to_itself_as_can_be(
    lm: LanguageModel, target: EngineTarget, held_out: list[Conversation]
) -> None:
    """The engine multiplies in 8 bits, so a few near ties may fall otherwise. 40 tokens take 9 steps of five."""
    network = TransformerNetwork.of(lm.config, Dequantised(open_checkpoint(lm.path).tensors))
    found = closeness(network, target, held_out, 4)
    assert found.top1 > 0.97
    assert found.perplexity == pytest.approx(found.teacher_perplexity, rel=0.05)
    assert 4 < found.tokens_per_step <= 40 / 9
    assert found.positions == sum(len(own.tokens) - own.num_prompt for own in held_out)


def test_measures_are_those_of_single_texts(
    student: TransformerNetwork, target: EngineTarget, held_out: list[Conversation]
) -> None:
    found = closeness(student, target, held_out[:3], 2)
    surprise, agreed = [], []
    for own in held_out[:3]:
        rows = slice(own.num_prompt - 1, len(own.tokens) - 1)
        tokens = torch.from_numpy(own.tokens).long()
        with torch.no_grad():
            logits = student.logits(student(tokens[None])[student.last_tap][0, rows])
        theirs = target.states([own.tokens], (5,))[5][0][rows] @ target.unembedding.T
        surprise.append(F.cross_entropy(logits, tokens[own.num_prompt :], reduction="none"))
        agreed.append(logits.argmax(-1) == theirs.argmax(-1))
    assert found.perplexity == pytest.approx(math.exp(float(torch.cat(surprise).mean())), rel=1e-4)
    assert found.top1 == pytest.approx(float(torch.cat(agreed).float().mean()), abs=0.01)


def test_greedy_text_alone_is_drafted_where_there_is_some(
    student: TransformerNetwork, target: EngineTarget, held_out: list[Conversation]
) -> None:
    sampled = [dataclasses.replace(own, sampled=True) for own in held_out[4:]]
    mixed = closeness(student, target, [*held_out[:4], *sampled], 4)
    assert mixed.tokens_per_step == closeness(student, target, held_out[:4], 4).tokens_per_step
    assert closeness(student, target, sampled, 4).tokens_per_step > 1


def test_without_a_response_nothing_is_measured(
    student: TransformerNetwork, target: EngineTarget, held_out: list[Conversation]
) -> None:
    own = held_out[0]
    bare = dataclasses.replace(own, tokens=own.tokens[: own.num_prompt])
    with pytest.raises(UsageError, match="no held-out text to measure students on"):
        closeness(student, target, [bare], 4)
