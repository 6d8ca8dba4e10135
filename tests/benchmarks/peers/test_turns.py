from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.peers.engines import Absent
from benchmarks.peers.process import Worker
from benchmarks.peers.turns import Batch, PeerSample, batches_of, measure_peers
from outpace.api import LanguageModel
from outpace.measure.prompts import TaskPrompt

Start = Callable[..., Worker]
PROMPTS = [TaskPrompt("a", "the cat"), TaskPrompt("b", "the dog")]


def singles(lm: LanguageModel, prompts: list[TaskPrompt] = PROMPTS) -> list[Batch]:
    return batches_of(prompts, [prompt.encode(lm.tokenizer) for prompt in prompts], 1)


def test_engines_alternate_with_ours_on_every_batch(start: Start, lm: LanguageModel) -> None:
    reports: list[tuple[int, int, str]] = []
    seen = list(
        measure_peers(
            lm, [start()], singles(lm),
            strategies=["ngram"], num_tokens=6, repeats=2, progress=lambda *report: reports.append(report),
        )
    )  # fmt: skip
    samples = [s for s in seen if isinstance(s, PeerSample)]
    assert len(samples) == len(seen) == 2 * 2 * 3
    for group, repeat in {(s.group, s.repeat) for s in samples}:
        own = {(s.engine, s.variant) for s in samples if (s.group, s.repeat) == (group, repeat)}
        assert own == {("llama_cpp", "plain"), ("outpace", "none"), ("outpace", "ngram")}
    assert all(s.agreed == s.tokens == 6 for s in samples if s.engine == "outpace")
    assert [done for done, _, _ in reports] == list(range(13))
    assert {total for _, total, _ in reports} == {12}


def test_who_waits_takes_no_processor_time_while_we_write(start: Start, lm: LanguageModel) -> None:
    seen = measure_peers(lm, [start(), start()], singles(lm), strategies=[], num_tokens=6, repeats=1)
    ours = [s for s in seen if isinstance(s, PeerSample) and s.engine == "outpace"]
    assert [s.waiting for s in ours] == [0.0, 0.0]


def test_an_engine_that_fails_midway_is_left_out_from_then_on(
    start: Start, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start()
    real, answers = worker.ask, iter([None, {"error": "gone"}])
    monkeypatch.setattr(worker, "ask", lambda order: next(answers, None) or real(order))
    seen = list(measure_peers(lm, [worker], singles(lm), strategies=[], num_tokens=4, repeats=2))
    assert [s for s in seen if isinstance(s, Absent)] == [Absent("llama_cpp", "plain", "gone")]
    assert {s.engine for s in seen if isinstance(s, PeerSample)} == {"outpace"}
    assert len(seen) == 1 + 4


def test_an_engine_that_fails_at_once_is_left_out(start: Start, lm: LanguageModel) -> None:
    seen = list(measure_peers(lm, [start()], [Batch("a", [[299]])], strategies=[], num_tokens=4, repeats=1))
    assert seen[0] == Absent("llama_cpp", "plain", "RuntimeError: broke down")
    assert len(seen) == 2


def test_a_batch_has_prompts_of_one_category_and_one_length() -> None:
    prompts = [TaskPrompt("a", "1"), TaskPrompt("b", "2"), TaskPrompt("a", "3"), TaskPrompt("a", "4")]
    batches = batches_of(prompts, [[1, 1, 1], [2], [3, 3], [4, 4, 4, 4]], 2)
    assert batches == [Batch("a", [[1, 1], [3, 3]]), Batch("a", [[4, 4, 4], [1, 1, 1]]), Batch("b", [[2], [2]])]


def test_a_batch_of_ours_is_one_sample(lm: LanguageModel) -> None:
    batches = batches_of([TaskPrompt("a", "x"), TaskPrompt("a", "y")], [[5, 6, 7], [8, 9]], 2)
    (sample,) = measure_peers(lm, [], batches, strategies=[], num_tokens=4, repeats=1)
    assert isinstance(sample, PeerSample)
    assert (sample.batch, sample.prompt_tokens, sample.tokens, sample.agreed) == (2, 4, 8, 8)
    assert sample.rate * sample.seconds == pytest.approx(8)
    assert sample.prefill_rate is None


def test_the_speed_of_one_sequence_counts_from_its_first_token() -> None:
    values: dict[str, Any] = {"seconds": 3.0, "first_seconds": 1.0, "agreed": 11}
    sample = PeerSample("x", "plain", "a", 0, 0, 1, 100, 11, **values)
    assert (sample.rate, sample.prefill_rate) == (5.0, 100.0)
