from __future__ import annotations

import numpy as np
import pytest

from outpace.api import LanguageModel
from outpace.train.text.prompts import Prompt, encode, user_prompt
from outpace.train.text.responses import (
    MIN_P,
    SHORTEST,
    TEMPERATURES,
    Beginning,
    Job,
    Responder,
    Source,
    drawn,
    jobs_of,
)

PROMPTS: list[Source] = [(user_prompt(f"prompt {i}"), 100 + i) for i in range(8)]


def test_half_are_greedy_and_the_second_round_is_the_other_way_round() -> None:
    jobs = list(jobs_of(PROMPTS, 32, seed=3))
    assert [job.number for job in jobs] == list(range(32))
    greedy = np.array([job.temperature == 0 for job in jobs]).reshape(4, 8)
    assert greedy[0].tolist() == (~greedy[1]).tolist() == [True, False] * 4
    assert not greedy[2:].any(), "a greedy response can be had only once"
    sampled = [job.temperature for job in jobs if job.temperature]
    assert {temperature: sampled.count(temperature) for temperature in TEMPERATURES} == {0.8: 12, 1.0: 12}
    assert len({job.seed for job in jobs}) == 32
    assert [(job.prompt, job.key) for job in jobs] == PROMPTS * 4


def test_every_kind_is_answered_in_both_ways() -> None:
    mixed: list[Source] = [(user_prompt(f"prompt {i}", "ab"[i % 2]), i) for i in range(8)]
    ways = [(job.prompt.kind, job.temperature > 0) for job in jobs_of(mixed, 8, seed=3)]
    assert ways == [("a", False), ("b", False), ("a", True), ("b", True)] * 2


def test_jobs_can_be_taken_up_anywhere_and_depend_on_the_seed() -> None:
    jobs = list(jobs_of(PROMPTS, 20, seed=3))
    assert list(jobs_of(PROMPTS, 20, seed=3, start=13)) == jobs[13:]
    assert [job.seed for job in jobs_of(PROMPTS, 20, seed=4)] != [job.seed for job in jobs]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_conversation_is_what_the_target_writes_to_the_prompt(lm: LanguageModel, temperature: float) -> None:
    job = Job(0, user_prompt("the cat sat", "pets"), 7, temperature, seed=2**63 + 5)
    (found,) = Responder(lm, 20, 100).answer(job)
    ids = encode(lm.tokenizer, [{"role": "user", "content": "the cat sat"}])
    assert found.tokens[: found.num_prompt].tolist() == ids
    again = lm.generate(ids, max_new_tokens=len(found.tokens) - len(ids), seed=found.seed, **drawn(found.temperature))
    assert again.tokens == found.tokens[len(ids) :].tolist()
    assert (found.kind, found.sampled, found.temperature) == ("pets", temperature > 0, temperature)
    assert (found.min_p, found.seed) == ((MIN_P, job.seed) if temperature else (0.0, 0))


def test_every_turn_is_a_conversation_that_begins_with_those_before(lm: LanguageModel) -> None:
    prompt = Prompt(({"role": "user", "content": "the cat"},), ("the dog", "the log"))
    first, second, third = Responder(lm, 10, 1000).answer(Job(0, prompt, 0, 0.9, seed=1))
    assert len(first.tokens) < second.num_prompt < third.num_prompt
    said = [lm.tokenizer.decode(own.tokens[own.num_prompt :]) for own in (first, second)]
    messages = [*prompt.messages, {"role": "assistant", "content": said[0]}, {"role": "user", "content": "the dog"}]
    assert second.tokens[: second.num_prompt].tolist() == encode(lm.tokenizer, messages)
    assert first.seed != second.seed


def test_loops_are_cut_and_end_the_conversation(lm: LanguageModel) -> None:
    """A bias makes the tiny model say one token for ever."""

    class Biased:
        runner, tokenizer = lm.runner, lm.tokenizer

        def generate(self, ids: list[int], **options: object) -> object:
            return lm.generate(ids, logit_bias={9: 1e4}, **options)  # type: ignore[call-overload]

    prompt = Prompt(({"role": "user", "content": "the cat"},), ("the dog",))
    (found,) = Responder(Biased(), 120, 1000).answer(Job(0, prompt, 0, 0.0, 0))  # type: ignore[arg-type]
    assert found.tokens[found.num_prompt :].tolist() == [9] * 41


def test_what_is_too_long_to_ask_is_not_answered(lm: LanguageModel) -> None:
    assert Responder(lm, 10, 10).answer(Job(0, user_prompt("the cat sat on the mat " * 5), 0, 0.0, 0)) == []
    room = lm.runner.context - 10
    assert Responder(lm, 10, 10**6).answer(Job(0, Beginning((5,) * (room + 1), "x"), 0, 0.0, 0)) == []


def test_a_response_that_ends_at_once_teaches_nothing(lm: LanguageModel) -> None:
    assert Responder(lm, SHORTEST - 1, 100).answer(Job(0, user_prompt("the cat"), 0, 0.0, 0)) == []


def test_token_ids_are_continued_as_they_are(lm: LanguageModel) -> None:
    (found,) = Responder(lm, 12, 100).answer(Job(0, Beginning((5, 6, 7, 8), "given"), 0, 0.0, 0))
    assert (found.tokens[:4].tolist(), found.num_prompt, found.kind) == ([5, 6, 7, 8], 4, "given")
