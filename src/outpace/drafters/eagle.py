"""Draft with a small network that was trained to continue the target's own hidden states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outpace.cache import BlockTable
from outpace.drafters.features import HeldRows, HiddenStates
from outpace.drafters.head import Head, OwnRows
from outpace.drafters.protocol import SequenceView
from outpace.errors import SamplingError, UsageError
from outpace.models.eagle import Eagle
from outpace.ops.protocol import Array, Plan
from outpace.runner import Pass, Runner, ScheduledSequence
from outpace.trace import Step
from outpace.tree import EMPTY, DraftTree
from outpace.types import Request, Segment

GROUP = "eagle"
_HELD_ROWS = (
    8  # of a sequence, before their keys and values are written though nobody asks: a late question stays cheap
)
_SHARED_NOISE = 0.2  # measured at temperature 0.8: acceptance of tokens whose probability is next to 0


@dataclass(slots=True)
class _Sequence:
    """What is known of one sequence beside its keys and values: its hidden states, and its rows of the head."""

    held: HeldRows
    own: OwnRows
    request: Request | None = None


@dataclass(slots=True)
class _Draft:
    """One sequence's chain while it grows."""

    state: _Sequence
    request: Request
    table: BlockTable
    text: list[int]  # the sequence's tokens, then the guesses
    begin: int  # slots before this one are computed
    budget: int
    tokens: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    product: float = 1.0

    @property
    def slot(self) -> int:
        return len(self.text) - 1


