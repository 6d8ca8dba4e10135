"""How far a lossy mode goes from the target: measured, because it cannot be proven unchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from outpace.measure.certify.chi_square import total_variation
from outpace.measure.certify.scoring import score, softmax
from outpace.runner import Runner


@dataclass(frozen=True, slots=True)
class Loss:
    """A mode against the target, at every token of texts that the mode itself wrote.

    tv_mean, tv_max: total variation of the two next-token laws (temperature 1). top1: how often their most likely
    tokens agree. perplexity: of the mode's texts under the target; own_perplexity: of the target's own texts, written
    with the same seeds, under the target.
    """

    mode: str
    target: str
    positions: int
    tv_mean: float
    tv_max: float
    top1: float
    perplexity: float
    own_perplexity: float


def measure_loss(
    mode: str,
    target: str,
    lossy: Runner,
    exact: Runner,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    own_texts: Sequence[Sequence[int]],
) -> Loss:
    """Measure the runner `lossy` against `exact` along `texts`, which `lossy` wrote after `prompts`."""
    distances: list[float] = []
    agreed = 0
    for prompt, text in zip(prompts, texts, strict=True):
        for a, b in zip(score(exact, prompt, text), score(lossy, prompt, text), strict=True):
            distances += total_variation(softmax(a), softmax(b)).tolist()
            agreed += int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
    return Loss(
        mode=mode,
        target=target,
        positions=len(distances),
        tv_mean=float(np.mean(distances)),
        tv_max=max(distances),
        top1=agreed / len(distances),
        perplexity=perplexity(exact, prompts, texts),
        own_perplexity=perplexity(exact, prompts, own_texts),
    )


def perplexity(runner: Runner, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> float:
    """Return exp of the mean negative log-probability of all tokens of the texts, each after its prompt."""
    total, count = 0.0, 0
    for prompt, text in zip(prompts, texts, strict=True):
        place = 0
        for logits in score(runner, prompt, text):
            laws = softmax(logits)
            tokens = list(text[place : place + len(laws)])
            total -= float(np.log(np.maximum(laws[np.arange(len(laws)), tokens], 1e-300)).sum())
            place, count = place + len(laws), count + len(laws)
    return math.exp(total / count)
