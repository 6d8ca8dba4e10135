"""One measured call: a batch of prompts written by one strategy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outpace.api import LanguageModel, Result
from outpace.trace import PHASES, Step

SAMPLINGS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 20},
}
PLAIN = "none"


@dataclass(frozen=True, slots=True)
class Condition:
    """How prompts are answered; strategies are compared within one."""

    sampling: str
    batch: int
    context: int  # minimum length of a prompt in tokens; 0: as it is


@dataclass(frozen=True, slots=True)
class Sample:
    """What one call took. All but first_seconds and seconds leave each sequence's first step (its prefill) out.

    group: calls of the same prompts in the same repeat, which alternate. equal: whether every sequence is plain
    decoding's of the same group. decode_seconds: of the sequence that decoded longest. num_bytes: weights and KV read.
    bandwidth: GB/s of a streaming read, measured with the group.
    """

    condition: Condition
    strategy: str
    category: str
    group: int
    repeat: int
    prompts: tuple[int, ...]
    prompt_tokens: int
    tokens: int
    seconds: float  # of the whole call
    first_seconds: float  # until the last of its sequences had its first token
    decode_tokens: int
    decode_seconds: float
    steps: int
    verified: int  # draft tokens
    accepted: int
    phases: Mapping[str, float]
    num_bytes: int
    bandwidth: float
    equal: bool = True

    @property
    def rate(self) -> float:
        """Tokens per second of decoding, all sequences of the batch together."""
        return self.decode_tokens / self.decode_seconds


def call(
    lm: LanguageModel, prompts: list[list[int]], strategy: str, sampling: str, **options: Any
) -> tuple[list[Result], float]:
    """Answer prompts and return the results with the seconds of the call. They go on past the model's end token."""
    synchronize = lm.runner.ops.synchronize
    synchronize()
    started = time.perf_counter()
    results = lm.generate(prompts, strategy=strategy, ignore_eos=True, trace=True, **SAMPLINGS[sampling], **options)
    synchronize()
    return results, time.perf_counter() - started


def numbers(results: Sequence[Result], seconds: float, weight_bytes: int, kv_bytes: int) -> dict[str, Any]:
    """Return those fields of a `Sample` that follow from the results of a call. kv_bytes: per token of context."""
    steps = [_decode_steps(result) for result in results]
    longest = max(steps, key=lambda own: sum(step.times.total for step in own))
    flat = [step for own in steps for step in own]
    return {
        "prompt_tokens": sum(result.stats.prompt_tokens for result in results),
        "tokens": sum(result.stats.tokens for result in results),
        "seconds": seconds,
        "first_seconds": max(result.stats.prefill_seconds for result in results),
        "decode_tokens": sum(len(step.tokens) for step in flat),
        "decode_seconds": sum(step.times.total for step in longest),
        "steps": len(flat),
        "verified": sum(len(step.tree) for step in flat),
        "accepted": sum(len(step.path) for step in flat),
        "phases": {phase: sum(getattr(step.times, phase) for step in longest) for phase in PHASES},
        "num_bytes": len(longest) * weight_bytes + kv_bytes * sum(step.position + len(step.tree) for step in flat),
    }


def _decode_steps(result: Result) -> list[Step]:
    """Return all steps of a sequence but the first, which ends its prefill."""
    assert result.trace is not None
    return result.trace.steps[1:]
