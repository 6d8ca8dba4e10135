"""Traces written by hand, through the classes that write real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outpace.trace import Forecast, Stats, Step, Times, Trace
from outpace.types import TokenLogprob
from outpace.types.tree import EMPTY, DraftTree

Node = tuple[int, int, str, float]  # token, parent, who drafted it ("a+b": both), confidence


class Story:
    """A text in the making: each call of `step` adds what one step wrote. Token ids are places in `words`."""

    def __init__(self, prompt: Sequence[str] = ("Say", " it"), *, cached: int = 0, block_size: int = 4) -> None:
        self.words: list[str] = []
        self.prompt = [self.id(word) for word in prompt]
        self.tokens: list[int] = []
        self.sources: list[tuple[str, ...]] = []
        self.steps: list[Step] = []
        self.stats = Stats(prompt_tokens=len(prompt), cached_tokens=cached)
        self.block_size = block_size

    def id(self, word: str) -> int:
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def step(
        self,
        own: str,
        nodes: Sequence[tuple[str, int, str, float]] = (),
        path: Sequence[int] = (),
        seconds: float = 0.01,
        forecast: Forecast | None = None,
        batch: int = 1,
    ) -> Story:
        """Draft `nodes`, accept `path`, and let the target write `own` after it."""
        tree = EMPTY
        if nodes:
            tree = DraftTree(
                tuple(self.id(word) for word, *_ in nodes),
                tuple(parent for _, parent, *_ in nodes),
                tuple(tuple(names.split("+")) for _, _, names, _ in nodes),
                tuple(confidence for *_, confidence in nodes),
            )
        last = path[-1] if path else -1
        target_tokens = [self.id(own)] * (len(nodes) + 1)
        for above, node in zip([-1, *path], path, strict=False):
            target_tokens[above + 1] = tree.tokens[node]
        assert target_tokens[last + 1] == self.id(own)
        tokens = [*(tree.tokens[node] for node in path), self.id(own)]
        position = len(self.prompt) + len(self.tokens)
        times = Times(0.1 * seconds, 0.7 * seconds, 0.15 * seconds, 0.05 * seconds)
        length = position + len(path)
        blocks = tuple(range(-(-length // self.block_size)))
        step = Step(
            request=0, position=position, num_pending=1 if self.steps else len(self.prompt) - self.stats.cached_tokens,
            tree=tree, target_tokens=target_tokens, path=list(path), tokens=tokens, times=times, batch=batch,
            blocks=blocks,
            ref_counts=tuple(2 if block == 0 else 1 for block in blocks), forecast=forecast,
        )  # fmt: skip
        self.stats.add_pass(times, is_scored=True)
        self.stats.add_step(step)
        self.steps.append(step)
        self.tokens += tokens
        self.sources += [*(tree.sources[node] for node in path), ()]
        return self

    def as_dict(self, logprobs: bool = False, **header: Any) -> dict[str, Any]:
        """Return the trace as it is after a trip through JSON."""
        import json

        own = [TokenLogprob(token, -0.1, ((token, -0.1), (0, -2.5))) for token in self.tokens] if logprobs else None
        trace = Trace(
            header={
                "outpace": "0", "model": "tiny", "ops": "reference", "threads": 1, "strategy": "auto",
                "verification": "exact", "kv": {"format": "f32", "block_size": self.block_size},
                "seed": 1, "temperature": 0.0,
                "finish_reason": "length", **header,
            },
            prompt=self.prompt, tokens=self.tokens, pieces=[self.words[token] for token in self.tokens],
            sources=self.sources, steps=self.steps, stats=self.stats,
            prompt_pieces=[self.words[token] for token in self.prompt],
            texts=dict(enumerate(self.words)), logprobs=own,
        )  # fmt: skip
        value: dict[str, Any] = json.loads(json.dumps(trace.as_dict()))
        return value


def small_story() -> Story:
    """Return three steps: nobody drafts; three guesses of which two come true, with a branch; a wrong guess."""
    forecast = Forecast(2.5, 0.001, 0.012, 0.008, "drafting pays", (("ngram", 4, 1.5), ("suffix", 2, 0.5)))
    return (
        Story()
        .step("The", seconds=0.5)
        .step(
            " mat",
            [
                (" cat", -1, "ngram+suffix", 0.9),
                (" dog", -1, "suffix", 0.2),
                (" sat", 0, "ngram", 0.8),
                (" on", 2, "ngram", 0.7),
                (" it", 3, "ngram", 0.6),
            ],
            path=(0, 2),
            seconds=0.02,
            forecast=forecast,
        )
        .step(".", [("!", -1, "ngram", 0.5)], seconds=0.01)
    )
