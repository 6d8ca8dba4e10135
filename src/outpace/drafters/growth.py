"""A draft that grows level by level where it is likeliest: dynamic draft trees (EAGLE-2, arXiv:2406.16858, section 4).

A node's value is the product of the confidences from the root to it. At each level the newest nodes of greatest value
are expanded; in the end the `budget` nodes of greatest value are the draft. As a child's value is at most its
parent's, they are connected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from outpace.types import Segment
from outpace.types.tree import EMPTY, DraftTree

Children = Iterable[tuple[int, float]]  # tokens, and the chance of each that it comes next


@dataclass(frozen=True, slots=True)
class Shape:
    """How a draft grows.

    width: nodes that are expanded at a level (1: a chain). min_value: less likely nodes are left out.
    min_expanded: the least value of a node that is expanded: a level costs more than a node.
    """

    width: int
    min_value: float
    min_expanded: float


@dataclass(slots=True)
class GrowingTree:
    """The nodes so far. front: those that are expanded next; origins[i]: where front[i]'s parent was in the last front.

    Every expanded node has a slot of the cache behind the sequence's own, in the order of `_expanded`.
    """

    shape: Shape
    budget: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    front: list[int] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    depth: int = 0  # tokens from the root to each node of the front
    _place: dict[int, int] = field(default_factory=dict)  # expanded node -> its slot, counted from the first
    _expanded: list[int] = field(default_factory=list)  # by slot: the parent's slot, -1 for the root

    def add(self, children: Sequence[Children]) -> None:
        """Take in the children of the front's nodes (of the root, at first), and move the front to the next level."""
        first = len(self.tokens)
        old = self.front or [-1]
        for parent, own in zip(old, children, strict=True):
            value = self.values[parent] if parent >= 0 else 1.0
            for token, confidence in own:
                if value * confidence < self.shape.min_value:
                    break
                self.tokens.append(token)
                self.parents.append(parent)
                self.confidence.append(confidence)
                self.values.append(value * confidence)
        self.front = self._next_front(first)
        self.origins = [old.index(self.parents[node]) for node in self.front]
        self.depth += 1

    def _next_front(self, first: int) -> list[int]:
        """Return the newest nodes that are worth expanding: those whose children may still be among the best."""
        values, bar = self.values, self.shape.min_expanded
        if len(values) >= self.budget:
            bar = max(bar, sorted(values)[-self.budget])
            newest = [node for node in range(first, len(values)) if values[node] > bar]
        else:
            newest = [node for node in range(first, len(values)) if values[node] >= bar]
        room = min(self.shape.width, self.budget - len(self._expanded))
        if len(newest) > room:
            newest = sorted(sorted(newest, key=lambda node: -values[node])[:room])
        return newest

    def segment(self, blocks: Sequence[int], start: int) -> Segment:
        """Return the front as a pass runs it, behind `start` slots of the sequence; its nodes count as expanded."""
        stored, place = self._expanded, self._place
        parents = [place.get(self.parents[node], -1) for node in self.front]
        for node in self.front:
            place[node] = len(place)
        self._expanded = stored + parents
        tokens = [self.tokens[node] for node in self.front]
        return Segment(blocks, start, tokens, parents, len(tokens), stored=stored)

    def path(self, node: int) -> tuple[int, ...]:
        """Return the tokens from the root's child down to a node."""
        tokens: list[int] = []
        while node >= 0:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tuple(tokens[::-1])

    def build(self, source: str) -> DraftTree:
        """Return the best nodes, the likeliest first: fewer of them are the beginning of the draft."""
        if not self.tokens:
            return EMPTY
        best = sorted(range(len(self.tokens)), key=lambda node: -self.values[node])[: self.budget]
        index = {node: i for i, node in enumerate(best)}
        index[-1] = -1
        return DraftTree(
            tuple([self.tokens[node] for node in best]),
            tuple([index[self.parents[node]] for node in best]),
            ((source,),) * len(best),
            tuple([self.confidence[node] for node in best]),
        )
