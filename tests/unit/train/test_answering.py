from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace.api import LanguageModel
from outpace.train import answering
from outpace.train.answering import AcceleratedResponder, writer_on
from outpace.train.text.prompts import Prompt, user_prompt
from outpace.train.text.responses import Beginning, Job, Responder, Source, jobs_of
from outpace.train.torch_target import TorchTarget


@pytest.fixture
def responder(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> AcceleratedResponder:
    """On the CPU, in float32: there its texts can be compared with the engine's."""
    monkeypatch.setattr(answering, "torch_target", TorchTarget)
    return AcceleratedResponder(lm, torch.device("cpu"), 20, 160)


def test_jobs_are_answered_as_the_engine_answers_them(
    lm: LanguageModel, responder: AcceleratedResponder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several turns, raw beginnings, and a prompt that is too long."""
    sources: list[Source] = [
        (user_prompt("the cat sat", "pets"), 1),
        (Prompt(({"role": "user", "content": "the cat"},), ("the dog", "the log")), 2),
        (Beginning((5, 6, 7, 8), "raw"), 3),
        (user_prompt("the cat " * 120), 4),
        (user_prompt("a mat"), 5),
    ]
    monkeypatch.setattr(answering, "_JOBS", 4)
    jobs = list(jobs_of(sources, 15, seed=2))
    found = list(responder.answers(jobs, lambda: True))
    assert [job for job, _ in found] == jobs
    engine = Responder(lm, 20, 160)
    for job, own in found:
        expected = engine.answer(job)
        assert len(own) == len(expected)
        for a, b in zip(own, expected, strict=True):
            assert np.array_equal(a.tokens, b.tokens)
            settings = ("num_prompt", "sampled", "kind", "temperature", "min_p", "seed")
            assert [getattr(a, name) for name in settings] == [getattr(b, name) for name in settings]
    assert max(len(own) for _, own in found) == 3


def test_no_part_is_begun_when_time_is_over(responder: AcceleratedResponder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_JOBS", 2)
    left = [True, False]
    jobs = [Job(i, user_prompt(f"the cat {i}"), i, 0.0, i) for i in range(9)]
    assert len(list(responder.answers(jobs, lambda: left.pop(0)))) == 2


def test_on_the_cpu_the_engine_answers(lm: LanguageModel) -> None:
    assert writer_on(lm, "cpu", 20, 100) is None
