"""Whose guesses come true: acceptance by drafter, depth and confidence, learned from the text itself.

A guess is judged when the text has reached its place, whether it was verified or only proposed: the node's parent is
on the text's path, and the next token is the node's or not. So learning costs no rows.

Two levels. Habits: beta counts of each bucket of depth and confidence over all requests so far. Mood: how much better
or worse the drafter does in this request just now, one shift of all log-odds, which fades with the tokens written:
a text that changes its character is followed within a few surprises, in buckets not yet seen as well.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.tree import DraftTree

Judged = tuple[int, float, bool]  # a node's depth and confidence, and whether the text took it

# Buckets of confidence: fine where matches of 2, 3, 4 ... 32 tokens lie (see drafters/matching.py).
_CONFIDENCE = (0.05, 0.15, 0.3, 0.45, 0.6, 0.7, 0.78, 0.845, 0.91, 0.965, 0.985)
_DEPTHS = (0, 1, 2, 2, 3, 3, 3, 3)  # of depths 0 ... 7; deeper ones are in the last bucket
_DEPTH_BUCKETS = 4

_MOST_REMEMBERED = 300.0  # judgements of a bucket; then the older half of their weight is dropped
_DOUBT = 0.8  # an unknown drafter's confidence is taken at this part of its word
_DOUBT_WEIGHT = 2.0

_SURPRISE = 0.2  # of log-odds, for something held impossible
_HALF_LIFE = 64  # tokens of the text after which a mood is half gone
_MOST_MOOD = 3.0
_FADE: tuple[float, ...] = tuple(0.5 ** (age / _HALF_LIFE) for age in range(8 * _HALF_LIFE))


def cell_of(depth: int, confidence: float) -> int:
    """Return the number of the bucket of a node."""
    return bisect_right(_CONFIDENCE, confidence) * _DEPTH_BUCKETS + (_DEPTHS[depth] if depth < len(_DEPTHS) else 3)


@dataclass(slots=True)
class _Counts:
    """Judged guesses of one bucket."""

    right: float = 0.0
    all: float = 0.0


class Habits:
    """How often one drafter was right over all requests so far, by bucket."""

    def __init__(self) -> None:
        self._cells: dict[int, _Counts] = {}

    def chance(self, cell: int, confidence: float) -> float:
        """Return the mean chance of a bucket, below 1; its drafter's own word counts where little is known."""
        known = self._cells.get(cell)
        if known is None:
            return _DOUBT * confidence
        return (known.right + _DOUBT_WEIGHT * _DOUBT * confidence) / (known.all + _DOUBT_WEIGHT)

    def typical(self, depth: int) -> float:
        """Return the mean chance at a depth over all confidences."""
        bucket = cell_of(depth, 0.0)
        cells = [known for cell, known in self._cells.items() if cell % _DEPTH_BUCKETS == bucket]
        right = sum([known.right for known in cells]) + _DOUBT_WEIGHT * _DOUBT
        return right / (sum([known.all for known in cells]) + _DOUBT_WEIGHT)

    def learn(self, cell: int, was_right: bool) -> None:
        """Take in a judged guess."""
        known = self._cells.setdefault(cell, _Counts())
        if known.all >= _MOST_REMEMBERED:
            known.right *= 0.5
            known.all *= 0.5
        known.right += was_right
        known.all += 1.0


class Acceptance:
    """One drafter's chances in one request: its habits, in the mood of the text."""

    def __init__(self, habits: Habits) -> None:
        self._habits = habits
        self._mood = 0.0
        self._at = 0  # length of the text when the mood was last changed

    def chance(self, depth: int, confidence: float, length: int) -> float:
        """Return the chance that a node is accepted, given that its parent is; length: of the text."""
        return _shifted(self._habits.chance(cell_of(depth, confidence), confidence), self._factor(length))

    def chances(self, tree: DraftTree, length: int) -> list[float]:
        """Return the chance of each node of a tree, given that its parent is accepted."""
        factor, before = self._factor(length), self._habits.chance
        depths: list[int] = []
        chances: list[float] = []
        for parent, confidence in zip(tree.parents, tree.confidence, strict=True):
            depth = depths[parent] + 1 if parent >= 0 else 0
            depths.append(depth)
            odds = factor * (chance := before(cell_of(depth, confidence), confidence))
            chances.append(odds / (odds + 1.0 - chance))
        return chances

    def typical(self, depth: int, length: int) -> float:
        """Return the chance of a node at that depth when its confidence is not known yet."""
        return _shifted(self._habits.typical(depth), self._factor(length))

    def learn(self, judged: Sequence[Judged], length: int) -> None:
        """Take in judged guesses, in order, of a text that is now `length` long."""
        mood = self._mood_at(length)
        for depth, confidence, was_right in judged:
            cell = cell_of(depth, confidence)
            chance = _shifted(self._habits.chance(cell, confidence), math.exp(mood))
            mood = max(-_MOST_MOOD, min(mood + _SURPRISE * (was_right - chance), _MOST_MOOD))
            self._habits.learn(cell, was_right)
        self._mood, self._at = mood, length

    def _mood_at(self, length: int) -> float:
        age = length - self._at
        return self._mood * _FADE[age] if age < len(_FADE) else 0.0

    def _factor(self, length: int) -> float:
        """Return what the mood multiplies odds by."""
        return math.exp(self._mood_at(length))


def _shifted(chance: float, factor: float) -> float:
    """Return the chance whose odds are `factor` times as high."""
    return factor * chance / (factor * chance + 1.0 - chance)


@dataclass(slots=True)
class OpenGuess:
    """A proposal that the text has not refuted yet: `node` is the last one on the text's path, -1 the root."""

    tree: DraftTree
    end: int  # position of the root's children
    node: int = -1
    depth: int = 0  # of the node's children
    children: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node, parent in enumerate(self.tree.parents):
            self.children.setdefault(parent, []).append(node)

    def judge(self, tokens: list[int]) -> list[Judged]:
        """Return all that the text so far decides on, and move along the text."""
        tree, judged = self.tree, []
        while (place := self.end + self.depth) < len(tokens):
            token, found = tokens[place], None
            for node in self.children.get(self.node, ()):
                was_right = tree.tokens[node] == token
                judged.append((self.depth, tree.confidence[node], was_right))
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
        """Whether later text can still decide on a node."""
        return self.node in self.children
