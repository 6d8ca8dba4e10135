"""How far a lossy mode goes from the target: measured, because it cannot be proven unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from outpace.measure.certify.chi_square import total_variation
from outpace.measure.quality.perplexity import perplexity
from outpace.measure.scoring import score, softmax
from outpace.runner import Runner


@dataclass(frozen=True, slots=True)
class Loss:
    """A mode compared with the target, at every token of sequences that the mode itself wrote.

    tv_mean, tv_max: total variation of the two next-token distributions (temperature 1). top1: how often their most
    likely tokens agree. perplexity: of the mode's sequences under the target; own_perplexity: of the target's own
    sequences, written with the same seeds, under the target.
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
    sequences: Sequence[Sequence[int]],
    own_sequences: Sequence[Sequence[int]],
) -> Loss:
    """Compare the runner `lossy` with `exact` along `sequences`, the tokens that `lossy` wrote after `prompts`."""
    distances: list[float] = []
    agreed = 0
    for prompt, tokens in zip(prompts, sequences, strict=True):
        for a, b in zip(score(exact, prompt, tokens), score(lossy, prompt, tokens), strict=True):
            distances += total_variation(softmax(a), softmax(b)).tolist()
            agreed += int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
    return Loss(
        mode=mode,
        target=target,
        positions=len(distances),
        tv_mean=float(np.mean(distances)),
        tv_max=max(distances),
        top1=agreed / len(distances),
        perplexity=perplexity(exact, prompts, sequences),
        own_perplexity=perplexity(exact, prompts, own_sequences),
    )
