"""How likely a text is under a model: perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from outpace.measure.scoring import score, softmax
from outpace.runner import Runner


def perplexity(runner: Runner, prompts: Sequence[Sequence[int]], sequences: Sequence[Sequence[int]]) -> float:
    """Return exp of the mean negative log-probability of all tokens of the sequences, each after its prompt."""
    total, count = 0.0, 0
    for prompt, tokens in zip(prompts, sequences, strict=True):
        place = 0
        for logits in score(runner, prompt, tokens):
            probs = softmax(logits)
            own = list(tokens[place : place + len(probs)])
            total -= float(np.log(np.maximum(probs[np.arange(len(probs)), own], 1e-300)).sum())
            place, count = place + len(probs), count + len(probs)
    return math.exp(total / count)
