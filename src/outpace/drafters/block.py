"""Draft with a network that fills a block of masks in one pass, whatever the depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from outpace.cache import BlockTable
from outpace.drafters.features import HeldRows, HiddenStates
from outpace.drafters.head import Head, OwnRows
from outpace.drafters.marginals import Guess, LevelSampler, best_tree, drafted
from outpace.drafters.protocol import SequenceView
from outpace.errors import CacheError, UsageError
from outpace.models.block import Block
from outpace.runner import Pass, Runner
from outpace.trace import Step
from outpace.types import Request, Segment
from outpace.types.tree import EMPTY, DraftTree

_HELD_ROWS = 8  # of a sequence, before their keys and values are written though nobody asks
WIDTH = 8  # branches a position
NUM_NOISY = 2  # positions that are drafted with the target's noise


@dataclass(slots=True)
class _Sequence:
    """What is known of one sequence beside its keys and values."""

    held: HeldRows
    own: OwnRows
    request: Request | None = None


@dataclass(slots=True)
class _Draft:
    """One sequence's block: an anchor, the last token, and `num_masks` masks behind it; the first `depth` count."""

    state: _Sequence
    request: Request
    table: BlockTable
    text: list[int]
    budget: int
    num_masks: int
    depth: int

    @property
    def start(self) -> int:
        return len(self.text) - 1


