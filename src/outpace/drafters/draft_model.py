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
from outpace.types import Request
from outpace.types.tree import EMPTY, DraftTree

_CHUNK = 256  # tokens in a pass that catches up


@dataclass(slots=True)
class _Draft:
    """One sequence's draft while it grows: a chain, with the runners-up of each level as leaves."""

    request: Request
    table: BlockTable
    context: list[int]  # the sequence's tokens, then the guesses on the chain
    start: int  # the draft model has computed context[:start]
    budget: int
    last: int = -1  # end of the chain, a node
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    q: dict[int, NDArray[np.float64]] = field(default_factory=dict)  # node -> distribution of its children

    @property
    def gives_q(self) -> bool:
        """Whether the verification needs to know what the guesses were drawn from."""
        return self.request.options.verification == "rejection"

    @property
    def num_left(self) -> int:
        """Nodes that may still be added."""
        return self.budget - len(self.tokens)

    @property
    def has_slots(self) -> bool:
        """Whether the end of the chain can be computed: its slots are reserved."""
        return len(self.context) <= self.table.length + self.table.reserved


class _FirstTokens:
    """A constraint to the first `count` token ids: those that the target has too."""

    def __init__(self, count: int, vocab_size: int) -> None:
        allowed = np.arange(-(-vocab_size // 32) * 32) < count
        self._mask: NDArray[np.uint32] = np.packbits(allowed, bitorder="little").view("<u4")

    def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
        return self._mask


class DraftModel:
    """Let a cheaper model write ahead; the target verifies.

    At each level the draft model's own token continues the chain, and its `branches` - 1 next best stay as
    leaves. A sampled request is drafted with the request's own sampling and the target's noise, so where the two models
    agree they sample the same token (acceptance at least (1 - TV) / (1 + TV)). A request that is verified by rejection
    sampling gets the distribution q beside its draft. The chain ends early below
    `min_confidence`, the draft model's probability of its token.

    Its keys and values are a group of layers in the target's cache, so what it has computed of a sequence is the block
    table's to know, and lives as long as the target's: other samples, forks and a chat's next turn find it there.
    A sequence with a token id that the draft model does not have is not drafted from there on.

    runner: the draft model's, joined to the target's cache (`Runner.join`). vocab_size: the target's (other ids are not
    drafted).
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
    ) -> None:
        if branches < 1:
            raise UsageError(f"branches must be at least 1, got {branches}")
        if not 0.0 <= min_confidence <= 1.0:
            raise UsageError(f"min_confidence must be in [0, 1], got {min_confidence}")
        self._own_vocab_size = runner.model.config.vocab_size
        self._common = _FirstTokens(vocab_size, self._own_vocab_size) if self._own_vocab_size > vocab_size else None
        self.runner, self.vocab_size = runner, vocab_size
        self.branches, self.min_confidence = branches, min_confidence
        self._requests: dict[int, Request | None] = {}  # as the draft model samples them; None: it cannot read them

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        started = [self._start(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        drafts = [draft for draft in started if draft is not None]
        self._catch_up(drafts)
        while growing := [d for d in drafts if d.num_left > 0 and len(d.context) < self.runner.context and d.has_slots]:
            for draft in self._grow(growing):
                draft.budget = len(draft.tokens)  # its chain has ended
        return [EMPTY if draft is None else self._tree(draft) for draft in started]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Nothing to learn: the block tables know which of its guesses stayed."""

    def forget(self, request: int) -> None:
        self._requests.pop(request, None)

    def _start(self, sequence: SequenceView, budget: int) -> _Draft | None:
        """Return an empty draft, or None where there can be none."""
        table, tokens, group = sequence.table, sequence.tokens, self.runner.group
        if budget == 0 or table is None or len(tokens) >= self.runner.context or not table.can_hold(group):
            return None
        if sequence.id not in self._requests:
            self._requests[sequence.id] = self._readable(sequence.request)
        request = self._requests[sequence.id]
        if request is None:
            return None
        start = table.computed(group)
        if max(tokens[start:]) >= self._own_vocab_size:
            self._requests[sequence.id] = None  # and so it stays: tokens are only appended
            return None
        return _Draft(request, table, list(tokens), start, budget)

    def _readable(self, request: Request) -> Request:
        """Return the request without what belongs to the target: a guess may do without.

        Masks and processors are written for the target's vocabulary, and the draft model may lack biased ids.
        """
        sampling = request.options.sampling
        bias = {token: value for token, value in sampling.logit_bias.items() if token < self._own_vocab_size}
        options = dataclasses.replace(
            request.options,
            sampling=dataclasses.replace(sampling, logit_bias=bias),
            constraint=self._common,
            logits_processors=(),
            logprobs=None,
        )
        return dataclasses.replace(request, options=options)

    def _catch_up(self, drafts: Sequence[_Draft]) -> None:
        """Compute what drafts lag behind by more than a block, in chunks.

        Sequences that share a block (samples of one prompt, most of all) wait until one has computed it for all.
        """
        group, size = self.runner.group, self.runner.cache.block_size
        while True:
            batch: list[ScheduledSequence] = []
            blocks: set[int] = set()
            left = _CHUNK
            for draft in drafts:
                start = draft.start = max(draft.start, draft.table.computed(group))
                lag = len(draft.context) - start
                if left == 0 or lag <= size or (block := draft.table.blocks[start // size]) in blocks:
                    continue
                blocks.add(block)
                draft.start = min(len(draft.context) - 1, start + left)
                left -= draft.start - start
                batch.append(ScheduledSequence(draft.table, draft.request, draft.context, draft.start, start=start))
            if not batch:
                return
            self.runner.forward(batch)

    def _grow(self, drafts: Sequence[_Draft]) -> list[_Draft]:
        """Add one level to every draft; return those whose chain ends here."""
        batch = [ScheduledSequence(d.table, d.request, d.context, len(d.context), start=d.start) for d in drafts]
        ops = self.runner.ops
        logits = self.runner.forward(batch).logits
        sampling = self.runner.sampling_batch(batch)
        guesses = ops.sample(logits, sampling, k=self.branches)
        chances = np.exp([ops.logprobs(logits, column) for column in guesses.T.tolist()]).T
        probs = ops.probs(logits, sampling) if any(draft.gives_q for draft in drafts) else [None] * len(drafts)
        ended = []
        for draft, guess, chance, own_probs in zip(drafts, guesses.tolist(), chances.tolist(), probs, strict=True):
            draft.start = len(draft.context)
            if draft.gives_q:
                draft.q[draft.last] = own_probs
                guess = [token for token in guess if own_probs[token] > 0]
            nodes = [(t, c) for t, c in zip(guess, chance, strict=False) if t < self.vocab_size][: draft.num_left]
            if nodes:
                draft.context.append(nodes[0][0])
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
        if draft.gives_q:
            q = np.zeros((n + 1, self.vocab_size))
            for node, probs in draft.q.items():
                q[node + 1, : len(probs)] = probs[: self.vocab_size]
        return DraftTree(tuple(draft.tokens), tuple(draft.parents), ((self.name,),) * n, tuple(draft.confidence), q)
