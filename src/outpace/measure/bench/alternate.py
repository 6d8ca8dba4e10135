"""Alternate strategies on the same prompts, plain decoding among them, and yield what each call took."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outpace.api import LanguageModel
from outpace.api.refining import REFINERS
from outpace.api.strategies import names_of
from outpace.errors import UsageError
from outpace.measure.bench.sample import PLAIN, Condition, Sample, call, numbers
from outpace.measure.bench.traffic import read_bandwidth, weight_bytes
from outpace.measure.progress import Progress, Work
from outpace.measure.prompts import TaskPrompt, builtin

_WARM_UP = 16  # tokens


@dataclass(frozen=True, slots=True)
class Design:
    """What is measured. strategies: plain decoding is added by itself. repeats: of every call."""

    strategies: tuple[str, ...]
    samplings: tuple[str, ...] = ("greedy", "sampled")
    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = (0,)
    num_tokens: int = 128
    repeats: int = 3
    seed: int = 0  # of the order of calls

    @property
    def conditions(self) -> list[Condition]:
        """All combinations of sampling, batch and context."""
        return [Condition(*values) for values in itertools.product(self.samplings, self.batches, self.contexts)]


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that are answered together, by every strategy in turn."""

    condition: Condition
    category: str
    prompts: tuple[int, ...]
    repeat: int


def default_strategies(lm: LanguageModel) -> tuple[str, ...]:
    """Return what is worth comparing on any prompts: the router, and the drafters that need nothing from the caller."""
    trained = lm.loaded.trained
    return ("auto", *(() if trained is None else (trained.name,)), "suffix", "ngram", "lookahead")


def check(lm: LanguageModel, design: Design, draft_model: Any = None) -> None:
    """Raise UsageError for a strategy that cannot be measured on this model, before anything is."""
    for name in design.strategies:
        if set(names_of(name)) & set(REFINERS):
            raise UsageError(
                f"--strategies: {name} writes another text than plain decoding, so speed alone says nothing: use "
                "`outpace bench quality`"
            )
        lm.check(strategy=name, **_extra(name, draft_model))


def call_groups(prompts: Sequence[TaskPrompt], design: Design) -> list[Group]:
    """Return the groups in the order in which they run: repeat by repeat, so that a cut run is still balanced."""
    categories: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        categories.setdefault(prompt.category, []).append(index)
    return [
        Group(condition, category, tuple(batch), repeat)
        for repeat in range(design.repeats)
        for condition in design.conditions
        for category, own in categories.items()
        for batch in full_batches(own, condition.batch)
    ]


def full_batches(indices: Sequence[int], size: int) -> list[list[int]]:
    """Return the indices in batches of `size`; where the last would be short, it starts from the front again."""
    return [[indices[i % len(indices)] for i in range(first, first + size)] for first in range(0, len(indices), size)]


def measure(
    lm: LanguageModel,
    prompts: Sequence[TaskPrompt],
    design: Design,
    *,
    draft_model: Any = None,
    progress: Progress | None = None,
) -> Iterator[Sample]:
    """Yield a sample per call, plain decoding's first within each group (whatever the order they ran in).

    progress counts calls, `num_calls` of them. Every call has a salt of its own, so nothing of a prompt is cached.
    """
    work = Work(num_calls(prompts, design), progress)
    weights, kv_bytes = weight_bytes(lm), lm.runner.cache.spec.bytes_per_token
    strategies = [PLAIN, *(name for name in design.strategies if name != PLAIN)]
    rng, salts = random.Random(design.seed), itertools.count()
    encoded = {context: lengthened(lm, prompts, context) for context in design.contexts}
    for name in strategies:
        first = [encoded[design.contexts[0]][0]]
        call(lm, first, name, "greedy", max_new_tokens=_WARM_UP, salt=b"warm-up", **_extra(name, draft_model))
    for number, group in enumerate(call_groups(prompts, design)):
        batch = [encoded[group.condition.context][index] for index in group.prompts]
        bandwidth = read_bandwidth(lm.runner.ops)
        found: dict[str, tuple[Sample, list[list[int]]]] = {}
        for name in rng.sample(strategies, len(strategies)):
            work.begin(1, f"{group.category}, {group.condition.sampling}, repeat {group.repeat + 1}: {name}")
            results, seconds = call(
                lm, batch, name, group.condition.sampling,
                max_new_tokens=design.num_tokens, salt=b"bench %d" % next(salts),
                presence_penalty=prompts[group.prompts[0]].presence_penalty, **_extra(name, draft_model),
            )  # fmt: skip
            sample = Sample(
                condition=group.condition, strategy=name, category=group.category, group=number, repeat=group.repeat,
                prompts=group.prompts, bandwidth=bandwidth, **numbers(results, seconds, weights, kv_bytes),
            )  # fmt: skip
            found[name] = sample, [result.tokens for result in results]
        plain = found[PLAIN][1]
        for name in strategies:
            sample, sequences = found[name]
            yield replace(sample, equal=sequences == plain)
    work.finish()


def num_calls(prompts: Sequence[TaskPrompt], design: Design) -> int:
    """Return how many calls `measure` makes (warm-up aside)."""
    return len(call_groups(prompts, design)) * len({PLAIN, *design.strategies})


def longest(prompts: Sequence[TaskPrompt], design: Design) -> int:
    """Return the maximum number of tokens that a sequence of the design can have, prompt included."""
    return max(prompt.max_tokens for prompt in prompts) + max(design.contexts) + design.num_tokens


def lengthened(lm: LanguageModel, prompts: Sequence[TaskPrompt], context: int) -> list[list[int]]:
    """Return every prompt in tokens, those shorter than `context` behind about as much background as they lack.

    Background: the other prompts' texts, and the built-in ones, each once. Prompts that are given in tokens stay as
    they are. Raises UsageError when the prompts have less text than that.
    """
    return [_lengthened(lm, prompts, index, context) for index in range(len(prompts))]


def _lengthened(lm: LanguageModel, prompts: Sequence[TaskPrompt], index: int, context: int) -> list[int]:
    prompt, tokenizer = prompts[index], lm.tokenizer
    tokens = prompt.encode(tokenizer)
    lacking = context - len(tokens)
    if lacking <= 0 or prompt.tokens:
        return tokens
    others = [*prompts[index + 1 :], *prompts[:index], *builtin()]
    texts = dict.fromkeys(other.text for other in others if not other.tokens and other.text != prompt.text)
    background = tokenizer.encode_text("\n\n".join(texts))
    if len(background) < lacking:
        raise UsageError(
            f"a context of {context} tokens needs {lacking} tokens of other prompts as background, and there are "
            f"{len(background)}: give more prompts, or a smaller context"
        )
    text = f"{tokenizer.decode(background[:lacking])}\n\n{prompt.text}"
    return TaskPrompt(prompt.category, text).encode(tokenizer)


def _extra(strategy: str, draft_model: Any) -> dict[str, Any]:
    return {"draft_model": draft_model} if strategy == "draft_model" else {}
