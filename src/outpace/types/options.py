"""What a caller may want of a generation: every option once, with its help text, its check and its keyword."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError, flag, instance, integer, items, one_of, real, shown, strings, token_ids, unknown
from outpace.types.sampling_params import Reader, SamplingKeywords, SamplingParams, about, numbers


class Constraint(Protocol):
    """Which tokens may come next: the seam for grammars, allowed and banned tokens."""

    def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
        """Return the allowed tokens after `path` (all output tokens so far, without the prompt).

        Packed bits [ceil(V / 32)]: token t is allowed when bit t % 32 of word t // 32 is set.
        Must be a pure function of `path`. It is only called on paths that it allowed itself.
        """


# Called with all tokens so far (prompt, output, path to the node) and raw logits [V] float32;
# returns logits [V]. Must be pure: it is called once per node of a draft.
LogitsProcessor = Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32]]


class Named(Protocol):
    """An object of a layer above that an option may hold: a Drafter, or a loaded model that drafts."""

    @property
    def name(self) -> str: ...


def _integers(minimum: int, maximum: int | None = None) -> Reader:
    return lambda name, value: integer(name, value, minimum, maximum)


def _words(*allowed: str) -> Reader:
    return lambda name, value: one_of(name, value, allowed)


def _limit(name: str, value: Any) -> int | None:
    return None if value is None else integer(name, value, 1)


def _constraint(name: str, value: Any) -> Constraint:
    if isinstance(value, type) or not callable(getattr(value, "mask", None)):
        raise UsageError(f"{name} must be a Constraint, an object with a method mask, got {shown(value)}")
    return cast(Constraint, value)


def _processors(name: str, value: Any) -> tuple[LogitsProcessor, ...]:
    found = items(name, value, "functions")
    for function in found:
        if not callable(function):
            raise UsageError(f"{name} must hold functions of (tokens, logits), got {shown(function)}")
    return found


def _strategy(name: str, value: Any) -> Any:
    if isinstance(value, str | Sequence) and value:
        names = (value,) if isinstance(value, str) else strings(name, value)
        return names[0] if len(names) == 1 else names
    missing = [part for part in ("name", "taps", "propose", "observe", "forget") if not hasattr(value, part)]
    if missing or isinstance(value, type):
        lacks = (
            f" (a Drafter also has {', '.join(missing)}: docs/adding-a-drafter.md)" if hasattr(value, "propose") else ""
        )
        raise UsageError(f"{name} must be a strategy's name, a list of names, or a Drafter, got {shown(value)}{lacks}")
    return value


def _prediction(name: str, value: Any) -> str | tuple[int, ...]:
    found = value if isinstance(value, str) else token_ids(name, value)
    if not found:
        raise UsageError(f"{name} is empty: give the text that you expect, or leave it out")
    return found


def _model(name: str, value: Any) -> Any:
    if (
        isinstance(value, type)
        or not (isinstance(value, str | os.PathLike) or hasattr(value, "generate"))
        or value == ""
    ):
        raise UsageError(f"{name} must be a model's name, its path, or a loaded model, got {shown(value)}")
    return value


def _threshold(name: str, value: Any) -> float:
    found = real(name, value, 0.0, 1.0)
    if not 0.0 < found < 1.0:
        raise UsageError(f"{name} must be between 0 and 1, got {shown(value)}")
    return found


def _salt(name: str, value: Any) -> Any:
    return instance(name, value, bytes, 'bytes, such as b"tenant 7"')


def _tools(name: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    found = items(name, value, "JSON schemas")
    for tool in found:
        instance(f"an item of {name}", tool, dict, 'a JSON schema: a dict like {"type": "function", ...}')
    return tuple(_json(name, found))


def _variables(name: str, value: Any) -> Mapping[str, Any]:
    for key in instance(name, value, Mapping, "a dict of template variables"):
        instance(f"a key of {name}", key, str, "the name of a template variable")
        if key in ("messages", "tools"):
            owner = "the prompt" if key == "messages" else "the option tools"
            raise UsageError(f"{name} may not set {key!r}: it is {owner}")
    return dict(_json(name, dict(value)))


def _json(name: str, value: Any) -> Any:
    """Return a copy of a value that JSON can hold."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{name} must be what JSON can hold: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that a caller may want of a generation; `OptionKeywords` spells it as keyword arguments.

    A new option is a field here with its help text and its check, its key in `OptionKeywords`, and what reads it.
    Raises UsageError for what cannot work or would be ignored. What depends on the model (its vocabulary, its
    strategies) is checked in `api`.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int | None = field(
        default=256,
        metadata=about("Maximum number of new tokens; None: until the text ends or the context is full.", _limit),
    )
    seed: int | None = field(
        default=None, metadata=about("Same seed, same text; None: drawn and reported.", _integers(0, 2**64 - 1))
    )
    stop: tuple[str, ...] = field(default=(), metadata=about("End the text before any of these strings.", strings))
    stop_tokens: tuple[int, ...] = field(
        default=(), metadata=about("End the text at any of these token ids, beside the model's own.", token_ids)
    )
    ignore_eos: bool = field(
        default=False, metadata=about("Keep generating after EOS (the model's own end tokens).", flag)
    )
    constraint: Constraint | None = field(
        default=None,
        metadata=about(
            "Which tokens may come next, such as a grammar.",
            _constraint,
        ),
    )
    logits_processors: tuple[LogitsProcessor, ...] = field(
        default=(),
        metadata=about("Functions of (all tokens so far, logits [V]) that return new logits [V].", _processors),
    )
    logprobs: int | None = field(
        default=None,
        metadata=about("Report each token's log-probability, and those of the k most likely.", _integers(0, 1024)),
    )
    strategy: str | tuple[str, ...] | Named = field(
        default="auto", metadata=about("Who drafts: a name, several, or a Drafter instance.", _strategy)
    )
    max_draft: int | None = field(
        default=None,
        metadata=about("Maximum draft tokens in a step; None: 16 for auto, else 8.", _integers(0, 1024)),
    )
    prediction: str | tuple[int, ...] | None = field(
        default=None, metadata=about("The expected output, for the strategies auto and prediction.", _prediction)
    )
    draft_model: str | os.PathLike[str] | Named | None = field(
        default=None,
        metadata=about("A cheaper model of the same vocabulary, for the strategies auto and draft_model.", _model),
    )
    verification: Literal["exact", "rejection", "typical"] = field(
        default="exact",
        metadata=about(
            "exact: the text of plain decoding; rejection: its distribution; typical: neither (lossy).",
            _words("exact", "rejection", "typical"),
        ),
    )
    typical_epsilon: float | None = field(
        default=None,
        metadata=about(
            "Typical verification keeps guesses above min(epsilon, delta * exp(-entropy)); None: 0.09.", _threshold
        ),
    )
    typical_delta: float | None = field(
        default=None, metadata=about("Delta of typical verification; None: the root of epsilon.", _threshold)
    )
    block: int | None = field(
        default=None,
        metadata=about(
            "Tokens that block_diffusion and mask_predict refine together; None: what the model was trained for, "
            "all of max_new_tokens for mask_predict.",
            _integers(1, 4096),
        ),
    )
    passes: int | None = field(
        default=None,
        metadata=about(
            "Maximum passes for a block; None: until it is full, 10 for mask_predict, 1 if verified.",
            _integers(1, 4096),
        ),
    )
    threshold: float | None = field(
        default=None,
        metadata=about(
            "What block_diffusion writes in one pass, as unmask says: the dial between speed and quality; "
            "None: 0.9 for confidence, 1 for factor, 0.1 for entropy; no threshold where passes are given.",
            numbers(0.0, 1e3),
        ),
    )
    unmask: Literal["confidence", "factor", "entropy"] = field(
        default="confidence",
        metadata=about(
            "What the threshold limits: probability of each token, factor of Fast-dLLM, entropy in nats.",
            _words("confidence", "factor", "entropy"),
        ),
    )
    remask: float | None = field(
        default=None,
        metadata=about(
            "Tokens of a block below this probability in a later pass are masked again, once; None: never.",
            numbers(0.0, 1.0),
        ),
    )
    slide: bool = field(
        default=False,
        metadata=about("Let block_diffusion's block move on over its first tokens as soon as they are written.", flag),
    )
    predict_length: bool = field(
        default=False, metadata=about("Cut mask_predict's canvas at the first end token of its first pass.", flag)
    )
    verified: bool = field(
        default=False,
        metadata=about(
            "Let the target verify what block_diffusion or mask_predict guesses: the text of plain decoding.", flag
        ),
    )
    trace: bool = field(default=False, metadata=about("Record every step in the result's trace.", flag))
    salt: bytes = field(default=b"", metadata=about("Requests with different salts never share cached blocks.", _salt))
    tools: tuple[Mapping[str, Any], ...] | None = field(
        default=None, metadata=about("Tools, as JSON schemas, that the chat template shows to the model.", _tools)
    )
    chat_template_kwargs: Mapping[str, Any] | None = field(
        default=None,
        metadata=about("More variables for the chat template, such as enable_thinking.", _variables),
    )

    def __post_init__(self) -> None:
        for option in fields(self)[1:]:
            value = getattr(self, option.name)
            if value is not option.default:
                object.__setattr__(self, option.name, option.metadata["read"](option.name, value))
        for name in ("typical_epsilon", "typical_delta"):
            if getattr(self, name) is not None and self.verification != "typical":
                raise UsageError(f'{name} belongs to verification="typical", but it is {self.verification!r}')

    @staticmethod
    def of(keywords: Mapping[str, Any]) -> Options:
        """Return the options that keyword arguments ask for; an unknown name is answered with the closest ones.

        None means "not given", as callers of OpenAI-like interfaces write it; max_new_tokens=None means no limit.
        """
        sampling = {option.name for option in fields(SamplingParams)}
        others = {option.name for option in fields(Options)} - {"sampling"}
        for name in keywords:
            if name not in sampling | others:
                raise unknown("option", name, sampling | others)
        wanted = given(keywords)
        return Options(
            sampling=SamplingParams(**{name: wanted[name] for name in sampling & wanted.keys()}),
            **{name: wanted[name] for name in others & wanted.keys()},
        )


def given(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that say something; None does so for max_new_tokens only."""
    return {name: value for name, value in keywords.items() if value is not None or name == "max_new_tokens"}


class OptionKeywords(SamplingKeywords, total=False):
    """`Options` and `SamplingParams` as the keyword arguments of `generate`, `stream` and `chat`.

    An editor completes these; a test holds them to the dataclasses' fields. None means "not given".
    """

    max_new_tokens: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_tokens: Sequence[int] | None
    ignore_eos: bool | None
    constraint: Constraint | None
    logits_processors: Sequence[LogitsProcessor] | None
    logprobs: int | None
    strategy: str | Sequence[str] | Named | None
    max_draft: int | None
    prediction: str | Sequence[int] | None
    draft_model: str | os.PathLike[str] | Named | None
    verification: Literal["exact", "rejection", "typical"] | None
    typical_epsilon: float | None
    typical_delta: float | None
    block: int | None
    passes: int | None
    threshold: float | None
    unmask: Literal["confidence", "factor", "entropy"] | None
    remask: float | None
    slide: bool | None
    predict_length: bool | None
    verified: bool | None
    trace: bool | None
    salt: bytes | None
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None
