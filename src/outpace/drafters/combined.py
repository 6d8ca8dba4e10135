"""Several drafters as one: each is asked, and their trees merge under one budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from outpace.drafters.protocol import Drafter, SequenceView
from outpace.errors import DrafterError, UsageError
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types.tree import EMPTY, DraftTree, merge


class Combined:
    """Ask every drafter with the whole budget and merge what they say; each node is credited to all who said it.

    It owns `drafters`: they see every step (whoever's nodes were in it) and forget with it. Two drafters of the same
    name could not be told apart in the credits, so they are refused, nested ones too.
    """

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        if not drafters:
            raise UsageError("combined needs at least one drafter, got none")
        counts = Counter(name for drafter in drafters for name in _names(drafter))
        if twice := [name for name, count in counts.items() if count > 1]:
            raise UsageError(
                f"combined drafters need names of their own, got more than one {twice[0]!r}: "
                f"leave one out, or rename it (drafter.name = ...)"
            )
        self.name = "combined"
        self.drafters = tuple(drafters)
        self.taps = tuple(sorted({tap for drafter in drafters for tap in drafter.taps}))

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        """Return the merged tree of every sequence; raise `DrafterError` if a drafter returned too few or too many."""
        if not any(budgets):
            return [EMPTY] * len(sequences)
        proposals = [drafter.propose(sequences, budgets) for drafter in self.drafters]
        for drafter, trees in zip(self.drafters, proposals, strict=True):
            if len(trees) != len(sequences):
                raise DrafterError(
                    f"drafter {drafter.name!r} returned {len(trees)} drafts for {len(sequences)} sequences"
                )
        return [merge(trees, budget) for trees, budget in zip(zip(*proposals, strict=True), budgets, strict=True)]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Show the steps to every drafter."""
        for drafter in self.drafters:
            drafter.observe(steps, passed)

    def forget(self, request: int) -> None:
        """Let every drafter forget the request."""
        for drafter in self.drafters:
            drafter.forget(request)


def _names(drafter: Drafter) -> list[str]:
    """Return the names that appear in a drafter's credits."""
    if isinstance(drafter, Combined):
        return [name for owned in drafter.drafters for name in _names(owned)]
    return [drafter.name]
