"""What a network guesses behind every anchor of a conversation, with the head that decoding has there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from outpace.ops.philox import gumbel
from outpace.train.batch import make_batch
from outpace.train.corpus import Conversation
from outpace.train.networks.network import DraftNetwork
from outpace.train.target import FrozenTarget
from outpace.types import TOKEN_STREAM

Floats = NDArray[np.float32]

_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Guesses:
    """The guesses at A anchors of a conversation: behind each, the text up to the guess is fed as it stands.

    anchors: [A], of the last known token. columns: [C], the token of each column. logits[k]: of the guess k + 1 places
    behind the anchor, [A, C]; -inf where the column's token has not been in the sequence yet.
    """

    own: Conversation
    anchors: NDArray[np.int64]
    columns: NDArray[np.int64]
    logits: Sequence[Floats]

    def best(self, k: int, count: int, noise: Noise | None = None) -> tuple[NDArray[np.int64], Floats]:
        """Return each anchor's best columns at depth k + 1, the best first, and their probabilities, [A, count].

        noise: what the target adds there; then the best are those of greatest score, and probabilities are at its
        temperature. Equals in the order of columns.
        """
        logits = self.logits[k].astype(np.float64)
        scores = logits if noise is None else noise.scores(logits, self.anchors + k + 1, self.columns)
        count = min(count, logits.shape[1])
        found = np.sort(np.argpartition(-scores, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(scores, found, 1), axis=1, kind="stable")
        found = np.take_along_axis(found, order, 1)
        scaled = logits / (noise.temperature if noise else self.own.temperature or 1.0)
        chances = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        return found, np.take_along_axis(chances, found, 1).astype(np.float32)


class Noise:
    """What the target adds to its logits in a sampled conversation, position by position, if its seed is known."""

    def __init__(self, own: Conversation, vocab_size: int) -> None:
        self.temperature, self._min_p, self._seed, self._size = own.temperature, own.min_p, own.seed, vocab_size
        self._known: dict[int, Floats] = {}

    def scores(
        self, logits: NDArray[np.float64], positions: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return what the argmax is taken of, [A, C]: filtered logits / temperature, and each position's noise."""
        x = logits / self.temperature
        if self._min_p:
            x = np.where(x >= x.max(axis=1, keepdims=True) + np.log(self._min_p), x, -np.inf)
        return x + np.stack([self._at(position)[columns] for position in positions.tolist()])

    def _at(self, position: int) -> Floats:
        if position not in self._known:
            self._known[position] = gumbel(self._seed, position, self._size, 0, TOKEN_STREAM)
        return self._known[position]


@torch.no_grad()
def guesses_of(
    network: DraftNetwork, target: FrozenTarget, conversations: Sequence[Conversation], num_depths: int
) -> Iterator[Guesses]:
    """Yield the guesses of every conversation that can be drafted; in the order of their lengths."""
    for part in _batches(conversations):
        batch = make_batch(part, target, network.taps, num_depths)
        assert batch is not None
        states = network.states(batch, num_depths)
        for b, own in enumerate(part):
            rows, first_seen = _rows_of(network, own)
            anchors = np.arange(own.num_prompt, len(own.tokens) - 1)
            head = network.head[torch.from_numpy(rows).to(network.head.device)]
            is_unknown = torch.from_numpy(first_seen[None] > anchors[:, None]).to(head.device)
            logits = [
                (x[b, : len(anchors)].float() @ head.T).masked_fill(is_unknown, float("-inf")).cpu().numpy()
                for x in states
            ]
            yield Guesses(own, anchors, np.array(network.head_tokens)[rows], logits)


def _rows_of(network: DraftNetwork, own: Conversation) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the head's rows that some draft of a conversation looks at, and the position from which on each does."""
    further = {token: row for row, token in enumerate(network.head_tokens) if row >= network.num_fixed}
    seen: dict[int, int] = {}
    for position, token in enumerate(own.tokens.tolist()):
        if token in further:
            seen.setdefault(further[token], position)
    rows = [*range(network.num_fixed), *seen]
    return np.array(rows, np.int64), np.array([*[0] * network.num_fixed, *seen.values()], np.int64)


def _batches(conversations: Sequence[Conversation]) -> Iterator[list[Conversation]]:
    """Yield the conversations that can be drafted, those of similar length together."""
    useful = [own for own in conversations if len(own.tokens) >= own.num_prompt + 2]
    part: list[Conversation] = []
    for own in sorted(useful, key=lambda own: len(own.tokens)):
        if part and (len(part) + 1) * len(own.tokens) > _BATCH_TOKENS:
            yield part
            part = []
        part.append(own)
    if part:
        yield part
