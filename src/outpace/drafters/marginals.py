"""Drafts of drafters that guess each of the next positions for itself: logits become branches, branches a tree.

What a position's guess does not know is what the other positions take. So the chance of a path is taken to be the
product of its tokens' chances, and the best tree of n nodes is found one node after another, the likeliest next
(Medusa, arXiv:2401.10774, "optimized tree construction").
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.cache import BlockTable
from outpace.errors import SamplingError
from outpace.ops.layers import Array
from outpace.runner import Runner, ScheduledSequence
from outpace.types import Request
from outpace.types.tree import DraftTree, TreeBuilder

# Where target and drafter add the same noise, the token that scores best is the target's with a chance of about
# 0.1 + 0.8 q, q the network's probability of it, and each further one is 0.6 times as often right: measured with
# `block` on the default model at temperature 0.8, top-p 0.95, for ranks 0 to 4 (4,656 guesses).
_AGREED, _BELIEVED, _NEXT = 0.1, 0.8, 0.6

Branch = tuple[int, float]  # a token, and the chance that it comes given that the position is reached


def best_tree(levels: Sequence[Sequence[Branch]], budget: int, minimum: float, source: str) -> DraftTree:
    """Return the `budget` nodes with the largest products of chances, none below `minimum`.

    levels: by position, its branches; their chances never rise.
    """
    tree = TreeBuilder()
    # A node's first child and its next sibling are never likelier than itself: what is not in the heap comes later.
    heap: list[tuple[float, int, int, int, float]] = []  # -chance, parent, depth, rank, chance of the parent

    def offer(parent: int, depth: int, rank: int, reached: float) -> None:
        if depth < len(levels) and rank < len(levels[depth]):
            chance = reached * levels[depth][rank][1]
            if chance >= minimum:
                heapq.heappush(heap, (-chance, parent, depth, rank, reached))

    offer(-1, 0, 0, 1.0)
    while heap and len(tree) < budget:
        negative, parent, depth, rank, reached = heapq.heappop(heap)
        token, chance = levels[depth][rank]
        node = tree.add(parent, token, chance)
        offer(node, depth + 1, 0, -negative)
        offer(parent, depth, rank + 1, reached)
    return tree.build(source)


@dataclass(slots=True)
class Guess:
    """One sequence's logits of the next positions, [depth, columns], and the token that each column stands for.

    request: as `drafted` makes it of the sequence's own. text: the sequence's tokens.
    """

    table: BlockTable
    request: Request
    text: list[int]
    logits: NDArray[np.float32]
    tokens: NDArray[np.int64]


def drafted(request: Request) -> Request:
    """Return a request that samples as this one does, without what only the target may do: masks, processors."""
    options = dataclasses.replace(request.options, constraint=None, logits_processors=(), logprobs=None)
    return dataclasses.replace(request, options=options)


class LevelSampler:
    """Sample each position's likeliest tokens by the request's own sampling.

    width: branches a position. A sampled request's first `num_noisy` positions take the noise that the target will add
    there; behind them the guess is too vague for one token's noise to say anything.
    """

    def __init__(self, runner: Runner, width: int, num_noisy: int) -> None:
        self._runner, self._width, self._num_noisy = runner, width, num_noisy

    def levels(self, guesses: Sequence[Guess]) -> list[list[list[Branch]]]:
        """Return each guess's levels, as `best_tree` takes them; they end before a position without a branch."""
        levels: list[list[list[Branch]]] = [[] for _ in guesses]
        open_ = list(range(len(guesses)))
        for depth in range(max((len(guess.logits) for guess in guesses), default=0)):
            open_ = [i for i in open_ if depth < len(guesses[i].logits)]
            processed = [i for i in open_ if self._is_processed(guesses[i], depth)]
            columns = self._sampled([guesses[i] for i in processed], levels, processed, depth)
            found = dict(zip(processed, columns, strict=True))
            for i in open_:
                guess = guesses[i]
                best = found[i] if i in found else _largest(guess.logits[depth], self._width)
                temperature, has_noise = guess.request.options.sampling.temperature, i in found
                levels[i].append(branches_of(guess.logits[depth], guess.tokens, best, temperature, has_noise=has_noise))
            open_ = [i for i in open_ if levels[i][-1]]
        return levels

    def _is_processed(self, guess: Guess, depth: int) -> bool:
        """Whether a position is sampled as the target will; else its logits are taken as they are."""
        sampling = guess.request.options.sampling
        return not sampling.is_argmax and (sampling.greedy or depth < self._num_noisy)

    def _sampled(
        self, guesses: Sequence[Guess], levels: Sequence[Sequence[Sequence[Branch]]], at: Sequence[int], depth: int
    ) -> list[list[int]]:
        """Return the columns that the requests' sampling likes best at a depth, the best first; none where it fails."""
        if not guesses:
            return []
        wide = np.full((len(guesses), self._runner.model.config.vocab_size), -np.inf, np.float32)
        parts = []
        for row, guess, i in zip(wide, guesses, at, strict=True):
            row[guess.tokens] = guess.logits[depth]
            text = [*guess.text, *(level[0][0] for level in levels[i])]
            parts.append(ScheduledSequence(guess.table, guess.request, text, len(text)))
        answers = self._sample(self._runner.ops.array(wide), parts)
        columns = []
        for guess, tokens in zip(guesses, answers, strict=True):
            column_of = {token: column for column, token in enumerate(guess.tokens.tolist())}
            columns.append([column_of[token] for token in tokens if token in column_of])
        return columns

    def _sample(self, logits: Array, parts: Sequence[ScheduledSequence]) -> list[list[int]]:
        ops, batch = self._runner.ops, self._runner.sampling_batch(parts)
        try:
            return list(ops.sample(logits, batch, self._width).tolist())
        except SamplingError as error:
            answers: list[list[int]] = [[] for _ in parts]
            fine = [row for row in range(len(parts)) if row not in error.rows]
            if fine:
                found = ops.sample(ops.select(logits, fine), batch.select(fine), self._width)
                for row, tokens in zip(fine, found.tolist(), strict=True):
                    answers[row] = tokens
            return answers


def branches_of(
    row: NDArray[np.float32], tokens: NDArray[np.int64], columns: Sequence[int], temperature: float, *, has_noise: bool
) -> list[Branch]:
    """Return columns of a position's logits as branches; their order is kept, so chances never rise.

    tokens: of all columns. has_noise: the order is that of scores with the target's noise.
    """
    weights = np.exp((row - row.max()) / np.float32(temperature or 1.0))
    chances = (weights[list(columns)] / weights.sum()).astype(np.float64)
    if has_noise and temperature:
        chances = (_AGREED + _BELIEVED * chances) * _NEXT ** np.arange(len(chances))
    chances = np.minimum.accumulate(chances)
    return list(zip(tokens[list(columns)].tolist(), chances.tolist(), strict=True))


def _largest(row: NDArray[np.float32], count: int) -> list[int]:
    """Return the columns of the largest logits, the largest first; equals in the order of columns."""
    count = min(count, len(row))
    columns = np.sort(np.argpartition(-row, count - 1)[:count])
    return list(columns[np.argsort(-row[columns], kind="stable")].tolist())
