"""Calls on a model: texts as they are written, whole (`Result`), in pieces (`Stream`), turn by turn (`Chat`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack

from outpace.api.options import Options, Settings
from outpace.api.strategies import drafter_for, names_of
from outpace.engine.decode import Decoder, Generation
from outpace.engine.stop import Output
from outpace.engine.verify import Rejection, Rule, Walk
from outpace.errors import UsageError
from outpace.trace import Stats, Step, Trace
from outpace.types import FinishReason, TokenLogprob
from outpace.version import VERSION

if TYPE_CHECKING:
    from outpace.api import LanguageModel


@dataclass(frozen=True, slots=True)
class Result:
    """One text that was written.

    tokens: its ids, the stop token included. sources[i]: who drafted token i (empty: the target itself).
    lossless: whether it is, bit for bit, what plain decoding writes with the same seed.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    seed: int
    lossless: bool
    stats: Stats
    sources: list[tuple[str, ...]]
    logprobs: list[TokenLogprob] | None = None
    trace: Trace | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a stream has new: text that will not be taken back, and the tokens behind it.

    A chunk may have tokens but no text yet (half a character, or the possible beginning of a stop string).
    """

    text: str
    tokens: list[int]
    sources: list[tuple[str, ...]]
    logprobs: list[TokenLogprob] | None = None


class Turn:
    """Whose call on a model is under way: one thread's at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @property
    def taken(self) -> bool:
        """Whether a call is under way."""
        return self._lock.locked()

    def take(self) -> None:
        """Wait for the turn; raises UsageError where this thread would wait for itself."""
        if self._holder == threading.get_ident():
            raise UsageError("this thread has a stream open on this model: finish or close it before another call")
        self._lock.acquire()
        self._holder = threading.get_ident()

    def give_back(self) -> None:
        self._holder = None
        self._lock.release()


class Call:
    """One call under way: it holds the model's turn, decodes, and turns generations into results."""

    def __init__(self, lm: LanguageModel, prompts: list[list[int]], options: Mapping[str, Any], n: int = 1) -> None:
        if not isinstance(n, int) or n < 1:
            raise UsageError(f"n must be at least 1, got {n!r}")
        self.lm = lm
        self.n = n
        settings = Settings.of(options)
        self.settings = replace(settings, seed=settings.drawn_seed())
        self.drafter = drafter_for(lm, self.settings)
        self.rule: Rule = Rejection() if self.settings.rule == "rejection" else Walk()
        self.traced: dict[int, list[Step]] = {}
        self.decoder = Decoder(
            lm.runner,
            self.drafter,
            self.rule,
            keep_past=self.settings.strategy != "recompute",
            record_blocks=self.settings.trace,
        )
        self.groups = [self._add(tokens) for tokens in prompts]

    def _add(self, tokens: list[int]) -> list[Generation]:
        lm = self.lm
        requests = self.settings.requests(
            tokens, self.n, eos_ids=lm.eos_ids, vocab_size=lm.config.vocab_size, context=lm.runner.context
        )
        outputs = [
            Output(
                max_new_tokens=request.max_new_tokens,
                room=lm.runner.context - len(tokens),
                stop_tokens=request.stop_tokens,
                stop_strings=request.stop_strings,
                detokenizer=lm.tokenizer.detokenizer(tokens),
            )
            for request in requests
        ]
        return self.decoder.add(requests, outputs)

    def __enter__(self) -> Call:
        self.lm.turn.take()
        return self

    def __exit__(self, *error: object) -> None:
        self.decoder.close()
        self.lm.turn.give_back()

    def steps(self) -> Iterator[list[Step]]:
        """Decode to the end, keeping the records if the call is traced."""
        for steps in self.decoder.run():
            if self.settings.trace:
                for step in steps:
                    self.traced.setdefault(step.request, []).append(step)
            yield steps

    def result(self, g: Generation) -> Result:
        assert g.finish is not None
        return Result(
            text=g.output.text,
            tokens=g.output.tokens,
            finish_reason=g.finish,
            seed=g.request.seed,
            lossless=self.rule.lossless or g.request.sampling.greedy,
            stats=g.stats,
            sources=g.sources,
            logprobs=g.logprobs if g.request.logprobs is not None else None,
            trace=self._trace(g) if self.settings.trace else None,
        )

    def _trace(self, g: Generation) -> Trace:
        lm = self.lm
        cache = lm.runner.cache
        header = {
            "outpace": VERSION,
            "model": lm.name,
            "ops": lm.runner.ops.name,
            "threads": lm.runner.ops.threads,
            "kv": {"format": cache.spec.format, "block_size": cache.block_size},
            "strategy": "+".join(names_of(self.settings.strategy)),
            "rule": self.settings.rule,
            "seed": g.request.seed,
            "temperature": g.request.sampling.temperature,
            "finish_reason": g.finish,
        }
        prompt = list(g.request.prompt)
        steps = self.traced.get(g.id, [])
        logprobs = g.logprobs if g.request.logprobs is not None else None
        named = {token for step in steps for token in (*step.tree.tokens, *step.picks) if token >= 0}
        named |= {token for own in logprobs or () for token, _ in own.top}
        return Trace(
            header=header,
            prompt=prompt,
            tokens=g.output.tokens,
            pieces=lm.tokenizer.pieces(g.output.tokens),
            sources=g.sources,
            steps=steps,
            stats=g.stats,
            prompt_pieces=lm.tokenizer.pieces(prompt),
            texts={token: lm.tokenizer.detokenizer(prompt[-1:], skip_special=False).push(token) for token in named},
            logprobs=logprobs,
        )


