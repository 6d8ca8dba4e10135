"""Who guesses: what a drafter sees of a sequence, and what it must answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from outpace.cache import BlockTable
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types import Request
from outpace.types.tree import DraftTree


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

    @property
    def table(self) -> BlockTable | None:
        """Where its keys and values are: while it is asked for a draft, with slots reserved for the whole budget."""

    def warn(self, message: str) -> None:
        """Tell the user what went wrong while it was drafted for: `stats.warnings` of its result."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is known of a drafter before it was ever asked; it may have one as `expectation`, the router begins with it.

    question, node: plain passes of the target that being asked takes, and each node. acceptance: the chance that a
    guess comes true, given that those before it did.
    """

    question: float
    node: float
    acceptance: float


class Drafter(Protocol):
    """Who guesses. Guesses never change the output, only how many steps it takes.

    Drafters live with the loaded model and serve all its requests, with state by request id between `propose` and
    `forget`; they may not keep the lists they are given. One that raises is switched off for its request.
    A drafter may also say `is_one_pass = True`: more nodes cost it hardly more time, so a router tries many at once;
    and `is_calibrated = True`: its confidences are the chances that its guesses come true, whatever the text, so a
    router believes them from the first and thinks no worse of them after a few surprises.
    """

    name: str
    taps: tuple[int, ...]  # layers of the target whose hidden states it needs; mostly none

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> Sequence[DraftTree]:
        """Return one tree per sequence with at most `budget` nodes each (0: return `EMPTY`).

        Budgets are already capped by the request's length, its context and the free blocks.
        """

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Learn from what the target did: the path, its token at every node, and the hidden states of the taps.

        Steps are of the sequences that it drafts for; a router may fill in their `forecast`. A drafter with taps is
        also shown passes that only compute prompts, and `passed` holds just its own sequences then.
        """

    def forget(self, request: int) -> None:
        """Drop all state of a request: it has ended. May be called for an unknown id."""


def switched_off(drafter: Drafter, error: BaseException) -> str:
    """Return the warning that a drafter is no longer asked for a request, because it failed."""
    return f"drafter {drafter.name!r} failed and was switched off: {type(error).__name__}: {error}"
