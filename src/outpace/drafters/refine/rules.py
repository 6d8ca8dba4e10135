"""Which masked places become tokens after a pass, and which tokens are masked again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from outpace.drafters.refine.block import Block, Guesses

Unmask = Literal["confidence", "factor", "entropy"]
_LAST_TIME = 1e-3  # at which the noise of Dream's schedule ends


class Rule(Protocol):
    """Refine a block by what a pass says of it."""

    @property
    def looks_at_kept(self) -> bool:
        """Whether it needs `Guesses.kept`."""

    @property
    def looks_at_entropy(self) -> bool:
        """Whether it needs `Guesses.entropy`."""

    def refine(self, block: Block, guesses: Guesses, ends: Collection[int]) -> None:
        """Write tokens into the block and mask others again; ends: tokens that end a text."""


@dataclass(frozen=True, slots=True)
class ByConfidence:
    """Write what the network is sure of; at least one token a pass (Fast-dLLM, arXiv:2505.22618).

    unmask says what `threshold` limits. "confidence": every place whose token has that probability. "factor": the n
    surest places for the largest n with (n + 1) (1 - the n-th's probability) < threshold (Fast-dLLM, theorem 1).
    "entropy": places in the order of entropy while all but the last add up to at most `threshold` nats (EB-Sampler,
    arXiv:2505.24857). None: no place by that, only as many as `passes` asks for.
    passes: maximum passes for a block, each of which writes its part of what is left. None: no maximum.
    schedule: that part; "even": equal parts (LLaDA, arXiv:2502.09992), "linear": Dream's, by times from 1 to 0.001,
    whose parts are rounded down, to none at times. remask: a token whose probability a later pass puts below this is
    masked again, once for each place, and never in a block's last pass. None: tokens stay.
    by_entropy: whether places are ordered by entropy whatever the threshold limits.
    """

    unmask: Unmask = "confidence"
    threshold: float | None = 0.9
    passes: int | None = None
    schedule: str = "even"
    remask: float | None = None
    by_entropy: bool = False

    @property
    def looks_at_kept(self) -> bool:
        return self.remask is not None

    @property
    def looks_at_entropy(self) -> bool:
        return self.by_entropy or self.unmask == "entropy"

    def refine(self, block: Block, guesses: Guesses, ends: Collection[int]) -> None:
        tokens_before = [place for place in range(len(block)) if place not in set(block.masks)]
        order = self._order(block.masks, guesses)
        count = max(self._due(len(order), block.num_passes), self._sure(order, guesses))
        if self.schedule == "even" or self.passes is None:
            count = max(count, 1)
        for place in order[:count]:
            block.write(place, guesses.tokens[place], guesses.probability[place])
        if self.remask is not None and not self._is_last(block.num_passes):
            for place in tokens_before:
                if guesses.kept[place] < self.remask and place not in block.remasked:
                    block.mask(place)
                    block.remasked.add(place)

    def _order(self, places: Sequence[int], guesses: Guesses) -> list[int]:
        """Return the places, the surest first; of equals the first."""
        if self.looks_at_entropy:
            return sorted(places, key=lambda place: guesses.entropy[place])
        return sorted(places, key=lambda place: -guesses.probability[place])

    def _sure(self, order: Sequence[int], guesses: Guesses) -> int:
        """Return how many of the ordered places the threshold admits."""
        if self.threshold is None:
            return 0
        if self.unmask == "confidence":
            return sum(guesses.probability[place] >= self.threshold for place in order)
        if self.unmask == "factor":
            return max(
                (n for n, place in enumerate(order, 1) if (n + 1) * (1 - guesses.probability[place]) < self.threshold),
                default=0,
            )
        total, count = 0.0, 0
        for place in order:
            if total > self.threshold:
                break
            total += guesses.entropy[place]
            count += 1
        return count

    def _due(self, num_masks: int, num_passes: int) -> int:
        """Return how many places this pass (num_passes came before it) must write."""
        if self.passes is None:
            return 0
        left = self.passes - num_passes
        if left <= 1:
            return num_masks
        if self.schedule == "even":
            return -(-num_masks // left)
        now, then = (_time(i, self.passes) for i in (num_passes, num_passes + 1))
        return int(num_masks * (1 - then / now))

    def _is_last(self, num_passes: int) -> bool:
        return self.passes is not None and num_passes + 1 >= self.passes


def _time(step: int, steps: int) -> float:
    return 1 + step * (_LAST_TIME - 1) / steps


@dataclass(frozen=True, slots=True)
class MaskPredict:
    """Write every place in every pass, and mask the least sure again, fewer each time (arXiv:1904.09324, section 4).

    passes: T. After pass t of 1 ... T, the len * (T - t) / T tokens of the lowest probability (rounded down; each as
    it was when the token was written) are masked again. predicts_length: the first pass also says how long the text
    is: up to the first token that ends one.
    """

    passes: int = 10
    predicts_length: bool = False

    looks_at_kept = False
    looks_at_entropy = False

    def refine(self, block: Block, guesses: Guesses, ends: Collection[int]) -> None:
        for place in block.masks:
            block.write(place, guesses.tokens[place], guesses.probability[place])
        if self.predicts_length and block.num_passes == 0:
            end = next((place for place, token in enumerate(block.tokens) if token in ends), len(block) - 1)
            block.cut(end + 1)
        left = self.passes - block.num_passes - 1
        least = sorted(range(len(block)), key=lambda place: block.confidence[place])
        for place in least[: len(block) * max(left, 0) // self.passes]:
            block.mask(place)
