"""Where two sequences part, and whether rounding can explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.measure.scoring import score
from outpace.ops import philox
from outpace.runner import Runner
from outpace.types import TOKEN_STREAM

_WIDTHS = (1, 5, 64)  # rows of a pass: plain decoding, a short draft, a prefill


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where a sequence differs from plain decoding's.

    position: in the output. plain, other: the two tokens (None: that sequence has ended). margin: by how much the best
    score in plain decoding exceeds the second best; gap: by how much plain's token exceeds the other. Scores are
    logits (greedy) or logits / temperature with the position's noise (sampled). rounding: how far the same scores move
    when this backend computes them in passes of other widths.
    """

    sequence: int  # which of the run's sequences
    position: int
    plain: int | None
    other: int | None
    margin: float | None
    gap: float | None
    rounding: float | None

    @property
    def within_rounding(self) -> bool:
        """Whether the two tokens' scores, moving by `rounding` each, can change places."""
        return self.gap is not None and self.rounding is not None and self.gap <= 2 * self.rounding


def first_difference(plain: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the first position where two sequences differ, or None if they are the same."""
    for position, (a, b) in enumerate(zip(plain, other, strict=False)):
        if a != b:
            return position
    return None if len(plain) == len(other) else min(len(plain), len(other))


def find_divergence(
    runner: Runner,
    prompt: Sequence[int],
    plain: Sequence[int],
    other: Sequence[int],
    *,
    sequence: int,
    temperature: float,
    seed: int,
) -> Divergence | None:
    """Return where `other` leaves `plain`, with margin, gap and rounding at that place; None if it does not.

    The scores leave top-p out.
    """
    place = first_difference(plain, other)
    if place is None:
        return None
    if place >= len(plain) or place >= len(other):
        a, b = (list(tokens[place : place + 1]) for tokens in (plain, other))
        return Divergence(sequence, place, a[0] if a else None, b[0] if b else None, None, None, None)
    ways = [_scores_at(runner, prompt, plain, place, width, temperature, seed) for width in _WIDTHS]
    second, best = np.sort(ways[0])[-2:]
    gap = ways[0][plain[place]] - ways[0][other[place]]
    rounding = max(float(np.abs(way - ways[0]).max()) for way in ways[1:])
    return Divergence(sequence, place, plain[place], other[place], float(best - second), float(gap), rounding)


def _scores_at(
    runner: Runner, prompt: Sequence[int], plain: Sequence[int], place: int, width: int, temperature: float, seed: int
) -> NDArray[np.float64]:
    """Return the scores [V] whose largest is the target's token: logits, with the position's noise where sampled."""
    *_, last = score(runner, prompt, plain[: place + 1], width)
    logits: NDArray[np.float64] = last[-1].astype(np.float64)
    if temperature == 0.0:
        return logits
    noise = philox.gumbel(seed, len(prompt) + place, len(logits), 0, TOKEN_STREAM)
    return logits / temperature + noise
