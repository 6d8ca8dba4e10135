"""A drafter that guesses badly on purpose, so that rejections decide what is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from outpace.drafters.protocol import SequenceView
from outpace.measure.certify.target_distribution import TargetDistribution
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types.tree import EMPTY, DraftTree

_OUTSIDE = 0.1  # part of the drafts that are tokens the target never writes


class AdversarialDrafter:
    """A poor drafter with a known distribution q: it prefers what the target finds least likely.

    At the root it draws two siblings without replacement, and after the first of them one more token. Its randomness
    is its own.
    """

    name = "adversarial"
    taps: tuple[int, ...] = ()

    def __init__(self, target: TargetDistribution) -> None:
        self.target = target
        p_first = np.zeros(target.second.shape[1])
        p_first[target.tokens] = target.first
        self.q_first = _reversed(p_first)
        self.q_second = np.stack([_reversed(p_second) for p_second in target.second])
        self.places = {token: place for place, token in enumerate(target.tokens.tolist())}

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        return [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Nothing to learn."""

    def forget(self, request: int) -> None:
        """Nothing is remembered."""

    def _draft(self, sequence: SequenceView, budget: int) -> DraftTree:
        written = sequence.tokens[len(self.target.prompt) :]
        rng = np.random.default_rng([sequence.request.seed, len(written)])
        if not written and budget >= 3:
            first, sibling = rng.choice(len(self.q_first), 2, replace=False, p=self.q_first).tolist()
            if first not in self.places:  # the target never writes it: nothing is drafted after it
                return _tree([first, sibling], [-1, -1], [self.q_first])
            q_next = self.q_second[self.places[first]]
            after = int(rng.choice(len(q_next), p=q_next))
            return _tree([first, sibling, after], [-1, -1, 0], [self.q_first, q_next])
        if len(written) == 1 and budget >= 1 and written[0] in self.places:
            q_next = self.q_second[self.places[written[0]]]
            return _tree([int(rng.choice(len(q_next), p=q_next))], [-1], [q_next])
        return EMPTY


def _reversed(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p [V] with the probs of its tokens in the opposite order, and a little mass outside them."""
    support = np.flatnonzero(p)
    support = support[np.argsort(-p[support], kind="stable")]
    q = np.zeros_like(p)
    q[support] = p[support][::-1] * (1 - _OUTSIDE)
    q[np.flatnonzero(p == 0)[0]] = _OUTSIDE
    return np.asarray(q / q.sum())


def _tree(tokens: Sequence[int], parents: Sequence[int], rows: Sequence[NDArray[np.float64]]) -> DraftTree:
    """Return a tree whose q [N + 1, V] begins with `rows`."""
    n = len(tokens)
    q = np.zeros((n + 1, len(rows[0])))
    q[: len(rows)] = rows
    return DraftTree(tuple(tokens), tuple(parents), ((AdversarialDrafter.name,),) * n, (0.5,) * n, q)
