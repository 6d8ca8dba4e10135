"""Averages that forget: unbiased from the first sample on, and after a while about the last few samples only."""

from __future__ import annotations

import math

MEMORY = 16  # samples that an average is about: a sequence changes its character within tens of tokens
STEADY = 32  # the same, where what differs between texts is known beforehand
_DECAY = 1.0 - 1.0 / MEMORY
MIN_CUMULATIVE = 0.02  # less likely nodes are not looked at: on no machine is a row as cheap
_EXPECTED_NODES, _EXPECTED_ROW = 6, 0.08  # of a drafter that was never asked: plain passes that a row costs
_OUTLIER = 4.0  # times what was predicted: the most that one timing counts for (another process had the core)


class LinearCost:
    """Seconds as `fixed + per_item * items`, by weighted least squares over the last few samples.

    As long as all samples have the same number of items they say nothing of the two parts: then all of it is taken to
    be per item. So fewer items are tried, and the next sample tells. is_flat: then all of it is taken to be fixed, so
    that more items are tried.
    """

    __slots__ = ("_is_flat", "_items", "_product", "_seconds", "_square", "_weight", "fixed", "per_item")

    def __init__(self, is_flat: bool = False) -> None:
        self._is_flat = is_flat
        self.fixed = self.per_item = 0.0
        self._weight = self._items = self._seconds = self._square = self._product = 0.0

    @property
    def is_known(self) -> bool:
        """Whether there was a sample."""
        return self._weight > 0.0

    def at(self, items: float) -> float:
        """Return the predicted seconds."""
        return self.fixed + self.per_item * items

    @staticmethod
    def expected(fixed: float, per_item: float) -> LinearCost:
        """Return what is known before the first sample: as much as four samples, around four items, say."""
        cost = LinearCost()
        for items in (2.0, 6.0) * 2:
            cost.learn(items, fixed + per_item * items)
        cost.fixed, cost.per_item = fixed, per_item
        return cost

    def learn(self, items: float, seconds: float) -> None:
        """Take in a sample."""
        if self._weight > 1.0:
            seconds = min(seconds, _OUTLIER * self.at(items))
        self._weight = self._weight * _DECAY + 1.0
        self._items = self._items * _DECAY + items
        self._seconds = self._seconds * _DECAY + seconds
        self._square = self._square * _DECAY + items * items
        self._product = self._product * _DECAY + items * seconds
        mean_items, mean_seconds = self._items / self._weight, self._seconds / self._weight
        proportional = mean_seconds / mean_items if mean_items else 0.0
        # A prior sample one item away, on the line through the origin or on a flat one, decides where all have the
        # same items.
        spread = self._square - self._items * mean_items
        expected = 0.0 if self._is_flat else proportional
        slope = (self._product - self._items * mean_seconds + expected) / (spread + 1.0)
        self.per_item = min(max(slope, 0.0), proportional)
        self.fixed = mean_seconds - self.per_item * mean_items


