"""Which guesses are worth verifying: the likeliest first, as many as give the most tokens for the time.

The nodes of all requests of a pass are put in the order of their cumulative acceptance: the chance that the sequence
comes by them, the product of their own and their ancestors' chances (so parents stay before children). The pass takes
the beginning of that list with the most expected tokens per predicted second. Nothing is a choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from outpace.drafters.router.acceptance import Acceptance
from outpace.drafters.router.averages import MIN_CUMULATIVE
from outpace.drafters.router.cost import PassCost
from outpace.types.tree import DraftTree

_MIN_GAIN = 1.01  # drafting must promise this much more tokens per second: estimates are no better than that


@dataclass(slots=True)
class Proposals:
    """The merged proposals for one request. sources[i]: bit d is set where drafter d proposed node i."""

    context: int
    budget: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    cumulative: list[float] = field(default_factory=list)  # acceptance
    sources: list[int] = field(default_factory=list)
    places: dict[int, list[int]] = field(default_factory=dict)  # drafter -> where its nodes are here, -2: unlikely
    kept: dict[int, float] = field(default_factory=dict)  # node to verify -> seconds of its row; parents first
    _nodes: dict[tuple[int, int], int] = field(default_factory=dict)  # (parent, token) -> node

    def add(self, tree: DraftTree, drafter: int, acceptance: Acceptance) -> None:
        """Merge in what a drafter proposed; a node of several drafters takes the best chance that one gives it."""
        places = self.places[drafter] = []
        bit = 1 << drafter
        cumulative = self.cumulative
        chances = acceptance.chances(tree, self.context)
        for token, parent, chance in zip(tree.tokens, tree.parents, chances, strict=True):
            above = places[parent] if parent >= 0 else -1
            reached = chance * cumulative[above] if above >= 0 else chance
            if above < -1 or reached < MIN_CUMULATIVE:
                places.append(-2)
                continue
            node = self._nodes.setdefault((above, token), len(self.tokens))
            places.append(node)
            if node == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(above)
                cumulative.append(reached)
                self.sources.append(bit)
            else:
                self.sources[node] |= bit
                if reached > cumulative[node]:
                    cumulative[node] = reached

    @property
    def expected(self) -> float:
        """Tokens that this request is expected to write, the target's own included."""
        return 1.0 + sum([self.cumulative[node] for node in self.kept])

    def expected_of(self, drafter: int) -> float:
        """Return how many of a drafter's kept nodes are expected to be accepted."""
        return sum([self.cumulative[node] for node in self.kept if self.sources[node] >> drafter & 1])

    def brought_by(self, drafter: int, unit: float, beside: int = 0) -> tuple[list[float], list[float]]:
        """Return, node by node of a drafter's proposal, the expected tokens and the rows in units of `unit` seconds.

        Nodes that are not kept bring nothing; nor do those that the drafters in `beside` (bits) proposed as well.
        """
        kept, cumulative, sources = self.kept, self.cumulative, self.sources
        tokens, rows = [], []
        for node in self.places.get(drafter, ()):
            counts = node in kept and not sources[node] & beside
            tokens.append(cumulative[node] if counts else 0.0)
            rows.append(kept[node] / unit if counts else 0.0)
        return tokens, rows

    def common(self, drafter: int, others: int) -> frozenset[int]:
        """Return the nodes of a drafter's proposal that `others` (bits) proposed as well, as it numbers them."""
        return frozenset(k for k, node in enumerate(self.places[drafter]) if node >= 0 and self.sources[node] & others)

    def tree(self, names: Mapping[int, tuple[str, ...]]) -> DraftTree:
        """Return the kept nodes as a draft; names[bits]: of the drafters in a set."""
        kept = list(self.kept)
        index = {node: i for i, node in enumerate(kept)}
        index[-1] = -1
        cumulative = self.cumulative
        return DraftTree(
            tuple([self.tokens[node] for node in kept]),
            tuple([index[self.parents[node]] for node in kept]),
            tuple([names[self.sources[node]] for node in kept]),
            tuple([min(cumulative[n] / (cumulative[p] if (p := self.parents[n]) >= 0 else 1.0), 1.0) for n in kept]),
        )


def select(
    batch: Sequence[Proposals], cost: PassCost, row_seconds: float, plain_seconds: float, sunk_seconds: float
) -> float:
    """Decide on the nodes of a whole pass: set `kept` of each request; return the pass' predicted seconds.

    row_seconds: what sampling one more row takes. plain_seconds: of the pass without any draft.
    sunk_seconds: what drafting took, whatever is decided now.
    """
    size = len(batch)
    order = sorted([(-c, i, node) for i, proposals in enumerate(batch) for node, c in enumerate(proposals.cumulative)])
    left = [proposals.budget for proposals in batch]
    rows = [1] * size
    total, tokens, seconds = size, float(size), plain_seconds
    best, best_rate, best_seconds = 0, _MIN_GAIN * size / (plain_seconds + sunk_seconds), plain_seconds
    taken: list[tuple[int, int, float]] = []
    # All beginnings are looked at, not only until the first loss: kernels take rows in tiles, and a costly fifth row
    # may be followed by three that are free.
    for negative, i, node in order:
        if not left[i]:
            continue
        left[i] -= 1
        more = cost.more(total, rows[i], batch[i].context) + row_seconds
        rows[i] += 1
        total += 1
        tokens -= negative
        seconds += more
        taken.append((i, node, more))
        if tokens > best_rate * (seconds + sunk_seconds):
            best, best_rate, best_seconds = len(taken), tokens / (seconds + sunk_seconds), seconds
    for i, node, more in taken[:best]:
        batch[i].kept[node] = more
    return best_seconds
