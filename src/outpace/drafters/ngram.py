"""Prompt lookup: when the last few tokens stood in the text before, draft what followed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.drafters.kept import KeptStates
from outpace.drafters.matching import trust
from outpace.drafters.protocol import SequenceView
from outpace.errors import UsageError
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types.tree import EMPTY, DraftTree


@dataclass(slots=True)
class _Index:
    """Where each n-gram of one sequence was last followed by a token, and the tokens that are indexed."""

    salt: bytes
    tokens: list[int] = field(default_factory=list)
    follower: dict[tuple[int, ...], int] = field(default_factory=dict)  # n-gram -> position after it


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
        self._kept: KeptStates[_Index] = KeptStates()

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        """Return one chain per sequence, empty where nothing matches."""
        return [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Do nothing: the text itself says all there is to know."""

    def forget(self, request: int) -> None:
        """Keep the index of a request for one that continues it."""
        index = self._indices.pop(request, None)
        if index is not None:
            self._kept.keep(index.salt, index.tokens, index)

    def _index(self, sequence: SequenceView) -> _Index:
        index = self._indices.get(sequence.id)
        if index is None:
            salt = sequence.request.options.salt
            kept = self._kept.take(salt, sequence.tokens)
            index = self._indices[sequence.id] = kept if kept is not None else _Index(salt)
        return index

    def _draft(self, sequence: SequenceView, budget: int) -> DraftTree:
        if budget <= 0:
            return EMPTY
        tokens = sequence.tokens
        index = self._index(sequence)
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
        for end in range(len(index.tokens), len(tokens)):
            for length in self._lengths:
                if length <= end:
                    follower[tuple(tokens[end - length : end])] = end
        index.tokens += tokens[len(index.tokens) :]
