"""What a user may ask of one call, checked and turned into requests."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from outpace.drafters.protocol import Drafter
from outpace.errors import UsageError, unknown
from outpace.types import Constraint, LogitsProcessor, Request, SamplingParams


class Options(TypedDict, total=False):
    """Keyword arguments of `generate`, `stream` and `chat`; the defaults are those of `Settings`."""

    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    stop_tokens: Sequence[int]
    ignore_eos: bool
    constraint: Constraint | None
    logits_processors: Sequence[LogitsProcessor]
    logprobs: int | None
    strategy: str | Sequence[str] | Drafter
    max_draft: int | None
    prediction: str | Sequence[int] | None
    draft_model: Any
    verification: Literal["exact", "rejection"]
    trace: bool
    salt: bytes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One call's options with their defaults. Raises UsageError for what cannot work or would be ignored."""

    max_new_tokens: int | None = 256  # None: until the text ends or the context is full
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None  # None: one is drawn, and reported in the result
    stop: str | Sequence[str] = ()
    stop_tokens: Sequence[int] = ()  # beside the model's own end tokens
    ignore_eos: bool = False  # write on after the model's own end tokens
    constraint: Constraint | None = None
    logits_processors: Sequence[LogitsProcessor] = ()
    logprobs: int | None = None  # k: each token's raw log-probability, and those of the k most likely
    strategy: str | Sequence[str] | Drafter = "auto"
    max_draft: int | None = None  # most draft tokens in a step; None: 16 for auto, which takes what pays, else 8
    prediction: str | Sequence[int] | None = None  # the expected output, for "auto" and "prediction"
    draft_model: Any = None  # a LanguageModel, or what `load` takes, for "auto" and "draft_model"
    verification: Literal["exact", "rejection"] = "exact"
    trace: bool = False
    salt: bytes = b""  # texts of different salts never share cached blocks

    def __post_init__(self) -> None:
        if self.temperature == 0.0:
            for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
                if (value := getattr(self, name)) != off:
                    raise UsageError(
                        f"{name}={value!r} has no effect at temperature 0 (greedy): raise temperature, or leave it out"
                    )
        if self.verification not in ("exact", "rejection"):
            raise unknown("verification", str(self.verification), ("exact", "rejection"))

    @staticmethod
    def of(options: Mapping[str, Any]) -> Settings:
        """Return checked settings; an unknown name is answered with the closest ones."""
        names = {field.name for field in fields(Settings)}
        for name in options:
            if name not in names:
                raise unknown("option", name, names)
        return Settings(**options)

    def requests(
        self, prompt: Sequence[int], n: int, *, eos_ids: frozenset[int], vocab_size: int, context: int
    ) -> list[Request]:
        """Return the requests of `n` samples of one prompt (token ids); `seed` must have been drawn."""
        assert self.seed is not None
        bias = dict(self.logit_bias or {})
        max_draft = self.max_draft if self.max_draft is not None else 16 if self.strategy == "auto" else 8
        stop_tokens = frozenset(self.stop_tokens) | (frozenset() if self.ignore_eos else eos_ids)
        for kind, ids in (("prompt", prompt), ("stop_tokens", self.stop_tokens), ("logit_bias", bias)):
            wrong = [token for token in ids if not (isinstance(token, int) and 0 <= token < vocab_size)]
            if wrong:
                raise UsageError(f"{kind} has token ids outside this model's [0, {vocab_size}): {wrong[:5]}")
        return [
            Request(
                prompt=tuple(prompt),
                max_new_tokens=context if self.max_new_tokens is None else self.max_new_tokens,
                sampling=SamplingParams(
                    temperature=self.temperature,
                    top_k=self.top_k,
                    top_p=self.top_p,
                    min_p=self.min_p,
                    repetition_penalty=self.repetition_penalty,
                    presence_penalty=self.presence_penalty,
                    frequency_penalty=self.frequency_penalty,
                    logit_bias=bias,
                ),
                seed=self.seed,
                sample_index=index,
                stop_tokens=stop_tokens,
                stop_strings=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
                constraint=self.constraint,
                logits_processors=tuple(self.logits_processors),
                logprobs=self.logprobs,
                max_draft=max_draft,
                salt=self.salt,
            )
            for index in range(n)
        ]

    def drawn_seed(self) -> int:
        """Return the seed, or a fresh one that any JSON reader keeps exactly."""
        return secrets.randbits(53) if self.seed is None else self.seed
