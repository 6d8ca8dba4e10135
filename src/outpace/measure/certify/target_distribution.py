"""The target's own distribution of the first two tokens after a prompt, computed apart from the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.measure.scoring import score, softmax
from outpace.runner import Runner
from outpace.types import SamplingParams

_TOP_K = 5  # candidates: few, so that pairs of tokens are counted often
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0)
_MAX_PROBABILITY = 0.5  # the temperature is raised until no first token has more


@dataclass(frozen=True, slots=True)
class TargetDistribution:
    """The exact distribution of the first two tokens after a prompt.

    tokens [K]: candidates of the first token, most likely first. first [K]: their probs. second [K, V]: the probs of
    the second token after each.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams
    tokens: NDArray[np.int64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    @staticmethod
    def of(runner: Runner, prompt: Sequence[int]) -> TargetDistribution:
        """Compute it from raw logits, at the lowest temperature that leaves the first token open."""
        (logits,) = score(runner, prompt, [0])
        k = min(_TOP_K, runner.model.config.vocab_size - 1)
        for temperature in _TEMPERATURES:
            probs = softmax(logits, temperature, k)[0]
            if probs.max() <= _MAX_PROBABILITY:
                break
        tokens = np.argsort(-probs, kind="stable")[:k]
        after = [next(score(runner, [*prompt, token], [0])) for token in tokens.tolist()]
        second = softmax(np.concatenate(after), temperature, k)
        return TargetDistribution(tuple(prompt), SamplingParams(temperature, top_k=k), tokens, probs[tokens], second)

    @property
    def pairs(self) -> NDArray[np.float64]:
        """The probs of the pair, [K, V]."""
        return self.first[:, None] * self.second
