from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from outpace.train.distill.labelled import labelled
from outpace.train.distill.objectives import forward_kl, total_variation, with_rest
from outpace.train.distill.teacher import Likely, LikelyTokens, Whole
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation

CPU = torch.device("cpu")


def logits_of(target: EngineTarget, conversations: list[Conversation]) -> torch.Tensor:
    states = target.states([own.tokens for own in conversations], (5,))[5]
    rows = [x[own.num_prompt - 1 : len(own.tokens) - 1] for own, x in zip(conversations, states, strict=True)]
    return torch.cat(rows) @ target.unembedding.T


def test_a_whole_distribution_is_the_softmax_of_all_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    states, matrix = torch.randn(6, 4, generator=generator), torch.randn(9, 4, generator=generator)
    student = torch.randn(6, 9, generator=generator)
    found = Whole(states, matrix, torch.float32, total_variation).rows(2, 5)(student[2:5])
    expected = ((states @ matrix.T).softmax(-1) - student.softmax(-1)).abs().sum(-1)[2:5] / 2
    assert torch.allclose(found, expected, atol=1e-6)


def test_kept_distributions_are_the_likely_tokens_and_the_rest(
    target: EngineTarget, text: list[Conversation], tmp_path: Path
) -> None:
    """In float16 a log-probability of up to 16 keeps 8 thousandths."""
    kept = LikelyTokens(tmp_path, text[:6], 5)
    teacher = logits_of(target, text[2:4])
    batch = labelled(text[2:4], CPU)
    assert batch is not None
    likely = kept.of([2, 3], batch, target, torch.float32, forward_kl)
    student = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    tokens = teacher.topk(5).indices
    expected = forward_kl(with_rest(student, tokens), with_rest(teacher, tokens))
    found = likely.rows(0, len(teacher))(student)
    assert torch.allclose(found, expected, atol=0.02)
    assert torch.equal(likely.rows(3, 7)(student[3:7]), found[3:7])


def test_what_is_kept_is_the_same_for_the_next_process(
    target: EngineTarget, text: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = labelled(text[:2], CPU)
    assert batch is not None
    first = LikelyTokens(tmp_path, text[:4], 5).of([0, 1], batch, target, torch.float32, forward_kl)
    monkeypatch.setattr(target, "padded", None)
    again = LikelyTokens(tmp_path, text[:4], 5).of([0, 1], batch, target, torch.float32, forward_kl)
    student = torch.randn(len(batch.places), target.config.vocab_size)
    rows = slice(0, len(batch.places))
    assert torch.equal(first.rows(0, rows.stop)(student), again.rows(0, rows.stop)(student))


def test_rounded_probabilities_still_add_up() -> None:
    """Where all of the mass is on the likely tokens, and rounding makes more of it than there is."""
    logprobs = torch.tensor([[0.51, 0.4999]]).log()
    likely = Likely(torch.tensor([[0, 1]]), logprobs, forward_kl)
    student = torch.zeros(1, 4)
    found = float(likely.rows(0, 1)(student))
    expected = 0.505 * np.log(0.505 / 0.25) + 0.495 * np.log(0.495 / 0.25)
    assert found == pytest.approx(expected, abs=1e-3)
