"""Draft with a small network that was trained to continue the target's own hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from outpace.cache import BlockTable
from outpace.drafters.chances import chances_of_logprobs, chances_of_scores
from outpace.drafters.features import HeldRows, HiddenStates, runs_of
from outpace.drafters.growth import GrowingTree, Shape
from outpace.drafters.head import Head, OwnRows
from outpace.drafters.protocol import Expectation, SequenceView
from outpace.errors import UsageError
from outpace.models.eagle import Eagle
from outpace.ops.layers import Array, Guesses
from outpace.ops.sampling import LastBatches, SamplingBatch, SamplingRows
from outpace.runner import Pass, Runner
from outpace.trace import Step
from outpace.types import Request, Segment
from outpace.types.tree import EMPTY, DraftTree

_HELD_ROWS = (
    8  # of a sequence, before their keys and values are written though nobody asks: a late question stays cheap
)
LOOK = 8  # tokens behind a node whose scores tell how likely each of them is


@dataclass(slots=True)
class _Sequence:
    """What is known of one sequence beside its keys and values: its hidden states, and its rows of the head.

    batches: how rows of it alone are sampled, where that depends on nothing but their position.
    """

    held: HeldRows
    own: OwnRows
    request: Request | None = None
    batches: LastBatches = field(default_factory=LastBatches)


@dataclass(slots=True)
class _Draft:
    """One sequence's tree while it grows."""

    state: _Sequence
    request: Request
    table: BlockTable
    text: Sequence[int]  # the sequence's tokens: borrowed
    begin: int  # slots before this one are computed
    tree: GrowingTree


