"""How likely the target is to take each of a drafter's best tokens: its confidences.

A trained drafter knows the target's logits up to an error. If the errors are Gumbel distributed, the chance that a
token is the target's best is a softmax of the drafter's own scores, at a temperature that says how large they are.
Where both add the same noise before they take the best, scores with the noise tell far more than probabilities do.
The numbers fit the default model's drafter on a few prompts of our own; the router learns what is left of a bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_SHARPNESS = 1.3  # of the target's greedy choice over the drafter's probabilities
_REST = 0.5  # what the tokens that are not among the best count for, relative to one token of their probability
_SPREAD = 1.3  # of the errors of scores, at the temperatures at which models are sampled
_LOGIT_SPREAD = 0.8  # of those of logits, which a low temperature makes larger
_KNOWN = 0.9  # of the target's tokens are among the best: the rest are filtered out here, or unknown to the head


def chances_of_logprobs(logprobs: Sequence[float]) -> list[float]:
    """Return the chance of each token that the target, which takes the likeliest one, takes it; best first."""
    weights = [math.exp(_SHARPNESS * logprob) for logprob in logprobs]
    rest = max(1.0 - sum([math.exp(logprob) for logprob in logprobs]), 0.0)
    total = sum(weights) + _REST * rest**_SHARPNESS
    return [weight / total for weight in weights]


def chances_of_scores(scores: Sequence[float], temperature: float) -> list[float]:
    """Return the chance of each token that the target, which adds the same noise, takes it; best first."""
    spread = max(_SPREAD, _LOGIT_SPREAD / temperature)
    weights = [math.exp((score - scores[0]) / spread) for score in scores]
    total = sum(weights)
    return [_KNOWN * weight / total for weight in weights]
