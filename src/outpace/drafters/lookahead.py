"""Lookahead decoding: guess many positions at once, keep what the target makes of it, and draft from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.drafters.protocol import SequenceView
from outpace.errors import UsageError
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types.tree import EMPTY, DraftTree, TreeBuilder

# First estimates of acceptance; whoever weighs drafters against each other learns better ones. A pooled n-gram is
# what the target said after the same token in a guessed context; a window node has only its own token to stand on.
_FIRST_POOLED, _NEXT_POOLED, _WINDOW = 0.3, 0.5, 0.1
_CUT = -2  # no node, and no node's parent


@dataclass(slots=True)
class _Window:
    """One request's guesses of the future, and the n-grams that came out of them.

    diagonals: absolute position -> the `levels` tokens guessed for it and the positions after it.
    pool: first token -> the rest of n-grams, the most recent last.
    """

    diagonals: dict[int, tuple[int, ...]] = field(default_factory=dict)
    pool: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)


class Lookahead:
    """Draft n-grams that the target itself produced earlier, from guesses that ride along in every pass.

    Fu et al., arXiv:2402.02057, with its two branches as parts of one tree (levels = `ngram` - 1):

        root ─ g0 ─ g0 ─ g0 ─ ...    the window: level 0 guesses the next `window` positions; from each of them hangs
               │    │    └ g1 ─ g2   a diagonal of its further levels, one guess per following position. A node sees
               │    └ g1 ─ g2        its diagonal and level 0 before it, as in the paper's figure 5.
               └ g1 ─ g2
        root ─ p1 ─ p2 ─ p3          verification: pooled n-grams that begin with the last token, without it

    The target's pick at the end of a diagonal makes it an n-gram, which goes to the pool (the last `guesses` for each
    first token), and the diagonal moves on: it drops its first token and starts one position later (one step of
    Jacobi iteration). Diagonals keep their absolute positions, so at temperature > 0 their tokens use the noise of
    the place they stand for. A new one is a piece of the text so far, from a place that its position decides.

    Window nodes are reserved, so merging keeps them. The pool takes at most half of a budget and the window whole
    diagonals of the rest; a diagonal that did not fit, or was cut away, waits at its position.
    """

    def __init__(self, *, window: int = 4, ngram: int = 3, guesses: int = 4) -> None:
        for option, value, low in (("window", window, 1), ("ngram", ngram, 2), ("guesses", guesses, 1)):
            if not low <= value <= 64:
                raise UsageError(f"{option} must be in [{low}, 64], got {value!r}")
        self.name = "lookahead"
        self.taps: tuple[int, ...] = ()
        self._width = window
        self._levels = ngram - 1
        self._guesses = guesses
        self._windows: dict[int, _Window] = {}

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        """Return one tree per sequence: the window, and what the pool holds for the last token."""
        return [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Move the diagonals on by the target's tokens at their ends, wherever in the step's tree they are."""
        for step in steps:
            window = self._windows.get(step.request)
            if window is not None and window.diagonals:
                self._advance(window, step)

    def forget(self, request: int) -> None:
        """Drop the window and the pool of a request."""
        self._windows.pop(request, None)

    def _draft(self, sequence: SequenceView, budget: int) -> DraftTree:
        if budget <= 0:
            return EMPTY
        tokens = sequence.tokens
        window = self._windows.setdefault(sequence.id, _Window())
        pooled = window.pool.get(tokens[-1], [])[::-1]
        width = min(self._width, (budget - min(budget // 2, len(pooled) * self._levels)) // self._levels)
        end = len(tokens)
        window.diagonals = {
            position: window.diagonals.get(position) or self._piece(tokens, position)
            for position in range(end, end + width)
        }
        tree = TreeBuilder()
        level_0 = -1
        for diagonal in window.diagonals.values():
            node = level_0 = tree.add(level_0, diagonal[0], _WINDOW)
            for token in diagonal[1:]:
                node = tree.add(node, token, _WINDOW)
        reserved = frozenset(range(len(tree)))
        for rest in pooled:
            self._add_pooled(tree, rest, budget)
        return tree.build(self.name, reserved)

    def _add_pooled(self, tree: TreeBuilder, rest: tuple[int, ...], budget: int) -> None:
        node, confidence = -1, _FIRST_POOLED
        for token in rest:
            if len(tree) >= budget and tree.find(node, token) is None:
                return
            node, confidence = tree.add(node, token, confidence), _NEXT_POOLED

    def _piece(self, tokens: list[int], position: int) -> tuple[int, ...]:
        """Return `levels` consecutive tokens of the text (round its end), from a place spread by the position."""
        place = position * 2654435769 % 2**32 * len(tokens) >> 32  # Knuth's multiplicative hash
        return tuple([tokens[(place + level) % len(tokens)] for level in range(self._levels)])

    def _advance(self, window: _Window, step: Step) -> None:
        if next(iter(window.diagonals)) != step.position:
            return  # this step verified no window of ours
        edges = {edge: node for node, edge in enumerate(zip(step.tree.parents, step.tree.tokens, strict=True))}
        moved = dict(window.diagonals)
        level_0 = -1
        for position, diagonal in window.diagonals.items():
            base = edges.get((level_0, diagonal[0]))
            if base is None:
                break  # cut away, and with it the rest of level 0
            node = level_0 = base
            for token in diagonal[1:]:
                node = edges.get((node, token), _CUT)
            if node != _CUT and (pick := step.target_tokens[node + 1]) >= 0:
                rest = (*diagonal[1:], pick)
                self._remember(window.pool, diagonal[0], rest)
                moved[position + 1] = rest
        window.diagonals = moved

    def _remember(self, pool: dict[int, list[tuple[int, ...]]], first: int, rest: tuple[int, ...]) -> None:
        known = pool.setdefault(first, [])
        if rest in known:
            known.remove(rest)
        elif len(known) == self._guesses:
            known.pop(0)
        known.append(rest)
