"""Draft with a small network that was trained to continue the target's own hidden states."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outpace.cache import BlockTable
from outpace.drafters.protocol import SequenceView
from outpace.errors import SamplingError, UsageError
from outpace.models.eagle import Eagle
from outpace.ops.protocol import Array, Ops, Plan, Weight
from outpace.runner import Pass, Runner, ScheduledSequence
from outpace.trace import Step
from outpace.tree import EMPTY, DraftTree
from outpace.types import Request, Segment

GROUP = "eagle"
_HELD_ROWS = (
    8  # of a sequence, before their keys and values are written though nobody asks: a late question stays cheap
)
_SHARED_NOISE = 0.2  # measured at temperature 0.8: acceptance of tokens whose probability is next to 0

Hidden = tuple[Array, ...]  # the tapped layers' states in one pass, [T, D] each
Row = tuple[Hidden, int]  # one position's place in them


@dataclass(slots=True)
class _Sequence:
    """What is known of one sequence beside its keys and values.

    rows: the target's hidden states of the positions [first, first + len(rows)), as far as they may still be needed.
    extra: further rows of the head, those of tokens in the sequence; seen: how many of its tokens were looked at.
    """

    first: int = 0
    rows: list[Row] = field(default_factory=list)
    request: Request | None = None
    seen: int = 0
    extra: list[int] = field(default_factory=list)
    tokens: NDArray[np.int64] | None = None  # of all columns of its logits; None: must be made again
    packed: Weight | None = None

    @property
    def end(self) -> int:
        return self.first + len(self.rows)

    def cut(self, position: int) -> None:
        """Forget the rows from a position on; go on from there."""
        del self.rows[max(position - self.first, 0) :]
        if self.end != position:
            self.rows.clear()
        if not self.rows:
            self.first = position

    def drop(self, position: int) -> None:
        """Forget the rows before a position."""
        count = min(max(position - self.first, 0), len(self.rows))
        del self.rows[:count]
        self.first += count


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
        self._ends = _Ends(self._ops, self._cache.block_size, self._cache.capacity)
        fixed, tokens = network.config.num_fixed, network.config.head_tokens
        self._fixed_tokens = np.array(tokens[:fixed], np.int64)
        self._rows_of = {token: row for row, token in enumerate(tokens) if row >= fixed}

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
        state = self._sequences.setdefault(sequence.id, _Sequence())
        self._begin(state, table, table.length)
        begin = max(table.computed(GROUP), 1)
        if not (state.first < begin and length <= state.end + 1 and table.can_hold(GROUP)):
            return None
        if state.request is None:
            options = dataclasses.replace(
                sequence.request.options, constraint=None, logits_processors=(), logprobs=None
            )
            state.request = dataclasses.replace(sequence.request, options=options)
        self._look_at(state, sequence.tokens)
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

    def _next_level(self, drafts: Sequence[_Draft], features: Array) -> Array:
        """Compute the slot of every chain's last guess from the network's own states."""
        plan, kv = self._plan(drafts), self._cache.kv(GROUP)
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
            token = int(self._tokens_of(draft.state)[column])
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
            if draft.state.extra:
                own = self.network.more_logits(self._ops.select(states, [i]), self._packed(draft.state))
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
                wide[at, self._tokens_of(drafts[i].state)] = rows[i]
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
                where = np.flatnonzero(self._tokens_of(drafts[i].state) == tokens[at])
                columns[i] = int(where[0]) if len(where) else -1
        return columns

    def _tree(self, draft: _Draft) -> DraftTree:
        n = len(draft.tokens)
        return DraftTree(tuple(draft.tokens), tuple(range(-1, n - 1)), ((self.name,),) * n, tuple(draft.confidence))

    # The head's further rows.

    def _look_at(self, state: _Sequence, tokens: Sequence[int]) -> None:
        """Take in tokens that are new in a sequence."""
        for token in tokens[state.seen :]:
            row = self._rows_of.get(token)
            if row is not None and row not in state.extra:
                state.extra.append(row)
                state.packed = state.tokens = None
        state.seen = len(tokens)

    def _packed(self, state: _Sequence) -> Weight:
        if state.packed is None:
            state.packed = self.network.pack_rows(state.extra)
        return state.packed

    def _tokens_of(self, state: _Sequence) -> NDArray[np.int64]:
        if state.tokens is None:
            own = [self.network.config.head_tokens[row] for row in state.extra]
            state.tokens = np.concatenate([self._fixed_tokens, np.array(own, np.int64)])
        return state.tokens

    # The target's hidden states.

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Keep the hidden states of what is committed, and write the keys and values of prompts."""
        hidden = tuple(passed.hidden[tap] for tap in self.taps)
        due = []
        for part, rows in zip(passed.batch, passed.rows, strict=True):
            state = self._sequences.setdefault(part.id, _Sequence())
            state.cut(part.start)
            self._begin(state, part.table, part.start)
            path = part.verification.path if part.verification is not None else ()
            own = [rows[i] for i in range(part.num_pending)] + [rows[part.num_pending + node] for node in path]
            state.rows += [(hidden, row) for row in own]
            self._ends.keep(part, hidden, own)
            if part.verification is None or len(state.rows) > _HELD_ROWS:
                due.append((state, part.table, part.tokens))
        self._follow(due)
        for part in passed.batch:
            self._sequences[part.id].drop(part.table.computed(GROUP) - 1)

    def _follow(self, due: Sequence[tuple[_Sequence, BlockTable, Sequence[int]]]) -> None:
        """Compute all committed slots of some sequences, where the hidden states for it are there."""
        spans = []
        for state, table, tokens in due:
            begin = max(table.computed(GROUP), 1)
            if state.first < begin < table.length <= state.end + 1 and table.can_hold(GROUP):
                spans.append((state, table, begin, tokens[: table.length]))
            elif state.first >= begin:
                state.drop(state.end - 1)  # there is a gap that nobody can fill
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
            rows += state.rows[begin - 1 - state.first : len(tokens) - 1 - state.first]
        features = self.network.fuse(self._gather(rows))
        plan = self._ops.plan(segments, self._cache.block_size)
        return self.network.store(plan, features, self._cache.kv(GROUP)), features

    def _gather(self, rows: Sequence[Row]) -> list[Array]:
        """Return rows of several passes' hidden states as one array for each tap."""
        runs: list[tuple[Hidden, list[int]]] = []
        for hidden, row in rows:
            if not runs or runs[-1][0] is not hidden:
                runs.append((hidden, []))
            runs[-1][1].append(row)
        parts = [[self._ops.select(tap, own) for tap in hidden] for hidden, own in runs]
        if len(parts) == 1:
            return parts[0]
        return [self._ops.stack(taps) for taps in zip(*parts, strict=True)]

    def _begin(self, state: _Sequence, table: BlockTable, start: int) -> None:
        """Find the hidden state before position `start`, if there are none: a prefix or a fork starts in the middle.

        Other sequences with the same beginning may have left it behind.
        """
        if (not state.rows or state.end < start) and (row := self._ends.find(table, start)) is not None:
            state.first, state.rows = start - 1, [row]

    def forget(self, request: int) -> None:
        self._sequences.pop(request, None)


