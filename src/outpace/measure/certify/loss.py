"""How far a lossy mode goes from the target, beyond what last bits alone make: measured, not proven.

A target that rounds activations to 8 bits makes much of a last bit: the same network, whose input differs by one unit
in the last place, has another distribution (0.004 nats a token in the default model). A mode that changes anything at
all changes last bits too, so its divergence from the target has this floor, which is no loss: were the target's own
last bits others, nobody would call it worse. What a mode costs is its divergence less the floor.

Both are means over the positions of the same texts, so their difference is taken position by position. Neighbouring
positions are not independent, and a few tokens may hold most of a divergence: the interval is a bootstrap over
batches of neighbours, whose percentiles are expanded for few batches (Hesterberg 2015, American
Statistician 69).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from outpace.measure.certify.chi_square import total_variation
from outpace.measure.scoring import score, softmax
from outpace.runner import Runner

LIMIT = 0.005  # nats a token: half a percent of perplexity
_WIDTH = 64  # rows of a pass
_BATCH = 16  # positions whose mean counts as one observation
_NUDGE = 1 + 2.0**-23  # one unit in the last place of a float32
_CONFIDENCE = 0.95
_RESAMPLES = 4000

Finding = Literal["none measurable", "loss", "large loss"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A mode compared with the target at every token of texts that the target wrote: both read the same tokens.

    divergence: mean Kullback-Leibler divergence of the next-token distributions (temperature 1) from the target's, in
    nats. floor: that of the target itself with other last bits. cost_low, cost_high: 95 % interval of the mode's
    divergence less the floor's. tv_mean, tv_max: total variation of the distributions. top1: how often their most
    likely tokens agree. perplexity: of the texts, under the target.
    """

    mode: str
    target: str
    positions: int
    divergence: float
    floor: float
    cost_low: float
    cost_high: float
    tv_mean: float
    tv_max: float
    top1: float
    perplexity: float

    @property
    def cost(self) -> float:
        """What the mode costs, in nats a token: by how much it raises the log-perplexity of what the target writes."""
        return self.divergence - self.floor

    @property
    def finding(self) -> Finding:
        """What can be said: a loss is one whose interval lies above 0, a large one costs more than `LIMIT` as well."""
        if self.cost_low <= 0:
            return "none measurable"
        return "large loss" if self.cost > LIMIT else "loss"


class Comparison:
    """A target and texts that it wrote, with the floor of every mode that is compared with it there."""

    def __init__(self, target: Runner, texts: Sequence[Sequence[int]]) -> None:
        self._target, self._texts = target, texts
        longest = max(map(len, texts))
        self._floor = _columns(target, _with_other_last_bits(target, longest), texts)[0]

    def measure(self, mode: str, target: str, lossy: Runner) -> Loss:
        """Compare a runner with the target at every token of the texts but each one's first, teacher-forced."""
        divergence, distance, agrees, surprise = _columns(self._target, lossy, self._texts)
        low, high = interval(divergence - self._floor)
        return Loss(
            mode=mode,
            target=target,
            positions=len(divergence),
            divergence=float(divergence.mean()),
            floor=float(self._floor.mean()),
            cost_low=low,
            cost_high=high,
            tv_mean=float(distance.mean()),
            tv_max=float(distance.max()),
            top1=float(agrees.mean()),
            perplexity=math.exp(surprise.mean()),
        )


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values that follow each other; all numbers, where too few say nothing."""
    batches = np.array([batch.mean() for batch in np.array_split(values, len(values) // _BATCH or 1)])
    count = len(batches)
    if count < 2:
        return -math.inf, math.inf
    drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * _student(count - 1))
    low, high = np.quantile(batches[drawn].mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)


def _student(freedom: int) -> float:
    """Return Student's t that `_CONFIDENCE` of the mass lies within (Abramowitz and Stegun 26.7.5)."""
    z, n = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2), float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, 1))


def _with_other_last_bits(runner: Runner, length: int) -> Runner:
    """Return a runner of the same weights whose embeddings are larger by one unit in the last place.

    Its cache holds one text of this length.
    """
    model = runner.model
    nudged = replace(model, config=replace(model.config, embedding_scale=model.config.embedding_scale * _NUDGE))
    scratch = runner.scratch(-(-(length + 2 * _WIDTH) // runner.cache.block_size))
    return Runner(nudged, runner.ops, scratch.cache, runner.context, adapter=runner.adapter)


def _columns(target: Runner, other: Runner, texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return a row of numbers for each measure, [4, positions]."""
    return np.concatenate([part for text in texts for part in _compare(target, other, text)], axis=1)


def _compare(target: Runner, other: Runner, text: Sequence[int]) -> Iterator[NDArray[np.float64]]:
    """Yield divergence, total variation, whether top tokens agree, and the target's surprise, of tokens in order."""
    place = 1
    for a, b in zip(*(score(runner, text[:1], text[1:], _WIDTH) for runner in (target, other)), strict=True):
        p, q = softmax(a), softmax(b)
        logp, logq = (np.log(np.maximum(x, 1e-300)) for x in (p, q))
        surprise = -logp[np.arange(len(p)), list(text[place : place + len(p)])]
        divergence = (p * (logp - logq)).sum(axis=1)
        yield np.stack([divergence, total_variation(p, q), a.argmax(axis=1) == b.argmax(axis=1), surprise])
        place += len(p)
