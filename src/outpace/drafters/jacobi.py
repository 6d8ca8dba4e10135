"""Jacobi decoding: guess a whole block, and take what the target makes of it as the next guess."""

from __future__ import annotations

from collections.abc import Sequence

from outpace.drafters.protocol import SequenceView
from outpace.errors import UsageError
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types.tree import EMPTY, DraftTree, TreeBuilder

_CONFIDENCE = 0.3  # a first estimate; whoever weighs drafters against each other learns better ones


class Jacobi:
    """Draft the tokens that the target gave behind the last draft: decoding as a fixed-point iteration.

    Song et al., arXiv:2002.03629, for feedforward computation in general; Santilli et al., arXiv:2305.10427, for
    decoding. A block of guesses y(1) ... y(n) stands behind the last token. A pass gives the target's token behind each
    of them, f(y(1) ... y(i)) for position i + 1, and these are the block's next guesses. Where guesses equal the
    target's tokens they are at the fixed point, the text itself, and the block moves on past them, and past the token
    behind them, which is right as well. So every pass brings at least one token, and n + 1 at most.

    Guesses belong to absolute positions. The target's noise does too, so a sampled text is the fixed point of the same
    iteration. The first guesses, and those of positions that the block has only just come to, are a piece of the text
    so far, from a place that their position decides.
    """

    def __init__(self, *, block: int = 8) -> None:
        if not 1 <= block <= 64:
            raise UsageError(f"block must be in [1, 64], got {block!r}")
        self.name = "jacobi"
        self.taps: tuple[int, ...] = ()
        self._block = block
        self._guesses: dict[int, dict[int, int]] = {}  # request -> absolute position -> token

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        """Return one chain per sequence: its block."""
        return [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Replace the guesses by the target's tokens, as far as they were verified in this step's tree."""
        for step in steps:
            if step.request in self._guesses:
                self._iterate(self._guesses[step.request], step)

    def forget(self, request: int) -> None:
        """Drop the block of a request."""
        self._guesses.pop(request, None)

    def _draft(self, sequence: SequenceView, budget: int) -> DraftTree:
        if budget <= 0:
            return EMPTY
        tokens, known = sequence.tokens, self._guesses.get(sequence.id, {})
        end = len(tokens)
        block = {position: known.get(position, _piece(tokens, position)) for position in range(end, end + self._block)}
        self._guesses[sequence.id] = block
        tree = TreeBuilder()
        node = -1
        for token in list(block.values())[:budget]:
            node = tree.add(node, token, _CONFIDENCE)
        return tree.build(self.name)

    def _iterate(self, block: dict[int, int], step: Step) -> None:
        nodes = {edge: node for node, edge in enumerate(zip(step.tree.parents, step.tree.tokens, strict=True))}
        node = -1
        for position, guess in list(block.items()):
            found = nodes.get((node, guess))
            if found is None:
                return  # not verified: it stays, and so do those behind it
            node = found
            if (token := step.target_tokens[node + 1]) >= 0:
                block[position + 1] = token


def _piece(tokens: list[int], position: int) -> int:
    """Return a token of the text, from a place spread by the position."""
    return tokens[position * 2654435769 % 2**32 * len(tokens) >> 32]  # Knuth's multiplicative hash
