"""Draft with a refiner: its block is the guess, and the target verifies it, so the text is plain decoding's."""

from __future__ import annotations

from collections.abc import Sequence

from outpace.drafters.protocol import SequenceView
from outpace.drafters.refine.block import Block
from outpace.drafters.refine.refiner import Refiner
from outpace.errors import UsageError
from outpace.runner import Pass, Runner, ScheduledSequence
from outpace.trace import Step
from outpace.types.tree import EMPTY, NO_TOKEN, DraftTree, TreeBuilder


class RefinedDraft:
    """Fill a block behind the last token in `passes` passes of the target's own network, and draft it as a chain.

    The passes write into the slots that the draft is about to be verified in, which overwrites them. What the refiner
    is not sure of after the last pass it has guessed all the same. A sampled text is guessed with the target's noise.
    """

    taps: tuple[int, ...] = ()
    is_one_pass = True

    def __init__(self, refiner: Refiner, runner: Runner, passes: int = 1) -> None:
        if refiner.filling.sees_all:
            raise UsageError("a network that sees the whole text in both directions has no next token to verify")
        self.name = refiner.name
        self._refiner, self._runner, self._passes = refiner, runner, passes

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        """Return one chain per sequence: its block, as long as the budget allows."""
        blocks = [self._block(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        for _ in range(self._passes):
            due = [(s, block) for s, block in zip(sequences, blocks, strict=True) if block is not None and block.masks]
            if due:
                self._pass(*zip(*due, strict=True))
        return [EMPTY if block is None else self._chain(block) for block in blocks]

    def _block(self, sequence: SequenceView, budget: int) -> Block | None:
        length = min(budget, self._refiner.length or budget)
        if length <= 0 or sequence.table is None:
            return None
        return Block.masked_from(len(sequence.tokens), length)

    def _pass(self, sequences: Sequence[SequenceView], blocks: Sequence[Block]) -> None:
        parts = []
        for sequence, block in zip(sequences, blocks, strict=True):
            assert sequence.table is not None
            part = ScheduledSequence(sequence.table, sequence.request, sequence.tokens, len(sequence.tokens))
            part.canvas = self._refiner.canvas(block, len(block))
            parts.append(part)
        self._refiner.refine(self._runner, self._runner.forward(parts).logits, parts, blocks)

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
