"""A block of tokens that is being refined, and what a pass says of its places."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from outpace.types.tree import NO_TOKEN


@dataclass(slots=True)
class Block:
    """The tokens of positions [start, start + len(tokens)); NO_TOKEN where a place is masked.

    confidence: of each token, when it was written. remasked: places that were masked again once. num_passes: passes
    that have refined it.
    """

    start: int
    tokens: list[int]
    confidence: list[float]
    num_passes: int = 0
    remasked: set[int] = field(default_factory=set)

    @staticmethod
    def masked_from(start: int, length: int) -> Block:
        """Return a block of masks."""
        return Block(start, [NO_TOKEN] * length, [0.0] * length)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def masks(self) -> list[int]:
        """The places that are masked, in order."""
        return [place for place, token in enumerate(self.tokens) if token == NO_TOKEN]

    def write(self, place: int, token: int, confidence: float) -> None:
        """Put a token into a place."""
        self.tokens[place], self.confidence[place] = token, confidence

    def mask(self, place: int) -> None:
        """Mask a place again."""
        self.tokens[place], self.confidence[place] = NO_TOKEN, 0.0

    def cut(self, length: int) -> None:
        """Forget the places from `length` on."""
        del self.tokens[length:], self.confidence[length:]

    def moved(self, count: int, length: int) -> Block:
        """Return the block of `length` places that begins behind this one's first `count`: masks join at its end."""
        tokens, confidence = self.tokens[count:], self.confidence[count:]
        more = length - len(tokens)
        return Block(
            self.start + count,
            (tokens + [NO_TOKEN] * more)[:length],
            (confidence + [0.0] * more)[:length],
            self.num_passes,
            {place - count for place in self.remasked if place >= count},
        )

    def text(self, ends: Collection[int], limit: int) -> list[int] | None:
        """Return the block's tokens once nothing of them can change the text; None while a mask stands before its end.

        The text ends behind a token of `ends`, or after `limit` tokens.
        """
        for place, token in enumerate(self.tokens[:limit]):
            if token == NO_TOKEN:
                return None
            if token in ends:
                return self.tokens[: place + 1]
        return self.tokens[:limit]


@dataclass(frozen=True, slots=True)
class Guesses:
    """What a pass says of every place of a block.

    tokens: what would be written there. probability: the network's own of that token (temperature 1, no filters).
    kept: the same of the token that stands there (0 for a mask). entropy: of the network's distribution, in nats.
    kept and entropy are empty where the rule does not look at them. Places before the first mask may be left out: the
    token is NO_TOKEN there then.
    """

    tokens: Sequence[int]
    probability: Sequence[float]
    kept: Sequence[float] = ()
    entropy: Sequence[float] = ()