class EagleDrafter:
    """Continue the target's hidden states by a trained network, guess by guess: a chain.

    A sampled request is drafted with the target's own noise. A chain ends where the product of its confidences falls
    below `min_confidence`.

    runner: the target's. The network's keys and values are the group `GROUP` of the target's cache: those of prompts
    are written as the target computes them, those of the guesses are written again, from the target's states, once
    they came true.
    """

    name = "eagle"

    def __init__(self, network: Eagle, runner: Runner, *, min_confidence: float = 0.1) -> None:
        if not 0.0 <= min_confidence <= 1.0:
            raise UsageError(f"min_confidence must be in [0, 1], got {min_confidence}")
        self.network, self.runner, self.min_confidence = network, runner, min_confidence
        self.taps = network.config.taps
        self._ops = runner.ops
        self._cache = runner.cache
        if GROUP not in self._cache.groups:
            spec = self._cache.spec
            self._cache.add_group(GROUP, self._ops, network.spec(spec.format, spec.block_size), is_tapped=True)
        self._sequences: dict[int, _Sequence] = {}
        self._states = HiddenStates(self._ops, self._cache, self.taps)
        self._head = Head(network.config.head_tokens, network.config.num_fixed, network.pack_rows)

    # Guesses.

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        drafts = [self._start(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        growing = [draft for draft in drafts if draft is not None]
        if growing:
            growing, states = self._grow(growing, self._first_level(growing))
        while growing:
            growing, states = self._grow(growing, self._next_level(growing, states))
        return [EMPTY if draft is None else self._tree(draft) for draft in drafts]

    def _start(self, sequence: SequenceView, budget: int) -> _Draft | None:
        """Return an empty draft, if the hidden states that it takes are there."""
        table, length = sequence.table, len(sequence.tokens)
        if budget == 0 or table is None or length < 2:
            return None
        state = self._sequence(sequence.id)
        held = state.held
        self._states.begin(held, table, table.length)
        begin = max(table.computed(GROUP), 1)
        if not (held.first < begin and length <= held.end + 1 and table.can_hold(GROUP)):
            return None
        if state.request is None:
            options = dataclasses.replace(
                sequence.request.options, constraint=None, logits_processors=(), logprobs=None
            )
            state.request = dataclasses.replace(sequence.request, options=options)
        self._head.look_at(state.own, sequence.tokens)
        return _Draft(state, state.request, table, list(sequence.tokens), min(begin, length - 1), budget)

    def _first_level(self, drafts: Sequence[_Draft]) -> Array:
        """Compute every sequence's slots up to its last token; return the states behind that, [drafts, D]."""
        spans = [(draft.state, draft.table, draft.begin, draft.text) for draft in drafts]
        queries, features = self._compute(spans)
        for draft in drafts:
            start = draft.table.computed(GROUP)
            draft.table.advance(GROUP, start, draft.text[start:])
        lasts = np.cumsum([len(draft.text) - draft.begin for draft in drafts]) - 1
        if len(drafts) < lasts[-1] + 1:
            queries = self._ops.select(queries, lasts.tolist())
            features = self._ops.select(features, lasts.tolist())
        return self.network.states(self._plan(drafts), queries, features, self._cache.kv(GROUP))

    def _next_level(self, drafts: Sequence[_Draft], states: Array) -> Array:
        """Compute the slot of every chain's last guess from the network's own states."""
        plan, kv, features = self._plan(drafts), self._cache.kv(GROUP), self.network.carry(states)
        return self.network.states(plan, self.network.store(plan, features, kv), features, kv)

    def _plan(self, drafts: Sequence[_Draft]) -> Plan:
        segments = [Segment(draft.table.blocks, draft.slot, draft.text[-1:]) for draft in drafts]
        return self._ops.plan(segments, self._cache.block_size)

    def _grow(self, drafts: Sequence[_Draft], states: Array) -> tuple[list[_Draft], Array]:
        """Add a guess to every chain, or end it; return those that go on, with their states."""
        rows = self._logits(drafts, states)
        columns = self._choose(drafts, rows)
        going = []
        for i, (draft, row, column) in enumerate(zip(drafts, rows, columns, strict=True)):
            if column < 0:
                continue
            confidence = _confidence(row, column, draft.request.options.sampling.temperature)
            draft.product *= confidence
            if draft.product < self.min_confidence:
                continue
            token = int(draft.state.own.tokens[column])
            draft.text.append(token)
            draft.tokens.append(token)
            draft.confidence.append(confidence)
            if len(draft.tokens) < draft.budget and len(draft.text) < self.runner.context:
                going.append(i)
        if 0 < len(going) < len(drafts):
            states = self._ops.select(states, going)
        return [drafts[i] for i in going], states

    def _logits(self, drafts: Sequence[_Draft], states: Array) -> list[NDArray[np.float32]]:
        """Return each draft's logits: of the head's fixed rows, then of its own further ones."""
        fixed = self._ops.numpy(self.network.logits(self._plan(drafts), states))
        rows = list(fixed)
        for i, draft in enumerate(drafts):
            if draft.state.own.rows:
                own = self.network.more_logits(self._ops.select(states, [i]), self._head.packed(draft.state.own))
                rows[i] = np.concatenate([rows[i], self._ops.numpy(own)[0]])
        return rows

    def _choose(self, drafts: Sequence[_Draft], rows: Sequence[NDArray[np.float32]]) -> list[int]:
        """Return each draft's column: that of its largest logit, or what the request's sampling makes of them.

        -1 where nothing can be sampled.
        """
        columns = [int(row.argmax()) for row in rows]
        sampled = [i for i, draft in enumerate(drafts) if not draft.request.options.sampling.is_argmax]
        if sampled:
            wide = np.full((len(sampled), self.runner.model.config.vocab_size), -np.inf, np.float32)
            for at, i in enumerate(sampled):
                wide[at, drafts[i].state.own.tokens] = rows[i]
            parts = [ScheduledSequence(d.table, d.request, d.text, len(d.text)) for d in (drafts[i] for i in sampled)]
            batch, logits = self.runner.sampling_batch(parts), self._ops.array(wide)
            tokens = dict.fromkeys(range(len(sampled)), -1)
            try:
                tokens |= dict(enumerate(self._ops.sample(logits, batch)[:, 0].tolist()))
            except SamplingError as error:
                fine = [at for at in range(len(sampled)) if at not in error.rows]
                if fine:
                    found = self._ops.sample(self._ops.select(logits, fine), batch.select(fine))
                    tokens |= dict(zip(fine, found[:, 0].tolist(), strict=True))
            for at, i in enumerate(sampled):
                where = np.flatnonzero(drafts[i].state.own.tokens == tokens[at])
                columns[i] = int(where[0]) if len(where) else -1
        return columns

    def _tree(self, draft: _Draft) -> DraftTree:
        n = len(draft.tokens)
        return DraftTree(tuple(draft.tokens), tuple(range(-1, n - 1)), ((self.name,),) * n, tuple(draft.confidence))

    # The target's hidden states.

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Keep the hidden states of what is committed, and write the keys and values of prompts."""
        self._states.keep(passed)
        due = []
        for part in passed.batch:
            state = self._sequence(part.id)
            if part.verification is None or len(state.held.rows) > _HELD_ROWS:
                due.append((state, part.table, part.tokens))
        self._follow(due)
        for part in passed.batch:
            self._states.of(part.id).drop(part.table.computed(GROUP) - 1)

    def _follow(self, due: Sequence[tuple[_Sequence, BlockTable, Sequence[int]]]) -> None:
        """Compute all committed slots of some sequences, where the hidden states for it are there."""
        spans = []
        for state, table, tokens in due:
            begin = max(table.computed(GROUP), 1)
            if state.held.first < begin < table.length <= state.held.end + 1 and table.can_hold(GROUP):
                spans.append((state, table, begin, tokens[: table.length]))
            elif state.held.first >= begin:
                state.held.drop(state.held.end - 1)  # there is a gap that nobody can fill
        if spans:
            self._compute(spans)
            for _, table, _, tokens in spans:
                start = table.computed(GROUP)
                table.advance(GROUP, start, tokens[start:])

    def _compute(self, spans: Sequence[tuple[_Sequence, BlockTable, int, Sequence[int]]]) -> tuple[Array, Array]:
        """Write the slots [begin, len(tokens)) of each sequence; return their queries and features, row by row."""
        segments = [Segment(table.blocks, begin, tokens[begin:]) for _, table, begin, tokens in spans]
        rows = []
        for state, _, begin, tokens in spans:
            rows += state.held.of(begin - 1, len(tokens) - 1)
        features = self.network.fuse(self._states.gather(rows))
        plan = self._ops.plan(segments, self._cache.block_size)
        return self.network.store(plan, features, self._cache.kv(GROUP)), features

    def _sequence(self, sequence: int) -> _Sequence:
        state = self._sequences.get(sequence)
        if state is None:
            state = self._sequences[sequence] = _Sequence(self._states.of(sequence), self._head.start())
        return state

    def forget(self, request: int) -> None:
        self._sequences.pop(request, None)
        self._states.forget(request)


def _confidence(row: NDArray[np.float32], column: int, temperature: float) -> float:
    """Return the chance that the target takes the same token: the network's probability of it.

    Where both add the same noise they agree more often than that, most of all on unlikely tokens.
    """
    scores = row - row[column]
    if temperature == 0.0:
        return min(1.0, float(1 / np.exp(scores).sum()))
    probability = float(1 / np.exp(np.minimum(scores / np.float32(temperature), 80)).sum())
    return min(1.0, _SHARED_NOISE + (1 - _SHARED_NOISE) * probability)