class Stream:
    """An iterator of `Chunk`s over one text as it is written.

    It takes the model's turn at its first chunk and gives it back at the last, or when closed. `result` is the
    whole text: None before the end; after an early `close`, what was written, with finish_reason "cancelled".
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: list[list[int]],
        options: Mapping[str, Any],
        on_end: Callable[[Result], None] | None = None,
    ) -> None:
        self._call = Call(lm, prompts, options)
        self._generation = self._call.groups[0][0]
        self._on_end = on_end
        self._chunks = self._run()
        self.result: Result | None = None

    def _run(self) -> Generator[Chunk, None, None]:
        taken = 0
        try:
            with self._call as call:
                for _ in call.steps():
                    text, tokens = self._generation.output.take()
                    if text or tokens:
                        end = taken + len(tokens)
                        logprobs = self._generation.logprobs[taken:end] if call.settings.logprobs is not None else None
                        yield Chunk(text, tokens, self._generation.sources[taken:end], logprobs)
                        taken = end
        finally:
            self._finish()

    def _finish(self) -> None:
        if self.result is None:
            self._call.decoder.close()
            self.result = self._call.result(self._generation)
            if self._on_end is not None:
                self._on_end(self.result)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """Stop writing; free everything at once."""
        self._chunks.close()
        self._finish()  # where it had not even begun

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Chat:
    """A conversation. Each turn's prompt is the whole conversation; the cache already holds all but the new part."""

    def __init__(self, lm: LanguageModel, system: str | None, options: Mapping[str, Any]) -> None:
        self.lm = lm
        self.options = dict(options)
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def send(self, text: str, **options: Unpack[Options]) -> Result:
        """Say something; return the model's whole answer."""
        with self.stream(text, **options) as stream:
            for _ in stream:
                pass
        assert stream.result is not None
        return stream.result

    def stream(self, text: str, **options: Unpack[Options]) -> Stream:
        """Say something; return the answer as a stream.

        Both sides of the turn join `messages` when the stream ends or is closed (with what was written by then).
        """
        said = [*self.messages, {"role": "user", "content": text}]

        def keep(result: Result) -> None:
            self.messages = [*said, {"role": "assistant", "content": result.text}]

        prompt = self.lm.tokenizer.encode_chat(said)
        return Stream(self.lm, [prompt], {**self.options, **options}, on_end=keep)
