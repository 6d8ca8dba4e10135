"""What a step of training looks at: padded conversations, the target's states in them, and where drafts begin.

A draft that begins at anchor i knows the tokens up to i, and the hidden states up to i - 1: the target has just given
token i. Its guess at depth k, from 1 on, is token i + k, and the label is the target's distribution at position
i + k - 1. Only the response is drafted, and its first token comes from the prompt's own pass, so for a conversation of
N tokens, num_prompt of them prompt, the anchors are [num_prompt, N - 2], and so are the positions with labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation

Indexes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Depth:
    """The guesses of one depth.

    rows: of the anchors, flattened to [B * A], whose guess the conversation has a token for. labels: for each of
    them, its place among the positions with labels. tokens: what the conversation has there.
    """

    rows: Tensor
    labels: Tensor
    tokens: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B conversations, padded to T tokens, with at most A anchors each.

    tokens: [B, T], 0 behind the end. features: [B, T, taps * D], the tapped states, each RMS-normalised without a
    weight, side by side. anchors: [B, A]; rows that no `Depth` names are padding. final: [P, D], the final norm's
    output at the positions with labels. num_learned: P.
    """

    tokens: Tensor
    features: Tensor
    anchors: Tensor
    depths: tuple[Depth, ...]
    final: Tensor

    @property
    def num_learned(self) -> int:
        """How many positions have labels."""
        return self.final.shape[0]


@torch.no_grad()
def make_batch(
    conversations: Sequence[Conversation],
    target: FrozenTarget,
    taps: Sequence[int],
    num_depths: int,
    rng: np.random.Generator | None = None,
    share: float = 1.0,
) -> Batch | None:
    """Return the batch of some conversations, with labels for guesses up to `num_depths`; None if none has an anchor.

    rng, share: anchors are a random share of the positions, at least one a conversation (None: all of them).
    """
    chosen = [own for own in conversations if len(own.tokens) >= own.num_prompt + 2]
    if not chosen:
        return None
    last = target.config.num_layers
    states = target.states([own.tokens for own in chosen], sorted({*taps, last}))
    lengths = np.array([len(own.tokens) for own in chosen])
    prompts = np.array([own.num_prompt for own in chosen])
    tokens = np.zeros((len(chosen), lengths.max()), np.int64)
    for row, own in zip(tokens, chosen, strict=True):
        row[: len(own.tokens)] = own.tokens
    anchors, is_anchor = _anchors(lengths, prompts, rng, share)
    final = [_norm(x[p : n - 1], target) for x, p, n in zip(states[last], prompts, lengths, strict=True)]
    return Batch(
        torch.from_numpy(tokens).to(target.device),
        _features(states, taps, target, int(lengths.max())),
        torch.from_numpy(anchors).to(target.device),
        tuple(_depth(k, tokens, anchors, is_anchor, lengths, prompts, target.device) for k in range(1, num_depths + 1)),
        torch.cat(final) * target.final_norm,
    )


def _anchors(
    lengths: Indexes, prompts: Indexes, rng: np.random.Generator | None, share: float
) -> tuple[Indexes, NDArray[np.bool_]]:
    """Return the anchors of each conversation in ascending order, [B, A], and which of them are no padding."""
    found = []
    for length, num_prompt in zip(lengths, prompts, strict=True):
        own = np.arange(num_prompt, length - 1)
        if rng is not None:
            own = np.sort(rng.choice(own, int(np.ceil(share * len(own))), replace=False))
        found.append(own)
    widest = max(len(own) for own in found)
    anchors, is_anchor = np.ones((len(found), widest), np.int64), np.zeros((len(found), widest), np.bool_)
    for i, own in enumerate(found):
        anchors[i, : len(own)], is_anchor[i, : len(own)] = own, True
    return anchors, is_anchor


def _depth(
    k: int,
    tokens: Indexes,
    anchors: Indexes,
    is_anchor: NDArray[np.bool_],
    lengths: Indexes,
    prompts: Indexes,
    device: torch.device,
) -> Depth:
    where, which = np.nonzero(is_anchor & (anchors + k < lengths[:, None]))
    i = anchors[where, which]
    firsts = np.cumsum(lengths - 1 - prompts) - (lengths - 1 - prompts)
    rows = where * anchors.shape[1] + which
    labels = firsts[where] + i + k - 1 - prompts[where]
    return Depth(*(torch.from_numpy(x).to(device) for x in (rows, labels, tokens[where, i + k])))


def _features(states: dict[int, list[Tensor]], taps: Sequence[int], target: FrozenTarget, size: int) -> Tensor:
    normed = [
        torch.cat([_norm(x, target) for x in per_tap], dim=-1)
        for per_tap in zip(*(states[tap] for tap in taps), strict=True)
    ]
    return torch.stack([F.pad(x, (0, 0, 0, size - len(x))) for x in normed])


def _norm(x: Tensor, target: FrozenTarget) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], None, target.config.eps)
