"""Asking a drafter, and keeping its failures to itself: it is switched off where it fails, and nobody else is."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from outpace.drafters.protocol import Drafter, Expectation, SequenceView, switched_off
from outpace.errors import DrafterError
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types.tree import EMPTY, DraftTree


class Questions:
    """One drafter, and the requests for which it has failed: it is not asked for them, nor shown their steps."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.expected: Expectation | None = getattr(drafter, "expectation", None)
        self.failed: set[int] = set()  # requests
        self._views: dict[int, SequenceView] = {}
        self._unsaid: dict[int, str] = {}  # failures before the request was first seen

    def begin(self, sequence: SequenceView) -> None:
        """Take in a request for which guesses are wanted from now on."""
        self._views[sequence.id] = sequence
        if (message := self._unsaid.pop(sequence.id, None)) is not None:
            sequence.warn(message)

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> Sequence[DraftTree]:
        """Return a tree for each; `EMPTY` where the drafter fails. Which of them it was is found one by one."""
        try:
            trees = self.drafter.propose(sequences, budgets)
            if len(trees) != len(sequences):
                raise DrafterError(f"returned {len(trees)} drafts for {len(sequences)} requests")
            for tree, budget in zip(trees, budgets, strict=True):
                if len(tree) > budget:
                    raise DrafterError(f"drafted {len(tree)} nodes, but the budget was {budget}")
            return trees
        except Exception as error:
            if len(sequences) == 1:
                self._switch_off(sequences[0].id, error)
                return [EMPTY]
        each = [self.propose([sequence], [budget]) for sequence, budget in zip(sequences, budgets, strict=True)]
        return [tree for trees in each for tree in trees]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Show the drafter what became of its sequences; if it fails, it is switched off for all of them."""
        has_taps = bool(self.drafter.taps)
        if self.failed:
            steps = [step for step in steps if step.request not in self.failed]
            if has_taps:
                passed = passed.of({part.id for part in passed.batch} - self.failed)
        try:
            self.drafter.observe(steps, passed)
        except Exception as error:
            requests = {step.request for step in steps}
            for request in requests | {part.id for part in passed.batch} if has_taps else requests:
                self._switch_off(request, error)

    def forget(self, request: int) -> None:
        """Let the drafter forget a request that has ended."""
        try:
            self.drafter.forget(request)
        except Exception as error:
            if request not in self.failed:
                self._warn(request, error)
        self.failed.discard(request)
        self._views.pop(request, None)
        self._unsaid.pop(request, None)

    def _switch_off(self, request: int, error: Exception) -> None:
        self.failed.add(request)
        self._warn(request, error)
        with contextlib.suppress(Exception):
            self.drafter.forget(request)

    def _warn(self, request: int, error: Exception) -> None:
        message = switched_off(self.drafter, error)
        if (view := self._views.get(request)) is not None:
            view.warn(message)
        else:
            self._unsaid[request] = message