def _confidence(row: NDArray[np.float32], column: int, temperature: float) -> float:
    """Return the chance that the target takes the same token: the network's probability of it.

    Where both add the same noise they agree more often than that, most of all on unlikely tokens.
    """
    scores = row - row[column]
    if temperature == 0.0:
        return min(1.0, float(1 / np.exp(scores).sum()))
    probability = float(1 / np.exp(np.minimum(scores / np.float32(temperature), 80)).sum())
    return min(1.0, _SHARED_NOISE + (1 - _SHARED_NOISE) * probability)


class _Ends:
    """Hidden states at places where another sequence may go on: ends of blocks, and of passes that compute prompts.

    They are known by the digest of all tokens before; the `capacity` latest are kept.
    """

    def __init__(self, ops: Ops, block_size: int, capacity: int) -> None:
        self._ops, self._block_size, self._capacity = ops, block_size, capacity
        self._rows: OrderedDict[bytes, Row] = OrderedDict()

    def keep(self, part: ScheduledSequence, hidden: Hidden, rows: Sequence[int]) -> None:
        """Keep what a part of a pass brought; rows: of the committed positions from its start on."""
        end, size = part.start + len(rows), self._block_size
        if part.table.length < end:
            return  # it keeps no cache
        lengths = list(range((part.start // size + 1) * size, end + 1, size))
        if part.verification is None and lengths[-1:] != [end]:
            lengths.append(end)
        if lengths:
            picked = [rows[length - part.start - 1] for length in lengths]
            copies = tuple(self._ops.select(tap, picked) for tap in hidden)
            for i, length in enumerate(lengths):
                self._rows[part.table.digest(length)] = (copies, i)
            while len(self._rows) > self._capacity:
                self._rows.popitem(last=False)

    def find(self, table: BlockTable, length: int) -> Row | None:
        """Return the hidden state of the last of the first `length` committed tokens, if it is known."""
        return self._rows.get(table.digest(length)) if 0 < length <= table.length else None
