"""Draft with a second, cheaper model that has the target's vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outpace.cache import BlockTable
from outpace.drafters.protocol import SequenceView
from outpace.errors import UsageError
from outpace.runner import Pass, Runner, ScheduledSequence
from outpace.trace import Step
from outpace.tree import EMPTY, DraftTree
from outpace.types import Request


@dataclass(slots=True)
class _Known:
    """What the draft model holds of one request: keys and values of text[:table.length]."""

    request: Request
    table: BlockTable
    text: list[int] = field(default_factory=list)
    agreed: int = 0  # text[:agreed] is the request's own, behind it are old guesses


@dataclass(slots=True)
class _Draft:
    """One request's draft while it grows: a chain, with the runners-up of each level as leaves."""

    request: Request
    table: BlockTable
    text: list[int]  # the request's text, then the guesses on the chain
    budget: int
    last: int = -1  # end of the chain, a node
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    laws: dict[int, NDArray[np.float64]] = field(default_factory=dict)  # node -> law of its children

    @property
    def room(self) -> int:
        return self.budget - len(self.tokens)


class DraftModel:
    """Let a cheaper model write ahead; the target verifies.

    At each level the draft model's own token continues the chain, and its `branches` - 1 next best stay as
    leaves. A sampled request is drafted with the request's own law and the target's noise, so where the two models
    agree they pick the same token (acceptance at least (1 - TV) / (1 + TV)). The chain ends early below
    `min_confidence`, the draft model's probability of its token.

    runner: the draft model's own, with a cache of its own. vocab_size: the target's (ids above it are not drafted).
    with_law: give the tree its q, for the `rejection` rule.
    """

    name = "draft_model"
    taps: tuple[int, ...] = ()

    def __init__(
        self,
        runner: Runner,
        vocab_size: int,
        *,
        branches: int = 1,
        min_confidence: float = 0.3,
        with_law: bool = False,
    ) -> None:
        if branches < 1:
            raise UsageError(f"branches must be at least 1, got {branches}")
        if not 0.0 <= min_confidence <= 1.0:
            raise UsageError(f"min_confidence must be in [0, 1], got {min_confidence}")
        if with_law and runner.model.config.vocab_size > vocab_size:
            raise UsageError(
                f"the draft model has {runner.model.config.vocab_size} token ids and the target {vocab_size}: its law "
                "has mass outside the target's vocabulary, so the rejection rule cannot use it; use the default rule"
            )
        self.runner, self.vocab_size = runner, vocab_size
        self.branches, self.min_confidence, self.with_law = branches, min_confidence, with_law
        self._known: dict[int, _Known] = {}

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        drafts = [self._start(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        while growing := [d for d in drafts if d is not None and d.room > 0 and len(d.text) < self.runner.context]:
            for draft in self._grow(growing):
                draft.budget = len(draft.tokens)  # its chain has ended
        return [EMPTY if draft is None else self._tree(draft) for draft in drafts]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Nothing to learn: `propose` finds out by itself which of its guesses stayed."""

    def forget(self, request: int) -> None:
        if request in self._known:
            self._known.pop(request).table.close()

    def _start(self, sequence: SequenceView, budget: int) -> _Draft | None:
        """Return an empty draft on a table that holds what it already knows of the sequence's text."""
        if budget == 0 or len(sequence.tokens) >= self.runner.context:
            return None
        known = self._known.get(sequence.id)
        if known is None:
            # Masks and processors are written for the target's vocabulary; a guess may do without them.
            own = dataclasses.replace(sequence.request.options, constraint=None, logits_processors=(), logprobs=None)
            request = dataclasses.replace(sequence.request, options=own)
            known = self._known[sequence.id] = _Known(request, self.runner.cache.open((), request.options.salt))
        same = known.agreed
        most = min(known.table.length, len(sequence.tokens) - 1)
        while same < most and known.text[same] == sequence.tokens[same]:
            same += 1
        if same < known.table.length:
            known.table.truncate(same)
        known.text, known.agreed = list(sequence.tokens), len(sequence.tokens)
        return _Draft(known.request, known.table, known.text, budget)

    def _grow(self, drafts: Sequence[_Draft]) -> list[_Draft]:
        """Add one level to every draft; return those whose chain ends here."""
        batch = [ScheduledSequence(d.table, d.request, d.text, len(d.text)) for d in drafts]
        ops = self.runner.ops
        logits = self.runner.forward(batch).logits
        rows = self.runner.rows(batch)
        guesses = ops.sample(logits, rows, k=self.branches)
        chances = np.exp([ops.logprobs(logits, column) for column in guesses.T.tolist()]).T
        laws = ops.law(logits, rows) if self.with_law else [None] * len(drafts)
        ended = []
        for draft, s, guess, chance, law in zip(drafts, batch, guesses.tolist(), chances.tolist(), laws, strict=True):
            s.table.commit(range(s.end - s.start), draft.text[s.start : s.end])
            if law is not None:
                draft.laws[draft.last] = law
                guess = [token for token in guess if law[token] > 0]
            nodes = [(t, c) for t, c in zip(guess, chance, strict=False) if t < self.vocab_size][: draft.room]
            if nodes:
                draft.text.append(nodes[0][0])
                parent, draft.last = draft.last, len(draft.tokens)
                draft.tokens += [token for token, _ in nodes]
                draft.confidence += [min(1.0, certainty) for _, certainty in nodes]
                draft.parents += [parent] * len(nodes)
            if not nodes or nodes[0][1] < self.min_confidence:
                ended.append(draft)
        return ended

    def _tree(self, draft: _Draft) -> DraftTree:
        n = len(draft.tokens)
        q = None
        if self.with_law:
            q = np.zeros((n + 1, self.vocab_size))
            for node, law in draft.laws.items():
                q[node + 1, : len(law)] = law[: self.vocab_size]
        return DraftTree(tuple(draft.tokens), tuple(draft.parents), ((self.name,),) * n, tuple(draft.confidence), q)
