"""Who guesses: what a drafter sees of a sequence, and what it must answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from outpace.trace import Step
from outpace.tree import DraftTree
from outpace.types import Request


class SequenceView(Protocol):
    """What a drafter may see of a sequence that is being decoded. Read only."""

    @property
    def id(self) -> int:
        """A number of its own among all requests of an engine."""

    @property
    def request(self) -> Request:
        """What was asked for."""

    @property
    def tokens(self) -> list[int]:
        """Prompt and output so far; the next token is written at position len(tokens)."""


class Drafter(Protocol):
    """Who guesses. Guesses never change the output, only how many steps it takes.

    A drafter keeps its state per request id between `propose` and `forget`; it may not keep the lists it is given.
    """

    name: str

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> Sequence[DraftTree]:
        """Return one tree per sequence with at most `budget` nodes each (0: return `EMPTY`).

        Budgets are already capped by the request's length, its context and the free blocks.
        """

    def observe(self, steps: Sequence[Step]) -> None:
        """Learn from what the target did: the path, and its token at every node."""

    def forget(self, request: int) -> None:
        """Drop all state of a request: it has ended. May be called for an unknown id."""