class BlockDrafter:
    """Guess all of the next positions at once, from the target's hidden states, and make a tree of the likeliest.

    Each position is guessed for itself; a path's chance is the product of its tokens', and nodes where it is below
    `min_confidence` are left out. Asking for more nodes costs hardly more.

    runner: the target's. The network's keys and values are a group of the target's cache, its own. Those of the
    context are computed from the target's hidden states, and written as the target advances. The block's own lie in
    the slots behind, and are never claimed: the next block overwrites them.
    """

    name = "block"
    is_one_pass = True

    def __init__(self, network: Block, runner: Runner, *, min_confidence: float = 0.05) -> None:
        if not 0.0 <= min_confidence <= 1.0:
            raise UsageError(f"min_confidence must be in [0, 1], got {min_confidence}")
        self.network, self.runner, self.min_confidence = network, runner, min_confidence
        self.taps = network.config.taps
        self._ops = runner.ops
        self._cache = runner.cache
        self.group, spec = self._cache.unused_name(self.name), self._cache.spec
        self._cache.add_group(self.group, self._ops, network.spec(spec.format, spec.block_size), is_tapped=True)
        self._states = HiddenStates(self._ops, self._cache, self.taps)
        self._head = Head(network.config.head_tokens, network.config.num_fixed, network.head.pack)
        self._sampler = LevelSampler(runner, WIDTH, NUM_NOISY)
        self._sequences: dict[int, _Sequence] = {}

    # Guesses.

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        drafts = [self._start(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        trees = [EMPTY] * len(drafts)
        due = [i for i, draft in enumerate(drafts) if draft is not None]
        found = [draft for draft in drafts if draft is not None]
        self._follow([(draft.state, draft.table, draft.text[:-1]) for draft in found])
        with ExitStack() as stack:
            blocks = [stack.enter_context(self._room(draft)) for draft in found]
            roomy = [at for at, table in enumerate(blocks) if table is not None]
            guesses = self._fill([found[at] for at in roomy], [blocks[at] or [] for at in roomy])
        for at, levels in zip(roomy, self._sampler.levels(guesses), strict=True):
            trees[due[at]] = best_tree(levels, found[at].budget, self.min_confidence, self.name)
        return trees

    def _start(self, sequence: SequenceView, budget: int) -> _Draft | None:
        """Return an empty draft, if the hidden states that it takes are there."""
        table, start = sequence.table, len(sequence.tokens) - 1
        if budget == 0 or table is None or start < 1:
            return None
        state = self._sequence(sequence.id)
        held = state.held
        self._states.begin(held, table, table.length)
        num_masks = min(self.network.config.num_masks, self.runner.model.config.context - 1 - start)
        has_context = held.first <= min(table.computed(self.group), start - 1) and held.end == start
        if num_masks < 1 or not (has_context and table.can_hold(self.group)):
            return None
        self._head.look_at(state.own, sequence.tokens)
        if state.request is None:
            state.request = drafted(sequence.request)
        return _Draft(state, state.request, table, list(sequence.tokens), budget, num_masks, min(budget, num_masks))

    @contextmanager
    def _room(self, draft: _Draft) -> Iterator[list[int] | None]:
        """Lend blocks for a sequence's slots and the whole block behind, or None where the cache has none to spare.

        The slots reserved are as many as the budget allows: a few more may need a block that nobody uses now.
        """
        size, have = self._cache.block_size, list(draft.table.blocks)
        missing = draft.start + 1 + draft.num_masks - len(have) * size
        if missing <= 0:
            yield have
            return
        spare = self._cache.open(())
        try:
            try:
                spare.reserve(missing)
            except CacheError:
                yield None
            else:
                yield [*have, *spare.blocks]
        finally:
            spare.close()

    def _fill(self, drafts: Sequence[_Draft], blocks: Sequence[Sequence[int]]) -> list[Guess]:
        """Fill every sequence's block; return the logits of those of its masks that count."""
        if not drafts:
            return []
        ops, size, network = self._ops, self._cache.block_size, self.network
        masks, depths = [draft.num_masks for draft in drafts], [draft.depth for draft in drafts]
        segments, anchors, before = [], [], []
        for draft, table in zip(drafts, blocks, strict=True):
            anchors.append(Segment(table, draft.start, draft.text[-1:]))
            filled = draft.text[-1:] * (1 + draft.num_masks)  # what masks hold is not looked up
            segments.append(Segment(table, draft.start, filled, kind="full"))
            before += draft.state.held.of(draft.start - 1, draft.start)
        taps = self._states.gather(before)
        states = network.fill(
            ops.plan(anchors, size), ops.plan(segments, size), masks, taps, self._cache.kv(self.group)
        )
        first, rows = 0, list[int]()
        for num_masks, depth in zip(masks, depths, strict=True):
            rows += range(first, first + depth)
            first += num_masks
        states = network.normed(ops.select(states, rows))
        fixed = ops.linear(states, network.head.fixed)
        owns = [draft.state.own for draft in drafts]
        logits = self._head.logits(ops, fixed, states, depths, owns)
        return [Guess(d.table, d.request, d.text, x, d.state.own.tokens) for d, x in zip(drafts, logits, strict=True)]

    # The target's hidden states.

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Keep the hidden states of what is committed, and write the keys and values of prompts."""
        self._states.keep(passed)
        due = []
        for part in passed.batch:
            state = self._sequence(part.id)
            if part.verification is None or len(state.held.rows) > _HELD_ROWS:
                due.append((state, part.table, part.tokens[: part.table.length]))
        self._follow(due)
        for part in passed.batch:
            held, table = self._states.of(part.id), part.table
            held.drop(min(table.computed(self.group), held.end - 1))  # the last one goes into the next block's masks

    def _follow(self, due: Sequence[tuple[_Sequence, BlockTable, Sequence[int]]]) -> None:
        """Write the context's slots of these tokens, where they are missing and the hidden states for it are there."""
        segments, rows, spans = [], [], []
        for state, table, tokens in due:
            begin, end, held = table.computed(self.group), len(tokens), state.held
            if held.first <= begin < end <= held.end and table.can_hold(self.group):
                segments.append(Segment(table.blocks, begin, tokens[begin:]))
                rows += held.of(begin, end)
                spans.append((table, begin, tokens[begin:]))
            elif held.first > begin or not table.can_hold(self.group):
                held.drop(held.end - 1)  # there is a gap that nobody can fill, or no place to write
        if spans:
            plan = self._ops.plan(segments, self._cache.block_size)
            self.network.store(plan, self._states.gather(rows), len(rows), self._cache.kv(self.group))
            for table, begin, tokens in spans:
                table.advance(self.group, begin, tokens)

    def _sequence(self, sequence: int) -> _Sequence:
        state = self._sequences.get(sequence)
        if state is None:
            state = self._sequences[sequence] = _Sequence(self._states.of(sequence), self._head.start())
        return state

    def forget(self, request: int) -> None:
        self._sequences.pop(request, None)
        self._states.forget(request)
