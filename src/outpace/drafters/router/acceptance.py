"""Whose guesses come true: acceptance by drafter, depth and confidence, learned from the sequence itself.

A guess is judged when the sequence has reached its place, whether it was verified or only proposed: the node's parent
is on the sequence's path, and the next token is the node's or not. So learning costs no rows.

Two levels. Counts: accepted and judged nodes in each bucket of depth and confidence, over all requests. An offset: how
much better or worse the drafter does in this request now, one shift of all log-odds, tracked by a Kalman filter.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.types.tree import DraftTree

Judged = tuple[int, float, bool]  # a node's depth and confidence, and whether the sequence took it

# Buckets of confidence: fine where matches of 2, 3, 4 ... 32 tokens lie (see drafters/matching.py).
_CONFIDENCE = (0.05, 0.15, 0.3, 0.45, 0.6, 0.7, 0.78, 0.845, 0.91, 0.965, 0.985)
_DEPTHS = (0, 1, 2, 2, 3, 3, 3, 3)  # of depths 0 ... 7; deeper ones are in the last bucket
_NUM_DEPTHS = 4

_MAX_COUNT = 300.0  # judged nodes of a bucket; then both counts are halved, so that old requests fade
_DISCOUNT = 0.8  # a confidence that is not calibrated is taken at this part of its word until it is known
_PRIOR_COUNT = 2.0  # judged nodes that a first estimate is worth

# Of log-odds between requests. 1: a text's acceptance of 0.5 lies between 0.27 and 0.73 for two in three. Of a drafter
# whose confidence is calibrated: measured on `eagle` over 44 texts, 0.01 sampled and 0.09 greedy (`suffix`: 0.2).
VARIANCE, CALIBRATED_VARIANCE = 1.0, 0.1
_HALF_LIFE = 64  # tokens after which half of an offset is left: how long a sequence keeps its character


def bucket_of(depth: int, confidence: float) -> int:
    """Return the number of the bucket of a node; the next shallower one of the same confidence is one below."""
    return bisect_right(_CONFIDENCE, confidence) * _NUM_DEPTHS + (_DEPTHS[depth] if depth < len(_DEPTHS) else 3)


class Counts:
    """How often one drafter was right over all requests so far, by bucket."""

    def __init__(self, is_calibrated: bool = False) -> None:
        self._believed = 1.0 if is_calibrated else _DISCOUNT
        self._counts: dict[int, list[float]] = {}  # accepted, judged; prior counts included

    def chance(self, bucket: int, confidence: float) -> float:
        """Return the acceptance of a bucket, below 1.

        Where nothing was judged it is that of the next shallower bucket, and at last the drafter's own word.
        """
        while (known := self._counts.get(bucket)) is None:
            if bucket % _NUM_DEPTHS == 0:
                return self._believed * confidence
            bucket -= 1
        return known[0] / known[1]

    def learn(self, bucket: int, confidence: float, was_right: bool) -> None:
        """Take in a judged node."""
        known = self._counts.get(bucket)
        if known is None:
            prior = self.chance(bucket, confidence)
            known = self._counts[bucket] = [_PRIOR_COUNT * prior, _PRIOR_COUNT]
        if known[1] >= _MAX_COUNT:
            known[0] *= 0.5
            known[1] *= 0.5
        known[0] += was_right
        known[1] += 1.0


class Acceptance:
    """One drafter's acceptance in one request: its counts, shifted by the request's log-odds offset.

    The offset is 0 with `variance` at first, and returns there while nothing is judged (an Ornstein-Uhlenbeck process
    in tokens). A judged node with predicted chance p moves it by variance * (right - p) and takes p * (1 - p) of
    information from the variance: the extended Kalman filter with logistic observations. So many judgements in a row
    move it little each; the first after a silence, or the first of a request, moves it far.
    """

    def __init__(self, counts: Counts, variance: float = VARIANCE) -> None:
        self._counts = counts
        self._offset = 0.0
        self._variance = self._between = variance
        self._at = 0  # length of the sequence when the offset was last changed

    def offset(self, length: int) -> float:
        """Return the log-odds offset once the sequence is `length` long."""
        return self._offset * self._left(length)

    def chance(self, depth: int, confidence: float, length: int) -> float:
        """Return the chance that a node is accepted, given that its parent is; length: of the sequence."""
        return _shifted(self._counts.chance(bucket_of(depth, confidence), confidence), math.exp(self.offset(length)))

    def chances(self, tree: DraftTree, length: int) -> list[float]:
        """Return the chance of each node of a tree, given that its parent is accepted."""
        factor, before = math.exp(self.offset(length)), self._counts.chance
        depths: list[int] = []
        chances: list[float] = []
        for parent, confidence in zip(tree.parents, tree.confidence, strict=True):
            depth = depths[parent] + 1 if parent >= 0 else 0
            depths.append(depth)
            odds = factor * (chance := before(bucket_of(depth, confidence), confidence))
            chances.append(odds / (odds + 1.0 - chance))
        return chances

    def learn(self, judged: Sequence[Judged], length: int) -> None:
        """Take in judged nodes, in order, of a sequence that is now `length` long."""
        left = self._left(length)
        offset, variance = self._offset * left, self._between + (self._variance - self._between) * left * left
        for depth, confidence, was_right in judged:
            bucket = bucket_of(depth, confidence)
            chance = _shifted(self._counts.chance(bucket, confidence), math.exp(offset))
            variance /= 1.0 + variance * chance * (1.0 - chance)
            offset += variance * (was_right - chance)
            self._counts.learn(bucket, confidence, was_right)
        self._offset, self._variance, self._at = offset, variance, length

    def _left(self, length: int) -> float:
        return float(0.5 ** ((length - self._at) / _HALF_LIFE))


def _shifted(chance: float, factor: float) -> float:
    """Return the chance whose odds are `factor` times as high."""
    return factor * chance / (factor * chance + 1.0 - chance)


@dataclass(slots=True)
class OpenProposal:
    """A proposal that the sequence has not refuted yet: `node` is the last one on its path, -1 the root.

    common: nodes that another drafter proposed as well. num_new, num_right: of the others, those that were judged and
    those that were accepted.
    """

    tree: DraftTree
    end: int  # position of the root's children
    node: int = -1
    depth: int = 0  # of the node's children
    children: dict[int, list[int]] = field(default_factory=dict)
    common: frozenset[int] = frozenset()
    num_new: int = 0
    num_right: int = 0

    def __post_init__(self) -> None:
        for node, parent in enumerate(self.tree.parents):
            self.children.setdefault(parent, []).append(node)

    def judge(self, tokens: list[int]) -> list[Judged]:
        """Return all that the sequence so far decides on, and move along it."""
        tree, judged = self.tree, []
        while (place := self.end + self.depth) < len(tokens):
            token, found = tokens[place], None
            for node in self.children.get(self.node, ()):
                was_right = tree.tokens[node] == token
                judged.append((self.depth, tree.confidence[node], was_right))
                if node not in self.common:
                    self.num_new += 1
                    self.num_right += was_right
                if was_right:
                    found = node
            self.depth += 1
            if found is None:
                self.children = {}
                break
            self.node = found
        return judged

    @property
    def is_open(self) -> bool:
        """Whether later tokens can still decide on a node."""
        return self.node in self.children