class Gain:
    """What asking a drafter brings, node by node of its proposals, as moving averages.

    tokens[k]: chance that the k-th node is worth verifying and accepted; rows[k]: what verifying it costs, in plain
    passes; given[k]: chance that there is such a node. So the first n of them are what asking for n nodes brings.
    With them goes the log-odds offset under which they were found: by the offset of now they are shifted to now.
    """

    __slots__ = ("_decay", "_given", "_offset", "_rows", "_tokens", "_weights")

    def __init__(self, memory: int = MEMORY) -> None:
        self._decay = 1.0 - 1.0 / memory
        self._tokens: list[float] = []
        self._rows: list[float] = []
        self._given: list[float] = []
        self._weights: list[float] = []
        self._offset = 0.0

    @property
    def is_known(self) -> bool:
        """Whether the drafter was ever asked."""
        return bool(self._weights)

    @property
    def is_settled(self) -> bool:
        """Whether further questions move it little: it is about half of its memory."""
        return self.is_known and self._weights[0] * (1.0 - self._decay) > 0.45

    def expecting(self, acceptance: float, weight: float) -> Gain:
        """Return what is known before the first question, where each guess comes true with such a chance.

        It counts for `weight` questions: one that brings nothing, at a place that nobody can guess, says little then.
        """
        gain = self.inherited()
        gain._tokens = [acceptance ** (k + 1) for k in range(_EXPECTED_NODES)]
        gain._rows, gain._given = [_EXPECTED_ROW] * _EXPECTED_NODES, [1.0] * _EXPECTED_NODES
        gain._weights = [weight] * _EXPECTED_NODES
        return gain

    def inherited(self) -> Gain:
        """Return a copy for another request: it counts for half of its memory at most."""
        most = 0.5 / (1.0 - self._decay)
        copy = Gain()
        copy._decay = self._decay
        copy._tokens, copy._rows, copy._given = self._tokens[:], self._rows[:], self._given[:]
        copy._weights = [min(weight, most) for weight in self._weights]
        copy._offset = self._offset
        return copy

    def learn(self, num_asked: int, tokens: list[float], rows: list[float], offset: float) -> None:
        """Take in a proposal that was asked for `num_asked` nodes; the lists may end earlier, as the proposal did."""
        weights, decay = self._weights, self._decay
        if len(weights) < num_asked:
            more = [0.0] * (num_asked - len(weights))
            for values in (weights, self._tokens, self._rows, self._given):
                values += more
        mean_tokens, mean_rows, given, num_given = self._tokens, self._rows, self._given, len(tokens)
        for k in range(num_asked):
            weights[k] = weight = weights[k] * decay + 1.0
            if k < num_given:
                mean_tokens[k] += (tokens[k] - mean_tokens[k]) / weight
                mean_rows[k] += (rows[k] - mean_rows[k]) / weight
                given[k] += (1.0 - given[k]) / weight
            else:
                mean_tokens[k] -= mean_tokens[k] / weight
                mean_rows[k] -= mean_rows[k] / weight
                given[k] -= given[k] / weight
        self._offset += (offset - self._offset) / weights[0]
        for k in range(num_asked, len(weights)):  # not asked for: what is known of them grows old
            weights[k] *= decay

    def expected_nodes(self, num_asked: int) -> float:
        """Return how many nodes come on average when so many are asked for."""
        return sum(self._given[:num_asked]) + max(num_asked - len(self._given), 0)

    def best(
        self, tokens: float, passes: float, per_node: float, limit: int, offset: float
    ) -> tuple[int, float, float]:
        """Return the number of nodes with the most tokens per plain pass; and the step's tokens and passes.

        tokens, passes: of the step without these nodes, the fixed cost of asking included. per_node: plain passes
        that a node takes to propose. limit: of nodes, at least 1. offset: the log-odds offset of now.
        Nodes that were not asked for lately are predicted from those before them: each is taken to be as likely,
        given the one before, as the last one was.
        """
        best, best_rate = (0, tokens, passes), 0.0
        factor = math.exp(offset - self._offset)
        before, chance, reached, row, given = 1.0, 0.0, 1.0, 0.0, 1.0
        num_known = len(self._weights)
        for k in range(limit):
            follows = before * chance
            if k < num_known:
                weight = self._weights[k]
                share = weight / (weight + 1.0) if k else 1.0
                follows += share * (self._tokens[k] - follows)
                row += share * (self._rows[k] - row)
                given += share * (self._given[k] - given)
            chance = min(follows / before, 1.0) if before else 0.0
            before = follows
            reached *= factor * chance / (factor * chance + 1.0 - chance)
            if k and reached < MIN_CUMULATIVE:
                break
            tokens += reached
            passes += row + given * per_node
            if tokens > best_rate * passes:
                best, best_rate = (k + 1, tokens, passes), tokens / passes
            elif tokens + (limit - k - 1) * reached < best_rate * passes:
                break  # even free nodes, each as likely as this one, would not make up for what it costs
        return best
