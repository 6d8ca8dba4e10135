"""Draft with a refiner: its block is the guess, and the target verifies it, so the text is plain decoding's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from outpace.drafters.marginals import Guess, LevelSampler, best_tree, drafted
from outpace.drafters.protocol import SequenceView
from outpace.drafters.refine.block import Block
from outpace.drafters.refine.refiner import Refiner
from outpace.errors import UsageError
from outpace.runner import Pass, Runner, ScheduledSequence
from outpace.trace import Step
from outpace.types.tree import EMPTY, NO_TOKEN, DraftTree, TreeBuilder

WIDTH = 8  # branches a position
NUM_NOISY = 2  # positions whose branches are drafted with the target's noise


class RefinedDraft:
    """Fill a block behind the last token in `passes` passes of the target's own network, and draft it.

    One pass guesses each position for itself, so its draft is the tree of the likeliest combinations, without nodes
    below `min_confidence`. Several passes settle on one token for each position: a chain; what the refiner is not sure
    of after the last pass it has guessed all the same. A sampled text is guessed with the target's noise.

    The passes write into the slots that the draft is about to be verified in, which overwrites them.
    """

    taps: tuple[int, ...] = ()
    is_one_pass = True

    def __init__(self, refiner: Refiner, runner: Runner, passes: int = 1, *, min_confidence: float = 0.05) -> None:
        if refiner.filling.sees_all:
            raise UsageError("a network that sees the whole text in both directions has no next token to verify")
        self.name = refiner.name
        self._refiner, self._runner, self._passes = refiner, runner, passes
        self._min_confidence = min_confidence
        self._sampler = LevelSampler(runner, WIDTH, NUM_NOISY)

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        """Return a tree, or a chain, for each sequence: its block, as long as the budget allows."""
        blocks = [self._block(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        if self._passes == 1:
            return self._trees(sequences, blocks, budgets)
        for _ in range(self._passes):
            due = [(s, block) for s, block in zip(sequences, blocks, strict=True) if block is not None and block.masks]
            if due:
                parts = [self._part(s, block) for s, block in due]
                logits = self._runner.forward(parts).logits
                self._refiner.refine(self._runner, logits, parts, [block for _, block in due])
        return [EMPTY if block is None else self._chain(block) for block in blocks]

    def _trees(
        self, sequences: Sequence[SequenceView], blocks: Sequence[Block | None], budgets: Sequence[int]
    ) -> list[DraftTree]:
        """Return the trees of what one pass says of each block's places."""
        trees = [EMPTY] * len(blocks)
        due = [(i, s, block) for i, (s, block) in enumerate(zip(sequences, blocks, strict=True)) if block is not None]
        if not due:
            return trees
        parts = [self._part(s, block) for _, s, block in due]
        logits = self._runner.ops.numpy(self._runner.forward(parts).logits)
        tokens, guesses, first = np.arange(logits.shape[1]), [], 0
        for part, (_, s, block) in zip(parts, due, strict=True):
            own = logits[first : first + len(block)]
            guesses.append(Guess(part.table, drafted(part.request), list(s.tokens), own, tokens))
            first += part.num_scored
        for (i, _, _), levels in zip(due, self._sampler.levels(guesses), strict=True):
            trees[i] = best_tree(levels, budgets[i], self._min_confidence, self.name)
        return trees

    def _block(self, sequence: SequenceView, budget: int) -> Block | None:
        length = min(budget, self._refiner.length or budget)
        if length <= 0 or sequence.table is None:
            return None
        return Block.masked_from(len(sequence.tokens), length)

    def _part(self, sequence: SequenceView, block: Block) -> ScheduledSequence:
        assert sequence.table is not None
        part = ScheduledSequence(sequence.table, sequence.request, sequence.tokens, len(sequence.tokens))
        part.canvas = self._refiner.canvas(block, len(block))
        return part

    def _chain(self, block: Block) -> DraftTree:
        tree, node = TreeBuilder(), -1
        for token, confidence in zip(block.tokens, block.confidence, strict=True):
            if token == NO_TOKEN:
                break
            node = tree.add(node, token, min(confidence, 1.0))
        return tree.build(self.name)

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Learn nothing."""

    def forget(self, request: int) -> None:
        """Keep nothing."""
