"""How logits become a token: every sampling option once, with its help text and its check."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError, integer, real, shown

Reader = Callable[[str, Any], Any]  # (name, value): returns the value in normal form, or raises UsageError


def about(text: str, read: Reader, *, is_filter: bool = False) -> dict[str, Any]:
    """Return the metadata of an option: its help text and its check.

    is_filter: whether it drops tokens before noise is added, and so has no effect at temperature 0.
    """
    return {"help": text, "read": read, "is_filter": is_filter}


def numbers(minimum: float, maximum: float) -> Reader:
    """Return the check of an option that is a number in [minimum, maximum]."""
    return lambda name, value: real(name, value, minimum, maximum)


def _temperature(name: str, value: Any) -> float:
    temperature = real(name, value, 0.0, 1e4)
    if 0 < temperature < 1e-3:
        raise UsageError(f"temperature must be 0 (greedy) or at least 0.001, got {shown(value)}")
    return temperature


def _top_k(name: str, value: Any) -> int:
    return integer(name, value, 0, 2**31 - 1)


def _logit_bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} must map token ids to numbers, got {shown(value)}")
    biases = {}
    for key, bias in value.items():
        token = integer(f"a token id of {name}", key, 0, 2**31 - 1)
        banned = isinstance(bias, float) and bias == -math.inf
        biases[token] = float(bias) if banned else real(f"{name} of token {token}", bias, -1e6, 1e6)
    return biases


@dataclass(frozen=True)
class SamplingParams:
    """How logits become a token. Temperature 0 is greedy: no noise is added.

    Applied in this order: `logits_processors` (of the request), repetition / presence / frequency penalties, logit
    bias, constraint mask, temperature, top-n-sigma, top-k, typical-p, top-p, min-p, Gumbel noise, argmax. Each filter
    looks at the distribution that those before it left. Ties always go to the lowest token id.

    A new numeric option is a field here, and its meaning in the samplers: `ops/reference/sample.py`, and
    `ops/native/src/sample.h` and `sample.cpp`.
    """

    temperature: float = field(
        default=0.0, metadata=about("Divides the logits; 0 is greedy, higher is more random.", _temperature)
    )
    top_k: int = field(default=0, metadata=about("Keep the k most likely tokens; 0 keeps all.", _top_k, is_filter=True))
    top_p: float = field(
        default=1.0,
        metadata=about(
            "Keep the smallest set of most likely tokens whose mass reaches this.", numbers(0.0, 1.0), is_filter=True
        ),
    )
    min_p: float = field(
        default=0.0,
        metadata=about(
            "Keep tokens with at least this fraction of the largest probability.", numbers(0.0, 1.0), is_filter=True
        ),
    )
    typical_p: float = field(
        default=1.0,
        metadata=about(
            "Keep the smallest set of most typical tokens, whose information is nearest to the entropy, whose mass "
            "reaches this (arXiv:2202.00666).",
            numbers(0.0, 1.0),
            is_filter=True,
        ),
    )
    top_n_sigma: float = field(
        default=0.0,
        metadata=about(
            "Keep tokens within this many standard deviations of the largest logit (arXiv:2411.07641); 0 keeps all.",
            numbers(0.0, 1e3),
            is_filter=True,
        ),
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata=about(
            "Divides positive and multiplies negative logits of tokens in prompt or output.", numbers(0.01, 100.0)
        ),
    )
    presence_penalty: float = field(
        default=0.0,
        metadata=about("Subtracted from the logit of every token in the output.", numbers(-100.0, 100.0)),
    )
    frequency_penalty: float = field(
        default=0.0,
        metadata=about("Subtracted from a token's logit for each time it is in the output.", numbers(-100.0, 100.0)),
    )
    logit_bias: Mapping[int, float] = field(
        default_factory=dict,
        metadata=about("Added to the logits of these token ids; -inf bans a token.", _logit_bias),
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value = option.metadata["read"](option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, value)
            if self.greedy and option.metadata["is_filter"] and value != option.default:
                raise UsageError(
                    f"{option.name}={value!r} has no effect at temperature 0 (greedy): raise temperature, or leave it "
                    "out"
                )

    @property
    def greedy(self) -> bool:
        """Whether no noise is added: the most likely token is taken."""
        return self.temperature == 0.0

    @cached_property
    def penalises(self) -> bool:
        """Whether earlier tokens change the distribution, so that a row needs its history."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @cached_property
    def is_argmax(self) -> bool:
        """Whether the token is that of the largest raw logit, if no constraint forbids it."""
        return self.greedy and not self.penalises and not self.logit_bias

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The fields that are numbers, in their order: a row of `SamplingBatch.params`."""
        return np.array([float(getattr(self, name)) for name in NUMERIC_PARAMS])


NUMERIC_PARAMS = tuple(option.name for option in fields(SamplingParams) if isinstance(option.default, int | float))


class SamplingKeywords(TypedDict, total=False):
    """`SamplingParams` as keyword arguments; a test holds them to its fields. None means "not given"."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    top_n_sigma: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