class EagleDrafter:
    """Continue the target's hidden states by a trained network, level by level: a tree, or (width 1) a chain.

    A sampled request is drafted with the target's own noise. width: nodes of a level that are continued; branches:
    tokens that are looked at behind each. Nodes that are less likely than `min_confidence` are not proposed, those less
    likely than `min_expanded` not continued: all confidences on the way to a node, multiplied. expectation: for the
    router, before the drafter was ever asked.

    runner: the target's. The network's keys and values are a group of the target's cache, its own: those of prompts
    are written as the target computes them, those of the guesses are written again, from the target's states, once
    they came true.
    """

    name = "eagle"
    is_calibrated = True

    def __init__(
        self,
        network: Eagle,
        runner: Runner,
        *,
        width: int = 2,
        branches: int = 4,
        min_confidence: float = 0.1,
        min_expanded: float = 0.25,
        expectation: Expectation | None = None,
    ) -> None:
        for what, value in (("min_confidence", min_confidence), ("min_expanded", min_expanded)):
            if not 0.0 <= value <= 1.0:
                raise UsageError(f"{what} must be in [0, 1], got {value}")
        for what, count in (("width", width), ("branches", branches)):
            if count < 1:
                raise UsageError(f"{what} must be at least 1, got {count}")
        self.network, self.runner, self.expectation = network, runner, expectation
        self.shape = Shape(width, min_confidence, min_expanded)
        self.branches = branches if width > 1 else 1
        self._look = min(max(branches, LOOK), network.config.num_fixed)
        self.taps = network.config.taps
        self._ops = runner.ops
        self._cache = runner.cache
        self.group, spec = self._cache.unused_name(self.name), self._cache.spec
        self._cache.add_group(self.group, self._ops, network.spec(spec.format, spec.block_size), is_tapped=True)
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
        return [EMPTY if draft is None else draft.tree.build(self.name) for draft in drafts]

    def _start(self, sequence: SequenceView, budget: int) -> _Draft | None:
        """Return an empty draft, if the hidden states that it takes are there."""
        table, text = sequence.table, sequence.tokens
        length = len(text)
        if budget == 0 or table is None or length < 2:
            return None
        state = self._sequence(sequence.id)
        held = state.held
        self._states.begin(held, table, table.length)
        begin = max(table.computed(self.group), 1)
        if not (held.first < begin and length <= held.end + 1 and table.can_hold(self.group)):
            return None
        if state.request is None:
            options = replace(sequence.request.options, constraint=None, logits_processors=(), logprobs=None)
            state.request = replace(sequence.request, options=options)
        self._head.look_at(state.own, text)
        return _Draft(state, state.request, table, text, min(begin, length - 1), GrowingTree(self.shape, budget))

    def _first_level(self, drafts: Sequence[_Draft]) -> Guesses:
        """Compute every sequence's slots up to its last token; guess behind that."""
        guesses = self._compute([(d.state, d.table, d.begin, d.text) for d in drafts], self._batch(drafts))
        for draft in drafts:
            start = draft.table.computed(self.group)
            draft.table.advance(self.group, start, draft.text[start:])
        return guesses

    def _next_level(self, drafts: Sequence[_Draft], features: Array) -> Guesses:
        """Compute the slots of every tree's front from the network's own states; guess behind them."""
        batch = self._batch(drafts)
        segments = [draft.tree.segment(draft.table.blocks, len(draft.text)) for draft in drafts]
        plan = self._ops.plan(segments, self._cache.block_size)
        further = [self._head.head_rows(self._ops, draft.state.own) for draft in drafts]
        return self.network.guess(features, self._cache.kv(self.group), plan, further, batch, self._look)

    def _grow(self, drafts: Sequence[_Draft], guesses: Guesses) -> tuple[list[_Draft], Array]:
        """Add a level to every tree; return those that go on, with the features of their fronts."""
        going, rows, first = [], [], 0
        for draft in drafts:
            tree = draft.tree
            end = first + (len(tree.front) or 1)
            temperature = draft.request.options.sampling.temperature
            tree.add([self._children(guesses, row, temperature) for row in range(first, end)])
            if tree.front:
                going.append(draft)
                rows += [first + origin for origin in tree.origins]
            first = end
        is_all = rows == list(range(first))
        return going, guesses.states if is_all or not rows else self._ops.select(guesses.states, rows)

    def _children(self, guesses: Guesses, row: int, temperature: float) -> list[tuple[int, float]]:
        """Return the best tokens behind a row, with the chance of each that the target takes it."""
        tokens = guesses.tokens[row]
        count = tokens.index(-1) if tokens[-1] < 0 else len(tokens)
        if temperature == 0.0:
            chances = chances_of_logprobs(guesses.logprobs[row][:count])
        else:
            chances = chances_of_scores(guesses.scores[row][:count], temperature)
        return list(zip(tokens[: self.branches], chances, strict=False))

    def _batch(self, drafts: Sequence[_Draft]) -> SamplingBatch:
        """Return how the rows behind the fronts become tokens: as the target's own will, noise and penalties too."""
        if all([draft.request.options.sampling.is_argmax for draft in drafts]):
            return SamplingBatch.greedy(sum([len(draft.tree.front) or 1 for draft in drafts]))
        (first, *others) = drafts
        request, sampling = first.request, first.request.options.sampling
        if not others and not sampling.penalises:
            places = [len(first.text) + first.tree.depth] * (len(first.tree.front) or 1)
            return first.state.batches.of(sampling, request.seed, request.sample_index, places)
        rows = SamplingRows()
        for draft in drafts:
            request, sampling, tree = draft.request, draft.request.options.sampling, draft.tree
            positions = [len(draft.text) + tree.depth] * (len(tree.front) or 1)  # a front is one level
            paths = [tree.path(node) for node in tree.front] if sampling.penalises else ()
            output = draft.text[len(request.prompt) :] if sampling.penalises else ()
            seed, index = request.seed, request.sample_index
            rows.add(sampling, seed, index, positions, prompt=request.prompt, output=output, paths=paths)
        return rows.build()

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
            self._states.of(part.id).drop(part.table.computed(self.group) - 1)

    def _follow(self, due: Sequence[tuple[_Sequence, BlockTable, Sequence[int]]]) -> None:
        """Compute all committed slots of some sequences, where the hidden states for it are there."""
        spans = []
        for state, table, tokens in due:
            begin = max(table.computed(self.group), 1)
            if state.held.first < begin < table.length <= state.held.end + 1 and table.can_hold(self.group):
                spans.append((state, table, begin, tokens[: table.length]))
            elif state.held.first >= begin:
                state.held.drop(state.held.end - 1)  # there is a gap that nobody can fill
        if spans:
            self._compute(spans, SamplingBatch.greedy(0))
            for _, table, _, tokens in spans:
                start = table.computed(self.group)
                table.advance(self.group, start, tokens[start:])

    def _compute(
        self, spans: Sequence[tuple[_Sequence, BlockTable, int, Sequence[int]]], batch: SamplingBatch
    ) -> Guesses:
        """Write the slots [begin, len(tokens)) of each sequence; guess behind the last ones, if the batch has rows."""
        scored = 1 if len(batch) else 0
        segments, rows, further = [], [], []
        for state, table, begin, tokens in spans:
            segments.append(Segment(table.blocks, begin, tokens[begin:], num_scored=scored))
            rows += state.held.of(begin - 1, len(tokens) - 1)
            further.append(self._head.head_rows(self._ops, state.own) if scored else None)
        features = self.network.fuse(runs_of(rows))
        plan = self._ops.plan(segments, self._cache.block_size)
        return self.network.guess(features, self._cache.kv(self.group), plan, further, batch, self._look)

    def _sequence(self, sequence: int) -> _Sequence:
        state = self._sequences.get(sequence)
        if state is None:
            state = self._sequences[sequence] = _Sequence(self._states.of(sequence), self._head.start())
        return state

    def forget(self, request: int) -> None:
        self._sequences.pop(request, None)
        self._states.forget(request)
