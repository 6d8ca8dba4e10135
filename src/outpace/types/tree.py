"""Drafts are trees: tokens with parents. A chain is a thin tree, no draft is an empty one; trees merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.errors import DrafterError


@dataclass(frozen=True, slots=True)
class DraftTree:
    """Guessed tokens after the last pending one. A chain is a thin tree; no draft is an empty tree.

    parents[i] in [-1, i); -1 is the last pending token. Siblings differ.
    sources[i]: names of the drafters that proposed node i. confidence[i]: its drafter's own estimate in
    [0, 1] that the node is accepted, given that its parent is.
    q: only for the `rejection` rule, and only while the tree is one drafter's, unpruned: float64 [N + 1, V],
    row 0 the distribution from which the root's children were drawn (without replacement, in node order), row i + 1
    that of node i's children.
    reserved: nodes that merging keeps before all others, with all their ancestors. They are not there to be
    accepted: their drafter wants to see the target's token at them (`lookahead`'s window).
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    sources: tuple[tuple[str, ...], ...] = ()
    confidence: tuple[float, ...] = ()
    q: NDArray[np.float64] | None = None
    reserved: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if not len(self.parents) == len(self.sources) == len(self.confidence) == n:
            raise DrafterError(
                f"a draft's tokens, parents, sources and confidence must be equally long, got "
                f"{n}, {len(self.parents)}, {len(self.sources)}, {len(self.confidence)}"
            )
        for i, parent in enumerate(self.parents):
            if not -1 <= parent < i:
                raise DrafterError(f"draft node {i} must have a parent in [-1, {i}), got {parent}")
        for i, confidence in enumerate(self.confidence):
            if not 0.0 <= confidence <= 1.0:  # also refuses NaN
                raise DrafterError(f"draft node {i} must have a confidence in [0, 1], got {confidence!r}")
        if n and min(self.tokens) < 0:
            raise DrafterError(f"a draft's tokens must be at least 0, got {min(self.tokens)}")
        if len(set(zip(self.parents, self.tokens, strict=True))) != n:
            raise DrafterError("two siblings of a draft have the same token: share the node instead")
        if self.reserved:
            self._check_reserved()

    def _check_reserved(self) -> None:
        for node in self.reserved:
            if not 0 <= node < len(self.tokens):
                raise DrafterError(f"a reserved node must be in [0, {len(self.tokens)}), got {node}")
            if (parent := self.parents[node]) >= 0 and parent not in self.reserved:
                raise DrafterError(f"reserved draft node {node} needs its parent {parent} reserved too")

    def __len__(self) -> int:
        return len(self.tokens)

    @staticmethod
    def chain(tokens: Sequence[int], source: str, confidence: Sequence[float] | float = 0.5) -> DraftTree:
        """Return the thin tree of `tokens`, one after another."""
        n = len(tokens)
        levels = (confidence,) * n if isinstance(confidence, int | float) else tuple(confidence)
        return DraftTree(tuple(tokens), tuple(range(-1, n - 1)), ((source,),) * n, levels)

    def children(self, node: int) -> list[int]:
        """Return the nodes whose parent is `node` (-1: the root), in node order."""
        return [i for i, parent in enumerate(self.parents) if parent == node]

    def path(self, node: int) -> list[int]:
        """Return the nodes from the root's child down to `node` (empty for -1)."""
        nodes: list[int] = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def depths(self) -> list[int]:
        """Return each node's depth; the root's children have 0."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths


EMPTY = DraftTree()
NO_TOKEN = -1


@dataclass(slots=True)
class Verification:
    """What the target made of one draft: the accepted nodes, and its token at the root and at every node.

    A token is NO_TOKEN where the verification did not look, or nothing could be sampled. The token after the path is
    target_tokens[path[-1] + 1], or target_tokens[0] where nothing was accepted. Both are empty for a sequence that is
    not scored.
    """

    path: list[int]
    target_tokens: list[int]


class TreeBuilder:
    """A draft being grown: the same token under the same parent is one node."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.confidence: list[float] = []
        self._nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node

    def __len__(self) -> int:
        return len(self.tokens)

    def find(self, parent: int, token: int) -> int | None:
        """Return the child of `parent` (-1: the root) with that token, if there is one."""
        return self._nodes.get((parent, token))

    def add(self, parent: int, token: int, confidence: float) -> int:
        """Return the child of `parent` with that token, new or shared; the larger confidence stays."""
        node = self._nodes.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.confidence.append(confidence)
        elif confidence > self.confidence[node]:
            self.confidence[node] = confidence
        return node

    def build(self, source: str, reserved: frozenset[int] = frozenset()) -> DraftTree:
        """Return the finished draft of the drafter called `source`."""
        if not self.tokens:
            return EMPTY
        return DraftTree(
            tuple(self.tokens),
            tuple(self.parents),
            ((source,),) * len(self.tokens),
            tuple(self.confidence),
            reserved=reserved,
        )


def merge(trees: Sequence[DraftTree], budget: int) -> DraftTree:
    """Return one tree of at most `budget` nodes: common prefixes share nodes, the likeliest nodes stay.

    A node's score is the product of confidences from the root; a shared node takes the largest confidence of its
    proposers and names them all. Reserved nodes go first, then the best scores (equals: the earlier tree's), and a
    node stays only with its parent. Order: the first tree's nodes, then what each further tree adds.
    `q` is dropped: a merged tree has no single drafter's distribution.
    """
    union = TreeBuilder()
    sources: list[tuple[str, ...]] = []
    reserved: set[int] = set()
    for tree in trees:
        place: list[int] = []  # where this tree's nodes are in the union
        for token, parent, names, confidence in zip(
            tree.tokens, tree.parents, tree.sources, tree.confidence, strict=True
        ):
            node = union.add(place[parent] if parent >= 0 else -1, token, confidence)
            place.append(node)
            if node == len(sources):
                sources.append(names)
            else:
                sources[node] += tuple(name for name in names if name not in sources[node])
        reserved.update(place[node] for node in tree.reserved)
    kept = _best_nodes(union, reserved, budget)
    index = {node: i for i, node in enumerate(kept)} | {-1: -1}
    return DraftTree(
        tuple([union.tokens[node] for node in kept]),
        tuple([index[union.parents[node]] for node in kept]),
        tuple([sources[node] for node in kept]),
        tuple([union.confidence[node] for node in kept]),
        reserved=frozenset(index[node] for node in reserved if node in index),
    )


def _best_nodes(union: TreeBuilder, reserved: set[int], budget: int) -> Sequence[int]:
    if len(union) <= budget:
        return range(len(union))
    score: list[float] = []
    for parent, confidence in zip(union.parents, union.confidence, strict=True):
        score.append(confidence if parent < 0 else score[parent] * confidence)
    # A parent has the lower number and, as confidence <= 1, no lower score, and is reserved where its child is:
    # a stable sort puts it before its child.
    order = sorted(range(len(union)), key=lambda node: (node not in reserved, -score[node]))
    return sorted(order[: max(budget, 0)])
