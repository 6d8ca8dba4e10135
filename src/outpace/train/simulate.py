"""Tokens per step as decoding will have them, from text that the target has written: no token is generated.

Greedy text is what the target always writes after its prompt, and so is sampled text under its own noise. A draft is
therefore accepted as far as it equals the text, and the walk over a text is the one that decoding takes: a step writes
what was accepted and one token more. The first step follows the prompt and has no draft, as in `Stats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.train.drafts import accepted
from outpace.train.networks.network import DraftNetwork
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation

BUDGETS = (1, 2, 3, 4, 5, 7)
SCORED = 4  # tokens of the drafts by which drafters are chosen


@dataclass(frozen=True, slots=True)
class Row:
    """Texts of one kind: how many there are, their response tokens, and tokens per step.

    chains: by the most tokens of a draft, which is a chain or a tree, as its kind's drafter makes it.
    """

    kind: str
    sampled: bool
    texts: int
    tokens: int
    chains: dict[int, float]


@dataclass(frozen=True, slots=True)
class Simulation:
    """Tokens per step of a drafter on some texts, a row for each kind, greedy and sampled apart."""

    rows: tuple[Row, ...]

    def mean(self, chain: int = SCORED, sampled: bool | None = None) -> float:
        """Return the mean over the rows (of greedy or sampled text alone, where `sampled` is given)."""
        chosen = [row.chains[chain] for row in self.rows if sampled in (None, row.sampled)]
        return float(np.mean(chosen)) if chosen else 1.0


def simulate(
    network: DraftNetwork,
    target: FrozenTarget,
    conversations: Sequence[Conversation],
    *,
    budgets: Iterable[int] = BUDGETS,
    min_confidence: float | None = None,
) -> Simulation:
    """Return what a drafter brings on some conversations, for drafts of at most so many tokens.

    min_confidence: of the drafter (None: as decoding has it). Use a network that was read from its file: its numbers
    are rounded as decoding has them.
    """
    sizes = sorted(set(budgets))
    counts: dict[tuple[str, bool], list[tuple[int, list[int]]]] = {}
    for own, found in accepted(network, target, conversations, sizes, min_confidence):
        steps = [num_steps(column) for column in found.T]
        counts.setdefault((own.kind, own.sampled), []).append((len(own.tokens) - own.num_prompt, steps))
    rows = []
    for (kind, sampled), texts in sorted(counts.items()):
        tokens = sum(count for count, _ in texts)
        totals = np.sum([steps for _, steps in texts], axis=0).tolist()
        rows.append(
            Row(kind, sampled, len(texts), tokens, {n: tokens / steps for n, steps in zip(sizes, totals, strict=True)})
        )
    return Simulation(tuple(rows))


def num_steps(accepted: NDArray[np.int64]) -> int:
    """Return the steps that a response takes; accepted: tokens of the draft that come true, at each but its last."""
    steps = 1
    i = 0
    while i < len(accepted):
        i += int(accepted[i]) + 1
        steps += 1
    return steps
