"""Which guesses are worth verifying: the likeliest first, as many as give the most tokens for the time.

A node's reach is the chance that the text comes by it: the product of its own and its ancestors' chances. The nodes
of all requests of a pass are put in the order of their reach (parents stay before children), and the pass takes the
beginning of that list with the most expected tokens per predicted second. Nothing is a choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from outpace.tree import DraftTree, Forecast
from outpace.tune.acceptance import Acceptance
from outpace.tune.cost import PassCost

_LEAST_REACH = 0.02  # guesses less likely than this are not looked at
_LEAST_GAIN = 1.01  # drafting must promise this much more tokens per second than plain decoding


@dataclass(slots=True)
class Guesses:
    """The merged proposals for one request. by[i]: bit d is set where drafter d proposed node i."""

    context: int
    budget: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    reach: list[float] = field(default_factory=list)
    by: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)  # nodes that will be verified, parents first
    worth: list[float] = field(default_factory=list)  # of each kept node: what its reach saves, minus its row
    _nodes: dict[tuple[int, int], int] = field(default_factory=dict)  # (parent, token) -> node

    def add(self, tree: DraftTree, drafter: int, acceptance: Acceptance, length: int) -> None:
        """Merge in what a drafter proposed; a node of several drafters takes the best chance that one gives it."""
        place: list[int] = []  # where the tree's nodes are in the merged one, -2: too unlikely
        bit = 1 << drafter
        chances = acceptance.chances(tree, length)
        for token, parent, chance in zip(tree.tokens, tree.parents, chances, strict=True):
            above = place[parent] if parent >= 0 else -1
            reach = chance * self.reach[above] if above >= 0 else chance
            if above < -1 or reach < _LEAST_REACH:
                place.append(-2)
                continue
            node = self._nodes.setdefault((above, token), len(self.tokens))
            place.append(node)
            if node == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(above)
                self.reach.append(reach)
                self.by.append(bit)
            else:
                self.by[node] |= bit
                if reach > self.reach[node]:
                    self.reach[node] = reach

    @property
    def expected(self) -> float:
        """Tokens that this request is expected to write, the target's own included."""
        return 1.0 + sum([self.reach[node] for node in self.kept])

    def worth_by(self) -> dict[int, float]:
        """Return what the kept nodes save, by the set of drafters that proposed them (bits)."""
        worth: dict[int, float] = {}
        for node, saved in zip(self.kept, self.worth, strict=True):
            worth[self.by[node]] = worth.get(self.by[node], 0.0) + saved
        return worth

    def tree(self, names: Mapping[int, tuple[str, ...]], forecast: Forecast) -> DraftTree:
        """Return the kept nodes as a draft; names[bits]: of the drafters in a set."""
        kept = self.kept
        index = {node: i for i, node in enumerate(kept)}
        index[-1] = -1
        reach = self.reach
        return DraftTree(
            tuple([self.tokens[node] for node in kept]),
            tuple([index[self.parents[node]] for node in kept]),
            tuple([names[self.by[node]] for node in kept]),
            tuple([min(reach[n] / (reach[p] if (p := self.parents[n]) >= 0 else 1.0), 1.0) for n in kept]),
            forecast=forecast,
        )


def choose(
    batch: Sequence[Guesses], cost: PassCost, row_seconds: float, plain_seconds: float, sunk_seconds: float
) -> float:
    """Decide on the nodes of a whole pass: set `kept` and `worth` of each request; return the pass' predicted seconds.

    row_seconds: what choosing the token of one more row takes. plain_seconds: of the pass without any draft.
    sunk_seconds: what drafting took, whatever is decided now.
    """
    size = len(batch)
    order = sorted([(-reach, i, node) for i, guesses in enumerate(batch) for node, reach in enumerate(guesses.reach)])
    left = [guesses.budget for guesses in batch]
    rows = [1] * size
    total, tokens, seconds = size, float(size), plain_seconds
    best, best_rate, best_seconds = 0, _LEAST_GAIN * size / (plain_seconds + sunk_seconds), plain_seconds
    taken: list[tuple[int, int, float]] = []
    for negative, i, node in order:
        if not left[i]:
            continue
        left[i] -= 1
        more = cost.more(total, rows[i], batch[i].context) + row_seconds
        rows[i] += 1
        total += 1
        tokens -= negative
        seconds += more
        taken.append((i, node, -negative * plain_seconds / size - more))
        if tokens > best_rate * (seconds + sunk_seconds):
            best, best_rate, best_seconds = len(taken), tokens / (seconds + sunk_seconds), seconds
    for i, node, worth in taken[:best]:
        batch[i].kept.append(node)
        batch[i].worth.append(worth)
    return best_seconds
