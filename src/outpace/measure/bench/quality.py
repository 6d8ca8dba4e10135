"""Quality beside speed: every way to decode, and other models, on the same prompts and small tasks.

A lossless way is held against plain decoding's texts; what the others lose is in the numbers: perplexity of the text
under the original model, share of small tasks answered right, share of runs of four tokens that repeat themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outpace.api import LanguageModel
from outpace.measure.bench.medians import Spread
from outpace.measure.progress import Progress, Work
from outpace.measure.prompts import TaskPrompt
from outpace.measure.quality.perplexity import perplexity
from outpace.measure.quality.tasks import MAX_NEW_TOKENS, Task, repetition

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # of block diffusion: the dial
PASSES = (4, 8, 16)  # of mask-predict
_WARM_UP = 8
_TEXT = "text"  # the kind of a sample that is no task


@dataclass(frozen=True, slots=True)
class Way:
    """A way to answer: a model, and the options of a call. dial: what its neighbours on a curve differ in."""

    name: str
    group: str  # autoregressive, speculative, distilled, non-autoregressive
    options: Mapping[str, Any]
    is_lossless: bool = True
    model: LanguageModel | None = None  # None: the original one
    dial: float | None = None

    @property
    def curve(self) -> str:
        """The name of its curve: without the dial."""
        return self.name.rpartition(", ")[0]


@dataclass(frozen=True, slots=True)
class Design:
    """What is measured. num_tasks: of each kind."""

    num_tokens: int = 96
    num_tasks: int = 8
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One text. kind: "text", or that of its task. seconds, decode_tokens: without its first pass (the prefill)."""

    way: str
    kind: str
    index: int
    repeat: int
    tokens: tuple[int, ...]
    decode_tokens: int
    seconds: float
    passes: int
    bits: float  # negative log-probability under the original model, in bits; 0 of a task
    is_right: bool | None  # None: no task
    equal: bool  # to plain decoding's text


def ways_of(
    lm: LanguageModel,
    strategies: Sequence[str] | None = None,
    students: Mapping[str, LanguageModel] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    passes: Sequence[int] = PASSES,
) -> list[Way]:
    """Return plain decoding and the ways of some strategies, and each student's, by itself and as a draft model.

    strategies: None for the router, the trained drafter, and refiners where the model was trained to fill masks.
    """
    if strategies is None:
        trained = lm.loaded.trained
        refiners = ("block_diffusion", "mask_predict") if lm.loaded.filling.is_trained else ()
        strategies = ("auto", *(() if trained is None else (trained.name,)), *refiners)
    found = [Way("none", "autoregressive", {"strategy": "none"})]
    for name in strategies:
        if name == "block_diffusion":
            found += [_refined(name, {"threshold": threshold}, threshold) for threshold in thresholds]
            found += [_refined(name, {"slide": True, "threshold": threshold}, threshold) for threshold in thresholds]
        elif name == "mask_predict":
            found += [_refined(name, {"passes": count}, float(count)) for count in passes]
        elif name != "none":
            found.append(Way(name, "speculative", {"strategy": name}))
        if name in ("block_diffusion", "mask_predict"):
            options = {"strategy": name, "verified": True}
            found.append(Way(f"{name}, verified", "speculative", options))
    for name, student in (students or {}).items():
        found.append(Way(name, "distilled", {"strategy": "none"}, is_lossless=False, model=student))
        if student.tokenizer.same_vocabulary(lm.tokenizer):
            drafts = {"strategy": "draft_model", "draft_model": student}
            found.append(Way(f"draft_model {name}", "speculative", drafts))
    return found


def _refined(name: str, options: Mapping[str, Any], dial: float) -> Way:
    label = f"{name}, sliding" if options.get("slide") else name
    label += "".join(f", {option} {value:g}" for option, value in options.items() if option != "slide")
    return Way(label, "non-autoregressive", {"strategy": name, **options}, is_lossless=False, dial=dial)


