"""A conversation as drafts see it: anchors, the head as decoding has it at each of them, and the target's noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outpace.ops.philox import gumbel
from outpace.train.batch import Batch, by_length, make_batch
from outpace.train.networks.network import DraftNetwork
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.types import TOKEN_STREAM

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Best:
    """The best tokens of n rows, the best first, [n, count] each.

    columns: of the head. logprobs: log-softmax at the temperature that the response was drawn with (greedy: 1), before
    filters. scores: what puts them in this order; -inf for what cannot be drawn.
    """

    columns: Ints
    logprobs: Floats
    scores: Floats


class View:
    """One conversation.

    anchors: [A], of the last known token. columns: [C], the token of each row of the head that some draft looks at.
    noise: what the target added when it drew the response, if that was sampled and its seed is known (it is not 0).
    """

    def __init__(self, own: Conversation, network: DraftNetwork, vocab_size: int) -> None:
        self.own = own
        self.anchors = np.arange(own.num_prompt, len(own.tokens) - 1)
        rows, first_seen = _rows_of(network, own)
        self.columns = np.array(network.head_tokens, np.int64)[rows]
        self.noise = Noise(own, vocab_size) if own.sampled and own.seed else None
        self._head = network.head[torch.from_numpy(rows).to(network.head.device)]
        self._first_seen = first_seen

    @property
    def temperature(self) -> float:
        """At which probabilities are meant: that of the response, 1 if it is greedy."""
        return self.own.temperature or 1.0

    def logits(self, states: Tensor, anchors: Ints) -> Floats:
        """Return the logits of what the head multiplies, [n, C]; -inf where a token is not in the sequence yet."""
        found = (states.float() @ self._head.float().T).cpu().numpy().astype(np.float64)
        found[self._first_seen[None] > anchors[:, None]] = -np.inf
        return found

    def best(self, logits: Floats, positions: Ints, count: int, *, has_noise: bool) -> Best:
        """Return the best tokens of rows whose guesses stand at some positions; equals in the order of columns.

        has_noise: the target's noise counts, where it is known.
        """
        scaled = logits / self.temperature
        scores = scaled
        if has_noise and self.noise is not None:
            scores = self.noise.add(scaled, positions, self.columns)
        count = min(count, logits.shape[1])
        found = np.sort(np.argpartition(-scores, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(scores, found, 1), axis=1, kind="stable")
        found = np.take_along_axis(found, order, 1)
        largest = scaled.max(axis=1, keepdims=True)
        total = largest + np.log(np.exp(scaled - largest).sum(axis=1, keepdims=True))
        return Best(found, np.take_along_axis(scaled - total, found, 1), np.take_along_axis(scores, found, 1))

    def budget(self, at: int, most: int) -> int:
        """Return the nodes that a draft behind anchor `at` may have: no more than the response has tokens left but one.

        As if the response had been as long as it was allowed to be.
        """
        return min(most, len(self.anchors) - at - 1)

    def truth(self, k: int) -> Ints:
        """Return the text's token k places behind each anchor, [A]; -1 behind its end."""
        tokens, places = self.own.tokens, self.anchors + k
        return np.where(places < len(tokens), tokens[np.minimum(places, len(tokens) - 1)], -1)


class Noise:
    """What the target adds to its logits in a sampled conversation, position by position."""

    def __init__(self, own: Conversation, vocab_size: int) -> None:
        self._min_p, self._seed, self._size = own.min_p, own.seed, vocab_size
        self._known: dict[int, NDArray[np.float32]] = {}

    def add(self, scaled: Floats, positions: Ints, columns: Ints) -> Floats:
        """Return scores: logits / temperature [n, C], those that min-p leaves, and the noise of each position."""
        if self._min_p:
            scaled = np.where(scaled >= scaled.max(axis=1, keepdims=True) + np.log(self._min_p), scaled, -np.inf)
        return scaled + np.stack([self._at(position)[columns] for position in positions.tolist()])

    def _at(self, position: int) -> NDArray[np.float32]:
        if position not in self._known:
            self._known[position] = gumbel(self._seed, position, self._size, 0, TOKEN_STREAM)
        return self._known[position]


@torch.no_grad()
def views_of(
    network: DraftNetwork, target: FrozenTarget, conversations: Sequence[Conversation]
) -> Iterator[tuple[Batch, list[View]]]:
    """Yield the conversations that can be drafted, as batches: those of similar length together."""
    for part in by_length(own for own in conversations if len(own.tokens) >= own.num_prompt + 2):
        batch = make_batch(part, target, network.taps, 0)
        assert batch is not None
        yield batch, [View(own, network, target.config.vocab_size) for own in part]


def _rows_of(network: DraftNetwork, own: Conversation) -> tuple[Ints, Ints]:
    """Return the head's rows that some draft of a conversation looks at, and the position from which on each does."""
    further = {token: row for row, token in enumerate(network.head_tokens) if row >= network.num_fixed}
    seen: dict[int, int] = {}
    for position, token in enumerate(own.tokens.tolist()):
        if token in further:
            seen.setdefault(further[token], position)
    rows = [*range(network.num_fixed), *seen]
    return np.array(rows, np.int64), np.array([*[0] * network.num_fixed, *seen.values()], np.int64)
