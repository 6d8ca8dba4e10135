"""One sequence to generate, and what is said of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from outpace.errors import UsageError, integer
from outpace.types.options import Options

FinishReason = Literal["stop", "length", "context", "cancelled", "error"]

# Philox streams (docs/decisions/0004): what a random number is for.
TOKEN_STREAM, COIN_STREAM, RESIDUAL_STREAM = 0, 1, 2

_DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate: its prompt, what the caller wants, and what that means for this model and sample."""

    prompt: tuple[int, ...]
    options: Options
    seed: int  # 64 bits
    sample_index: int
    stop_tokens: frozenset[int]  # the caller's, and the model's end tokens unless ignore_eos
    max_new_tokens: int
    max_draft: int  # maximum draft nodes in a step
    prediction: tuple[int, ...] = ()  # token ids of the expected output

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UsageError("the prompt is empty: give at least one token")
        integer("sample_index", self.sample_index, 0, 2**32 - 1)

    @staticmethod
    def of(
        prompt: Sequence[int],
        options: Options = _DEFAULTS,
        *,
        context: int = 2**31,
        seed: int = 0,
        sample_index: int = 0,
        end_tokens: frozenset[int] = frozenset(),
        prediction: Sequence[int] = (),
    ) -> Request:
        """Resolve options for one sequence.

        context: maximum tokens of a sequence. seed: used where the options name none. end_tokens: the model's own.
        """
        max_draft = 16 if options.strategy == "auto" else 8
        return Request(
            prompt=tuple(prompt),
            options=options,
            seed=seed if options.seed is None else options.seed,
            sample_index=sample_index,
            stop_tokens=frozenset(options.stop_tokens) | (frozenset() if options.ignore_eos else end_tokens),
            max_new_tokens=context if options.max_new_tokens is None else options.max_new_tokens,
            max_draft=max_draft if options.max_draft is None else options.max_draft,
            prediction=tuple(prediction),
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's raw log-softmax (nothing applied), and that of the most likely tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
