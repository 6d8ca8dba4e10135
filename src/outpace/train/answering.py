"""The stage `responses` on an accelerator: the jobs of `text/responses.py`, answered thousands at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice

import torch

from outpace.api import LanguageModel
from outpace.train.device import device_of, name_of, torch_target
from outpace.train.networks.transformer import is_supported
from outpace.train.text.corpus import Conversation
from outpace.train.text.prompts import Message, encode
from outpace.train.text.responses import MIN_P, SHORTEST, Beginning, Job, conversation_of
from outpace.train.writing import Ask, TextWriter

_JOBS = 8192  # answered together, and then written down


def writer_on(lm: LanguageModel, device: str, max_tokens: int, max_prompt_tokens: int) -> AcceleratedResponder | None:
    """Return what answers on a device (an option's value); None where the engine itself has to."""
    chosen = device_of(device)
    if chosen.type == "cpu" or not is_supported(lm.config):
        return None
    return AcceleratedResponder(lm, chosen, max_tokens, max_prompt_tokens)


@dataclass(slots=True)
class _Said:
    """One job under way. messages: so far; ids: of all that the next response continues."""

    job: Job
    messages: list[Message]
    ids: list[int]
    found: list[Conversation]


class AcceleratedResponder:
    """Answers jobs as `Responder` does, on a device. name: of who writes, for the card."""

    def __init__(self, lm: LanguageModel, device: torch.device, max_tokens: int, max_prompt_tokens: int) -> None:
        self._lm, network = lm, torch_target(lm, device).network
        self._writer = TextWriter(network, sorted(lm.tokenizer.eos_ids), max_tokens)
        self._max_prompt = min(max_prompt_tokens, lm.runner.context - max_tokens)
        self.name = f"{name_of(device)}, as the engine computes"

    def answers(
        self, jobs: Iterable[Job], go_on: Callable[[], bool]
    ) -> Generator[tuple[Job, list[Conversation]], None, None]:
        """Yield the conversations of each job, in order, while `go_on` says so; what was begun is finished."""
        source = iter(jobs)
        while go_on() and (part := list(islice(source, _JOBS))):
            yield from self._answer(part)

    def _answer(self, jobs: list[Job]) -> list[tuple[Job, list[Conversation]]]:
        everyone = [self._begin(job) for job in jobs]
        turn, going = 0, everyone
        while going := [own for own in going if len(own.ids) <= self._max_prompt]:
            going = self._say(going, turn)
            turn += 1
        return [(own.job, own.found) for own in everyone]

    def _begin(self, job: Job) -> _Said:
        if isinstance(job.prompt, Beginning):
            return _Said(job, [], list(job.prompt.tokens), [])
        messages = list(job.prompt.messages)
        return _Said(job, messages, encode(self._lm.tokenizer, messages), [])

    def _say(self, going: list[_Said], turn: int) -> list[_Said]:
        """Add a response to each; return those that go on with a further turn."""
        seeds = [(own.job.seed + turn) % 2**64 for own in going]
        asks = [
            Ask(own.ids, own.job.temperature, MIN_P if own.job.temperature else 0.0, seed)
            for own, seed in zip(going, seeds, strict=True)
        ]
        further = []
        for own, seed, written in zip(going, seeds, self._writer.write(asks), strict=True):
            prompt, response = own.job.prompt, written.tokens[: written.useful].tolist()
            if len(response) >= SHORTEST:
                own.found.append(conversation_of(own.ids, response, prompt.kind, own.job.temperature, seed))
            if isinstance(prompt, Beginning) or written.useful < len(written.tokens) or turn == len(prompt.turns):
                continue
            said = self._lm.tokenizer.decode(response, context=own.ids)
            own.messages += [{"role": "assistant", "content": said}, {"role": "user", "content": prompt.turns[turn]}]
            own.ids = encode(self._lm.tokenizer, own.messages)
            further.append(own)
        return further
