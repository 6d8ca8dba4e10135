"""How far a lossy mode goes from the target: measured, because it cannot be proven unchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.measure.certify.chi_square import total_variation
from outpace.measure.scoring import score, softmax
from outpace.runner import Runner

LIMIT = 0.01  # nats a token; last bits alone make 0.0034 (docs/certify.md)
_WIDTH = 64  # rows of a pass


@dataclass(frozen=True, slots=True)
class Loss:
    """A mode compared with the target at every token of texts that the target wrote: both read the same tokens.

    divergence: mean Kullback-Leibler divergence of the next-token distributions (temperature 1) from the target's, in
    nats; divergence_error: its standard error. tv_mean, tv_max: their total variation. top1: how often their most
    likely tokens agree. perplexity, own_perplexity: of the texts under the mode, and under the target.
    """

    mode: str
    target: str
    positions: int
    divergence: float
    divergence_error: float
    tv_mean: float
    tv_max: float
    top1: float
    perplexity: float
    own_perplexity: float

    @property
    def change(self) -> float:
        """By how much the mode's perplexity is larger than the target's, relative to it."""
        return self.perplexity / self.own_perplexity - 1

    @property
    def is_large(self) -> bool:
        """Whether the mode loses more than a KV format should (`LIMIT`)."""
        return self.divergence > LIMIT


def measure_loss(mode: str, target: str, lossy: Runner, exact: Runner, texts: Sequence[Sequence[int]]) -> Loss:
    """Compare the runner `lossy` with `exact` at every token of the texts but each one's first, teacher-forced."""
    rows = [part for text in texts for part in _compare(lossy, exact, text)]
    divergence, distance, agrees, surprise, own_surprise = np.concatenate(rows, axis=1)
    return Loss(
        mode=mode,
        target=target,
        positions=len(divergence),
        divergence=float(divergence.mean()),
        divergence_error=float(divergence.std() / math.sqrt(len(divergence))),
        tv_mean=float(distance.mean()),
        tv_max=float(distance.max()),
        top1=float(agrees.mean()),
        perplexity=math.exp(surprise.mean()),
        own_perplexity=math.exp(own_surprise.mean()),
    )


def _compare(lossy: Runner, exact: Runner, text: Sequence[int]) -> list[NDArray[np.float64]]:
    """Return a row of numbers for each measure, [5, n], of the text's tokens in order."""
    pairs = zip(*(score(runner, text[:1], text[1:], _WIDTH) for runner in (exact, lossy)), strict=True)
    place, found = 1, []
    for a, b in pairs:
        p, q = softmax(a), softmax(b)
        logp, logq = (np.log(np.maximum(x, 1e-300)) for x in (p, q))
        own = np.arange(len(p)), list(text[place : place + len(p)])
        agrees = a.argmax(axis=1) == b.argmax(axis=1)
        divergence = (p * (logp - logq)).sum(axis=1)
        found.append(np.stack([divergence, total_variation(p, q), agrees, -logq[own], -logp[own]]))
        place += len(p)
    return found
