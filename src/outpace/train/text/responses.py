"""Responses by the target itself: what a drafter must learn is what this model says, not what others say.

Half of them greedy, half sampled at temperatures 0.8 and 1.0 with min-p, as it is asked at run time. Each is a function
of (its prompt, the seed), whatever else is in the batch, so a corpus that was interrupted is the one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.api import LanguageModel
from outpace.measure.prompts import ranks
from outpace.train.text.corpus import Conversation, key_of
from outpace.train.text.loops import cut_loop
from outpace.train.text.prompts import Prompt, encode

MIN_P = 0.03
TEMPERATURES = (0.8, 1.0)
SHORTEST = 4  # tokens of a response worth learning


@dataclass(frozen=True, slots=True)
class Beginning:
    """Token ids that the target continues."""

    tokens: tuple[int, ...]
    kind: str


Source = tuple[Prompt | Beginning, int]  # with its key


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to answer, in one way. number: which job of the run. temperature 0: greedy."""

    number: int
    prompt: Prompt | Beginning
    key: int
    temperature: float
    seed: int


def jobs_of(sources: Sequence[Source], count: int, seed: int, start: int = 0) -> Iterator[Job]:
    """Yield the jobs from number `start` to `count`: every prompt once a round.

    Prompts of one kind are answered in turn in different ways, and each in the second round in the other way than in
    the first; from the third round on everything is sampled, since a greedy response can be had only once.
    """
    numbers = ranks(prompt.kind for prompt, _ in sources)
    for number in range(start, count):
        which, place = divmod(number, len(sources))
        prompt, key = sources[place]
        greedy = which < 2 and (numbers[place] + which) % 2 == 0
        temperature = 0.0 if greedy else TEMPERATURES[(numbers[place] // 2 + which) % len(TEMPERATURES)]
        yield Job(number, prompt, key, temperature, key_of([seed & 0x7FFFFFFF, seed >> 31, place, which]))


class Responder:
    """Answers jobs on one model. max_tokens: of a response. max_prompt_tokens: of a conversation that is answered."""

    def __init__(self, lm: LanguageModel, max_tokens: int, max_prompt_tokens: int) -> None:
        self._lm, self._max_tokens = lm, max_tokens
        self._max_prompt = min(max_prompt_tokens, lm.runner.context - max_tokens)

    def answer(self, job: Job) -> list[Conversation]:
        """Return a conversation for each of the prompt's turns, as far as they are worth learning."""
        if isinstance(job.prompt, Beginning):
            return self._write(list(job.prompt.tokens), job, job.seed)[0]
        messages, found = list(job.prompt.messages), []
        for number in range(1 + len(job.prompt.turns)):
            ids = encode(self._lm.tokenizer, messages)
            own, said = self._write(ids, job, (job.seed + number) % 2**64)
            found += own
            if said is None or number == len(job.prompt.turns):
                break
            messages += [
                {"role": "assistant", "content": said},
                {"role": "user", "content": job.prompt.turns[number]},
            ]
        return found

    def _write(self, ids: list[int], job: Job, seed: int) -> tuple[list[Conversation], str | None]:
        """Return what the target writes to `ids`, if it is worth learning, and its text, if one can go on from it."""
        if len(ids) > self._max_prompt:
            return [], None
        result = self._lm.generate(
            ids, max_new_tokens=self._max_tokens, seed=seed, strategy="none", **drawn(job.temperature)
        )
        end = cut_loop(result.tokens)
        text = result.text if end == len(result.tokens) else None
        if end < SHORTEST:
            return [], text
        return [conversation_of(ids, result.tokens[:end], job.prompt.kind, job.temperature, seed)], text


def conversation_of(
    prompt: Sequence[int], response: Sequence[int], kind: str, temperature: float, seed: int
) -> Conversation:
    """Return what was written to a prompt, with how it was drawn."""
    tokens = np.array([*prompt, *response], np.int32)
    min_p = MIN_P if temperature else 0.0
    return Conversation(tokens, len(prompt), temperature > 0, kind, temperature, min_p, seed if temperature else 0)


def drawn(temperature: float) -> dict[str, Any]:
    """Return the options of `generate` that draw a response."""
    return {"temperature": temperature, "min_p": MIN_P} if temperature else {"temperature": 0.0}
