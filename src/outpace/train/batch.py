"""What a step of training looks at: padded conversations, the target's states in them, and where drafts begin.

A draft that begins at anchor i knows the tokens up to i, and the hidden states up to i - 1: the target has just given
token i. Its guess at depth k, from 1 on, is token i + k, and the label is the target's distribution at position
i + k - 1. Only the response is drafted, and its first token comes from the prompt's own pass, so for a conversation of
N tokens, num_prompt of them prompt, the anchors are [num_prompt, N - 2], and so are the positions with labels.

Which those are is planned in NumPy, beside the device's work (`feeding.py`); a plan then travels in one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    weight, side by side; behind a conversation's end they mean nothing. anchors: [B, A]; rows that no `Depth` names are
    padding. final: [P, D], the final norm's output at the positions with labels. num_learned: P.
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


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A batch without the target's states: all of it is index, and on the host.

    lengths: [B], of the conversations. arrays: tokens [B, T], anchors [B, A], the places of the positions with labels
    among the flattened B * T, and for each depth the three of `Depth`; one after another in `flat`.
    """

    lengths: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    flat: Tensor

    @classmethod
    def of(
        cls,
        conversations: Sequence[Conversation],
        num_depths: int,
        rng: np.random.Generator | None = None,
        share: float = 1.0,
        *,
        is_aligned: bool = False,
    ) -> Plan | None:
        """Return the plan for some conversations, with labels for guesses up to `num_depths`; None without an anchor.

        rng, share: anchors are a random share of the positions, at least one a conversation (None: all of them).
        is_aligned: T is 1 more than a multiple of 8, so that rows of T - 1 slots begin where matrix units like them.
        """
        chosen = [own for own in conversations if len(own.tokens) >= own.num_prompt + 2]
        if not chosen:
            return None
        lengths = np.array([len(own.tokens) for own in chosen])
        prompts = np.array([own.num_prompt for own in chosen])
        size = int(lengths.max())
        tokens = np.zeros((len(chosen), size + (1 - size) % 8 if is_aligned else size), np.int64)
        for row, own in zip(tokens, chosen, strict=True):
            row[: len(own.tokens)] = own.tokens
        anchors, is_anchor = _anchors(lengths, prompts, rng, share)
        places = np.arange(tokens.shape[1])
        labelled = np.flatnonzero((places >= prompts[:, None]) & (places < lengths[:, None] - 1))
        arrays = [tokens, anchors, labelled]
        for k in range(1, num_depths + 1):
            arrays += _depth(k, tokens, anchors, is_anchor, lengths, prompts)
        flat = torch.from_numpy(np.concatenate([x.ravel() for x in arrays]))
        return cls(tuple(lengths.tolist()), tuple(x.shape for x in arrays), flat)

    def pinned(self) -> Plan:
        """Return the plan in memory from which an accelerator, if there is one, copies while the host goes on."""
        if not torch.accelerator.is_available():
            return self
        return Plan(self.lengths, self.shapes, self.flat.pin_memory())

    def on(self, device: torch.device) -> list[Tensor]:
        """Return the arrays on a device, copied in one piece."""
        flat = self.flat.to(device, non_blocking=True)
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        return [x.view(shape) for x, shape in zip(torch.split(flat, sizes), self.shapes, strict=True)]


@torch.no_grad()
def look(plan: Plan, target: FrozenTarget, taps: Sequence[int]) -> Batch:
    """Return the batch that a plan becomes with the target's states."""
    tokens, anchors, labelled, *depths = plan.on(target.device)
    last = target.config.num_layers
    states = target.padded(tokens, plan.lengths, sorted({*taps, last}))
    normed = {tap: F.rms_norm(x, x.shape[-1:], None, target.config.eps) for tap, x in states.items()}
    return Batch(
        tokens,
        torch.cat([normed[tap] for tap in taps], dim=-1),
        anchors,
        tuple(Depth(*depths[i : i + 3]) for i in range(0, len(depths), 3)),
        normed[last].flatten(0, 1).index_select(0, labelled) * target.final_norm,
    )


def make_batch(
    conversations: Sequence[Conversation],
    target: FrozenTarget,
    taps: Sequence[int],
    num_depths: int,
    rng: np.random.Generator | None = None,
    share: float = 1.0,
) -> Batch | None:
    """Return the batch of some conversations, planned and looked at on the spot; None without an anchor."""
    plan = Plan.of(conversations, num_depths, rng, share)
    return None if plan is None else look(plan, target, taps)


def by_length(conversations: Iterable[Conversation], tokens: int = 4096) -> Iterator[list[Conversation]]:
    """Yield conversations of similar length together, at most `tokens` tokens of them, padding included."""
    part: list[Conversation] = []
    for own in sorted(conversations, key=lambda own: len(own.tokens)):
        if part and (len(part) + 1) * len(own.tokens) > tokens:
            yield part
            part = []
        part.append(own)
    if part:
        yield part


def _anchors(
    lengths: Indexes, prompts: Indexes, rng: np.random.Generator | None, share: float
) -> tuple[Indexes, NDArray[np.bool_]]:
    """Return the anchors of each conversation in ascending order, [B, A], and which of them are no padding."""
    if rng is None:
        counts = lengths - 1 - prompts
        is_anchor = np.arange(counts.max()) < counts[:, None]
        return np.where(is_anchor, prompts[:, None] + np.arange(counts.max()), 1), is_anchor
    found = []
    for length, num_prompt in zip(lengths, prompts, strict=True):
        own = np.arange(num_prompt, length - 1)
        found.append(np.sort(rng.choice(own, int(np.ceil(share * len(own))), replace=False)))
    widest = max(len(own) for own in found)
    anchors, is_anchor = np.ones((len(found), widest), np.int64), np.zeros((len(found), widest), np.bool_)
    for i, own in enumerate(found):
        anchors[i, : len(own)], is_anchor[i, : len(own)] = own, True
    return anchors, is_anchor


def _depth(
    k: int, tokens: Indexes, anchors: Indexes, is_anchor: NDArray[np.bool_], lengths: Indexes, prompts: Indexes
) -> list[Indexes]:
    """Return the arrays of a `Depth`."""
    where, which = np.nonzero(is_anchor & (anchors + k < lengths[:, None]))
    i = anchors[where, which]
    firsts = np.cumsum(lengths - 1 - prompts) - (lengths - 1 - prompts)
    return [where * anchors.shape[1] + which, firsts[where] + i + k - 1 - prompts[where], tokens[where, i + k]]
