"""Tokens per step as decoding will have them, from text that the target has written: no token is generated.

Greedy text is what the target always writes after its prompt, and so is sampled text under its own noise. A draft is
therefore accepted as far as it equals the text, and the walk over a text is the one that decoding takes: a step writes
what was accepted and one token more. The first step follows the prompt and has no draft, as in `Stats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outpace.train.batch import Batch, make_batch
from outpace.train.corpus import Conversation
from outpace.train.networks.network import DraftNetwork
from outpace.train.target import FrozenTarget

CHAINS = (1, 2, 3, 4, 5, 7)
_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """Texts of one kind: how many there are, their response tokens, and tokens per step by length of the chain."""

    kind: str
    sampled: bool
    texts: int
    tokens: int
    chains: dict[int, float]


@dataclass(frozen=True, slots=True)
class Simulation:
    """Tokens per step of a drafter on some texts, a row for each kind, greedy and sampled apart."""

    rows: tuple[Row, ...]

    def mean(self, chain: int = 4, sampled: bool | None = None) -> float:
        """Return the mean over the rows (of greedy or sampled text alone, where `sampled` is given)."""
        chosen = [row.chains[min(chain, max(row.chains))] for row in self.rows if sampled in (None, row.sampled)]
        return float(np.mean(chosen)) if chosen else 1.0


@torch.no_grad()
def simulate(
    network: DraftNetwork,
    target: FrozenTarget,
    conversations: Sequence[Conversation],
    *,
    chains: Iterable[int] = CHAINS,
    min_confidence: float = 0.1,
) -> Simulation:
    """Return what a drafter brings on some conversations, with the head as decoding has it.

    That is its fixed rows, and those of tokens that are in the sequence by then. A chain ends before a guess that
    brings the product of confidences below `min_confidence`. Use a network that was read from its file: its numbers
    are rounded as decoding has them.
    """
    lengths = sorted({min(chain, network.max_depth or chain) for chain in chains})
    counts: dict[tuple[str, bool], list[tuple[int, list[int]]]] = {}
    for part in _batches(conversations):
        batch = make_batch(part, target, network.taps, lengths[-1])
        if batch is None:
            continue
        states = network.states(batch, lengths[-1])
        for b, own in enumerate(conversation for conversation in part if _num_anchors(conversation) > 0):
            hits, stops = _guesses(network, batch, [x[b, : _num_anchors(own)] for x in states], own, min_confidence)
            steps = [num_steps(hits, stops, chain) for chain in lengths]
            counts.setdefault((own.kind, own.sampled), []).append((len(own.tokens) - own.num_prompt, steps))
    rows = []
    for (kind, sampled), texts in sorted(counts.items()):
        tokens = sum(count for count, _ in texts)
        totals = np.sum([steps for _, steps in texts], axis=0)
        rows.append(
            Row(
                kind,
                sampled,
                len(texts),
                tokens,
                {length: tokens / int(total) for length, total in zip(lengths, totals, strict=True)},
            )
        )
    return Simulation(tuple(rows))


def num_steps(hits: NDArray[np.bool_], stops: NDArray[np.int64], chain: int) -> int:
    """Return the steps that a response of len(hits) + 1 tokens takes.

    hits: [A, L], whether the guess at depth k after anchor i is the text's token. stops: [A], guesses that a chain
    makes before its confidence is gone.
    """
    depth = hits.shape[1]
    right = np.where(hits.all(axis=1), depth, hits.argmin(axis=1))
    accepted = np.minimum(np.minimum(right, stops), chain)
    steps = 1
    i = 0
    while i < len(hits):
        i += int(accepted[i]) + 1
        steps += 1
    return steps


def _guesses(
    network: DraftNetwork, batch: Batch, states: Sequence[Tensor], own: Conversation, min_confidence: float
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which guesses are right, [A, L], and how many a chain makes, [A]."""
    anchors = np.arange(own.num_prompt, len(own.tokens) - 1)
    rows, first_seen = _rows_of(network, own)
    columns = torch.from_numpy(rows).to(network.head.device)
    head = network.head[columns]
    tokens = np.array(network.head_tokens)[rows]
    is_known = torch.from_numpy(first_seen[None] <= anchors[:, None]).to(head.device)
    hits = np.zeros((len(anchors), len(states)), np.bool_)
    product = np.ones(len(anchors))
    stops = np.zeros(len(anchors), np.int64)
    for k, x in enumerate(states, 1):
        logits = (x.float() @ head.T).masked_fill(~is_known, float("-inf"))
        best = torch.log_softmax(logits, dim=1).max(dim=1)
        guesses = tokens[best.indices.cpu().numpy()]
        there = anchors + k < len(own.tokens)
        hits[there, k - 1] = guesses[there] == own.tokens[(anchors + k)[there]]
        product *= np.exp(best.values.double().cpu().numpy())
        stops += (product >= min_confidence) & (stops == k - 1)
    return hits, stops


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
    useful = sorted((own for own in conversations if _num_anchors(own) > 0), key=lambda own: len(own.tokens))
    part: list[Conversation] = []
    for own in useful:
        if part and (len(part) + 1) * len(own.tokens) > _BATCH_TOKENS:
            yield part
            part = []
        part.append(own)
    if part:
        yield part


def _num_anchors(own: Conversation) -> int:
    return max(len(own.tokens) - 1 - own.num_prompt, 0)
