"""Prompt lookup: when the last few tokens stood in the text before, draft what followed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.drafters.matching import trust
from outpace.drafters.protocol import SequenceView
from outpace.errors import UsageError
from outpace.runner import Pass
from outpace.trace import Step
from outpace.tree import EMPTY, DraftTree


@dataclass(slots=True)
class _Index:
    """Where each n-gram of one text was last followed by a token, and how far the text is indexed."""

    follower: dict[tuple[int, ...], int] = field(default_factory=dict)  # n-gram -> position after it
    num_indexed: int = 0


class NGram:
    """Draft the continuation of the longest earlier match of the text's end, the most recent one if there are several.

    Looks for the last `max_ngram` tokens, then for fewer, down to `min_ngram`. A match that lies so close to the
    end that its continuation runs into it is continued in a circle, so a text that repeats with a short period
    is drafted as far as the budget goes. Each new token costs one dictionary entry per n-gram length.
    """

    def __init__(self, *, max_ngram: int = 4, min_ngram: int = 2) -> None:
        if not 1 <= min_ngram <= max_ngram <= 64:
            raise UsageError(
                f"min_ngram and max_ngram must be in [1, 64], min_ngram the smaller or both equal; "
                f"got min_ngram={min_ngram!r}, max_ngram={max_ngram!r}"
            )
        self.name = "ngram"
        self.taps: tuple[int, ...] = ()
        self._lengths = range(max_ngram, min_ngram - 1, -1)
        self._indices: dict[int, _Index] = {}

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        """Return one chain per sequence, empty where nothing matches."""
        return [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Do nothing: the text itself says all there is to know."""

    def forget(self, request: int) -> None:
        """Drop the index of a request."""
        self._indices.pop(request, None)

    def _draft(self, sequence: SequenceView, budget: int) -> DraftTree:
        if budget <= 0:
            return EMPTY
        tokens = sequence.tokens
        index = self._indices.setdefault(sequence.id, _Index())
        self._extend(index, tokens)
        for length in self._lengths:
            # An n-gram is filed when a token follows it, so this finds an earlier one, never the end itself.
            start = index.follower.get(tuple(tokens[-length:]))
            if start is not None:
                draft = tokens[start : start + budget]
                while len(draft) < budget:
                    draft += draft[: budget - len(draft)]
                return DraftTree.chain(draft, self.name, [trust(length + depth) for depth in range(budget)])
        return EMPTY

    def _extend(self, index: _Index, tokens: list[int]) -> None:
        follower = index.follower
        for end in range(index.num_indexed, len(tokens)):
            for length in self._lengths:
                if length <= end:
                    follower[tuple(tokens[end - length : end])] = end
        index.num_indexed = len(tokens)