def measure_quality(
    lm: LanguageModel,
    ways: Sequence[Way],
    prompts: Sequence[TaskPrompt],
    tasks: Sequence[Task],
    design: Design,
    progress: Progress | None = None,
) -> Iterator[Sample]:
    """Yield a sample of every way for every prompt and task, all ways in turn on each; texts are greedy.

    Raises UsageError for options that cannot work on this model, before anything is measured.
    """
    for way in ways:
        (way.model or lm).check(**way.options)
    work = Work(len(ways) * (len(prompts) + len(tasks)) * design.repeats, progress)
    for way in ways:
        (way.model or lm).generate("Hello", max_new_tokens=_WARM_UP, **way.options)
    questions: list[TaskPrompt | Task] = [*prompts, *tasks]
    scored: dict[tuple[int, tuple[int, ...]], float] = {}
    for repeat in range(design.repeats):
        for index, question in enumerate(questions):
            task = question if isinstance(question, Task) else None
            kind, limit = (_TEXT, design.num_tokens) if task is None else (task.kind, MAX_NEW_TOKENS)
            plain: tuple[int, ...] | None = None
            for way in ways:
                work.begin(1, f"{way.name}, {kind}")
                model = way.model or lm
                result = model.generate(question.encode(model.tokenizer), max_new_tokens=limit, **way.options)
                tokens, stats = tuple(result.tokens), result.stats
                plain = tokens if plain is None else plain
                bits = 0.0
                if kind == _TEXT and tokens:
                    key = index, tokens
                    if key not in scored:
                        scored[key] = _bits(lm, question.encode(lm.tokenizer), tokens, result.text, model)
                    bits = scored[key]
                yield Sample(
                    way=way.name,
                    kind=kind,
                    index=index,
                    repeat=repeat,
                    tokens=tokens,
                    decode_tokens=stats.tokens - stats.first_step_tokens if stats.decode_seconds else 0,
                    seconds=stats.decode_seconds,
                    passes=stats.passes,
                    bits=bits,
                    is_right=None if task is None else task.is_right(result.text),
                    equal=tokens == plain,
                )
    work.finish()


def _bits(lm: LanguageModel, prompt: list[int], tokens: tuple[int, ...], text: str, writer: LanguageModel) -> float:
    """Return a text's negative log-probability under the original model, in bits; in its own tokens."""
    own = tokens if writer.tokenizer.same_vocabulary(lm.tokenizer) else tuple(lm.tokenizer.encode_text(text))
    return len(own) * math.log2(perplexity(lm.runner, [prompt], [own])) if own else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """What a way's samples come to. rate: tokens per second, by repeat; speedup: of medians, over plain decoding.

    perplexity: under the original model. exact: share of right answers by kind. unequal: texts of a lossless way that
    are not plain decoding's: there must be none.
    """

    way: Way = field(repr=False)
    rate: Spread
    speedup: float
    passes_per_token: float
    perplexity: float | None
    exact: Mapping[str, float]
    repetition: float
    same_text: float
    unequal: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "way": self.way.name,
            "group": self.way.group,
            "lossless": self.way.is_lossless,
            "dial": self.way.dial,
            "tokens_per_second": {"median": self.rate.median, "low": self.rate.low, "high": self.rate.high},
            "speedup": self.speedup,
            "passes_per_token": self.passes_per_token,
            "perplexity": self.perplexity,
            "exact_match": dict(self.exact),
            "repetition": self.repetition,
            "same_text": self.same_text,
            "unequal": self.unequal,
        }


def summarise_quality(samples: Sequence[Sample], ways: Sequence[Way]) -> list[Row]:
    """Return a row for each way, lossless ones first, from the questions that all ways have answered (a cut run)."""
    answered = Counter((s.index, s.repeat) for s in samples)
    whole = [s for s in samples if answered[s.index, s.repeat] == len(ways)]
    by_way = {way.name: [s for s in whole if s.way == way.name] for way in ways}
    plain = _rate(by_way[ways[0].name]) if by_way[ways[0].name] else None
    rows = [
        _row(way, own, plain)
        for way in sorted(ways, key=lambda way: not way.is_lossless)
        if plain is not None and (own := by_way[way.name]) and any(s.seconds for s in own)
    ]
    return rows


def _rate(samples: Sequence[Sample]) -> Spread:
    repeats = sorted({s.repeat for s in samples})
    totals = [
        (sum(s.decode_tokens for s in samples if s.repeat == r), sum(s.seconds for s in samples if s.repeat == r))
        for r in repeats
    ]
    return Spread.of([tokens / seconds if seconds else 0.0 for tokens, seconds in totals])


def _row(way: Way, samples: Sequence[Sample], plain: Spread | None) -> Row:
    texts = [s for s in samples if s.kind == _TEXT]
    kinds = list(dict.fromkeys(s.kind for s in samples if s.kind != _TEXT))
    right = {kind: [bool(s.is_right) for s in samples if s.kind == kind] for kind in kinds}
    rate, count = _rate(samples), sum(len(s.tokens) for s in texts)
    return Row(
        way=way,
        rate=rate,
        speedup=rate.median / plain.median if plain is not None and plain.median else math.nan,
        passes_per_token=sum(s.passes for s in samples) / max(1, sum(len(s.tokens) for s in samples)),
        perplexity=2 ** (sum(s.bits for s in texts) / count) if count else None,
        exact={kind: sum(found) / len(found) for kind, found in right.items()},
        repetition=repetition(s.tokens for s in texts),
        same_text=sum(s.equal for s in samples) / len(samples),
        unequal=sum(not s.equal for s in samples) if way.is_lossless else 0,
    )
