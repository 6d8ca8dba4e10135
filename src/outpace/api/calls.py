"""What a caller holds of submitted requests: whole results (`Result`), pieces (`Stream`), turns (`Chat`)."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

from outpace.api.options import drawn_seed, requests
from outpace.api.refining import refiner_for, warnings_of
from outpace.api.strategies import drafter_for, names_of, verifier_for
from outpace.engine.engine import Engine
from outpace.engine.loaded import LoadedModel
from outpace.engine.sequence import SequenceState
from outpace.engine.stop import Output
from outpace.errors import instance
from outpace.trace import Stats, Trace
from outpace.types import FinishReason, OptionKeywords, Options, Request, TokenLogprob, given
from outpace.version import VERSION


@dataclass(frozen=True, slots=True)
class Result:
    """One text that was written.

    tokens: its ids, the stop token included. sources[i]: who drafted token i (empty: the target itself).
    lossless: whether it is, bit for bit, what plain decoding writes with the same seed. verification: how drafts were
    decided on; "none" where a refiner wrote the text and nobody checked it.
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
    verification: str = "exact"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a stream has new: text that will not be taken back, and the tokens behind it.

    A chunk may have tokens but no text yet (half a character, or the possible beginning of a stop string).
    """

    text: str
    tokens: list[int]
    sources: list[tuple[str, ...]]
    logprobs: list[TokenLogprob] | None = None


class Call:
    """Prompts under way together: their sequences are submitted at once, and cancelled when the call is left."""

    def __init__(
        self,
        loaded: LoadedModel,
        engine: Engine,
        prompts: Sequence[list[int]],
        options: Options,
        n: int = 1,
        *,
        draft_model: LoadedModel | None = None,
        follow: bool = False,
    ) -> None:
        self.options = options
        self._loaded, self._engine = loaded, engine
        self._seed = drawn_seed()  # where the options name none
        self._drafter = drafter_for(loaded, options, draft_model)
        self._refiner = refiner_for(loaded, options, names_of(options.strategy)[0])
        self._verifier = verifier_for(options)
        self._follow = follow
        self._changed = threading.Condition()
        self.groups = [self._group(tokens, n) for tokens in prompts]
        self._sequences = [sequence for group in self.groups for sequence in group]
        engine.submit(self.groups)

    def _group(self, tokens: list[int], n: int) -> list[SequenceState]:
        """Return the sequences of n samples of one prompt."""
        loaded = self._loaded
        return [self._sequence(request) for request in requests(loaded, tokens, n, self.options, self._seed)]

    def _sequence(self, request: Request) -> SequenceState:
        output = Output(request, self._loaded.runner.context, self._loaded.tokenizer.detokenizer(request.prompt))
        sequence = SequenceState(
            request,
            output,
            drafter=self._drafter,
            verifier=self._verifier,
            refiner=self._refiner,
            reuses_cache=self.options.strategy != "recompute" and not self._loaded.filling.sees_all,
            record=self.options.trace,
            follow=self._follow,
            changed=self._changed,
        )
        for warning in warnings_of(self._loaded, self._refiner):
            sequence.warn(warning)
        return sequence

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    def wait(self) -> None:
        """Block until every sequence is done or one has failed; raise what made it fail."""
        self._engine.wait(self._sequences, lambda: any(s.error is not None for s in self._sequences))
        for sequence in self._sequences:
            if sequence.error is not None:
                raise sequence.error

    def watch(self, ready: Callable[[], bool]) -> None:
        """Block until every sequence is done, or `ready` says yes."""
        self._engine.wait(self._sequences, ready)

    def cancel(self) -> None:
        """End what is not done, and return once its blocks are free: after one step at most."""
        if not all(sequence.done for sequence in self._sequences):
            self._engine.cancel(self._sequences)
            self._engine.wait(self._sequences)

    def drop(self) -> None:
        """End what is not done, without waiting for it."""
        self._engine.cancel(self._sequences)

    def result(self, sequence: SequenceState) -> Result:
        """Return what a sequence that is done has written."""
        assert sequence.finish_reason is not None
        return Result(
            text=sequence.output.text,
            tokens=sequence.output.tokens,
            finish_reason=sequence.finish_reason,
            seed=sequence.request.seed,
            lossless=self._refiner is None and (self._verifier.is_lossless or sequence.request.options.sampling.greedy),
            stats=sequence.stats,
            sources=sequence.sources,
            logprobs=sequence.logprobs if sequence.request.options.logprobs is not None else None,
            trace=self._trace(sequence) if self.options.trace else None,
            verification=self.options.verification if self._refiner is None else "none",
        )

    def _trace(self, sequence: SequenceState) -> Trace:
        runner, tokenizer = self._loaded.runner, self._loaded.tokenizer
        request, steps = sequence.request, sequence.steps
        header = {
            "outpace": VERSION,
            "model": self._loaded.name,
            "ops": runner.ops.name,
            "threads": runner.ops.threads,
            "kv": {"format": runner.cache.spec.format, "block_size": runner.cache.block_size},
            "strategy": "+".join(names_of(self.options.strategy)),
            "verification": self.options.verification,
            "seed": request.seed,
            "temperature": request.options.sampling.temperature,
            "finish_reason": sequence.finish_reason,
        }
        prompt = list(request.prompt)
        logprobs = sequence.logprobs if request.options.logprobs is not None else None
        named = {token for step in steps for token in (*step.tree.tokens, *step.target_tokens) if token >= 0}
        named |= {token for own in logprobs or () for token, _ in own.top}
        return Trace(
            header=header,
            prompt=prompt,
            tokens=sequence.output.tokens,
            pieces=tokenizer.pieces(sequence.output.tokens),
            sources=sequence.sources,
            steps=steps,
            stats=sequence.stats,
            prompt_pieces=tokenizer.pieces(prompt),
            texts={token: tokenizer.detokenizer(prompt[-1:], skip_special=False).push(token) for token in named},
            logprobs=logprobs,
        )


class Stream:
    """An iterator of `Chunk`s over one text as it is written.

    The text is written ahead of its reader, who reads all of it before a failure is raised. `result` is the whole text,
    None before the end; after an early `close`, what was read, with finish_reason "cancelled". A stream that is dropped
    is closed.
    """

    def __init__(self, call: Call, on_end: Callable[[Result], None] | None = None) -> None:
        self._call = call
        ((self._sequence,),) = call.groups
        self._on_end = on_end
        self._text: list[str] = []  # what was read
        self._num_read = 0  # tokens
        self._num_seen = 0  # tokens, those that may still be cut off included
        self._drop = weakref.finalize(self, call.drop)
        self._drop.atexit = False
        self.result: Result | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        while self.result is None:
            done = self._sequence.done  # before taking: what is written later is taken later
            if chunk := self._take():
                return chunk
            if done:
                self._call.wait()  # raises what made it fail
                self._finish(self._call.result(self._sequence))
                break
            self._call.watch(lambda: len(self._sequence.output.tokens) != self._num_seen)
        raise StopIteration

    def _take(self) -> Chunk | None:
        """Return what is new, if anything is."""
        sequence, start = self._sequence, self._num_read
        with sequence.changed:
            self._num_seen = len(sequence.output.tokens)
            text, tokens = sequence.output.take()
            end = start + len(tokens)
            sources, logprobs = sequence.sources[start:end], sequence.logprobs[start:end]
        if not text and not tokens:
            return None
        self._text.append(text)
        self._num_read = end
        return Chunk(text, tokens, sources, logprobs if sequence.request.options.logprobs is not None else None)

    def _finish(self, result: Result) -> None:
        self._drop.detach()
        self.result = result
        if self._on_end is not None:
            self._on_end(result)

    def close(self) -> None:
        """Stop writing; its blocks are free when this returns, after one step at most."""
        if self.result is not None or self._sequence.error is not None:
            return
        self._call.cancel()
        whole, count = self._call.result(self._sequence), self._num_read
        if count == len(whole.tokens) and whole.finish_reason != "cancelled":
            self._finish(whole)
            return
        self._finish(
            replace(
                whole,
                text="".join(self._text),
                tokens=whole.tokens[:count],
                sources=whole.sources[:count],
                logprobs=whole.logprobs[:count] if whole.logprobs is not None else None,
                finish_reason="cancelled",
            )
        )

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Chat:
    """A conversation. Each turn's prompt is the whole conversation; the cache already holds all but the new part."""

    def __init__(
        self,
        start: Callable[[list[dict[str, str]], Options, Callable[[Result], None]], Stream],
        system: str | None,
        options: Mapping[str, Any],
    ) -> None:
        if system is not None:
            instance("system", system, str, "a string")
        Options.of(options)  # refused here, not at the first turn
        self._start = start
        self.options = given(options)
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def send(self, text: str, **options: Unpack[OptionKeywords]) -> Result:
        """Say something; return the model's whole answer."""
        with self.stream(text, **options) as stream:
            for _ in stream:
                pass
        assert stream.result is not None
        return stream.result

    def stream(self, text: str, **options: Unpack[OptionKeywords]) -> Stream:
        """Say something; return the answer as a stream.

        Both sides of the turn join `messages` when the stream ends or is closed (with what was read by then).
        """
        said = [*self.messages, {"role": "user", "content": instance("the message", text, str, "a string")}]

        def keep(result: Result) -> None:
            self.messages = [*said, {"role": "assistant", "content": result.text}]

        return self._start(said, Options.of({**self.options, **given(options)}), keep)
