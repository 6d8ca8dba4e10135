"""The reduced head of a trained drafter: fixed rows, and those of tokens that are already in the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outpace.ops.layers import Array, HeadPart, HeadRows, Weight
from outpace.ops.protocol import Ops


@dataclass(slots=True)
class OwnRows:
    """One sequence's further rows of the head: those of its tokens, in the order in which they came.

    tokens: of all columns of its logits, the fixed rows' first. seen: how many of its tokens were looked at.
    """

    tokens: NDArray[np.int64]
    rows: list[int] = field(default_factory=list)
    seen: int = 0
    packed: Weight | None = None  # None: must be packed again
    ready: HeadRows | None = None


class Head:
    """Which token each column of a sequence's logits stands for.

    head_tokens: the token of each row. num_fixed: rows that every sequence has. pack: makes a matrix of some rows.
    """

    def __init__(self, head_tokens: Sequence[int], num_fixed: int, pack: Callable[[Sequence[int]], Weight]) -> None:
        self._pack = pack
        self._tokens = np.array(head_tokens, np.int64)
        self._num_fixed = num_fixed
        self._row_of = {token: row for row, token in enumerate(head_tokens) if row >= num_fixed}

    def start(self) -> OwnRows:
        """Return those of a sequence without tokens."""
        return OwnRows(self._tokens[: self._num_fixed])

    def look_at(self, own: OwnRows, tokens: Sequence[int]) -> None:
        """Take in tokens that are new in a sequence."""
        new = dict.fromkeys([self._row_of[token] for token in tokens[own.seen :] if token in self._row_of])
        own.seen = len(tokens)
        if added := [row for row in new if row not in own.rows]:
            own.rows += added
            own.tokens = np.concatenate([own.tokens, self._tokens[added]])
            own.packed = own.ready = None

    def head_rows(self, ops: Ops, own: OwnRows) -> HeadRows | None:
        """Return a sequence's further rows as `Ops.guess` takes them; None: it has none."""
        if own.ready is None and own.rows:
            tokens = own.tokens[self._num_fixed :].tolist()
            own.ready = ops.head_rows(HeadPart(self.packed(own), tuple(tokens)))
        return own.ready

    def logits(
        self, ops: Ops, fixed: Array, states: Array, counts: Sequence[int], owns: Sequence[OwnRows]
    ) -> list[NDArray[np.float32]]:
        """Return the logits of each sequence's states, [counts[i], columns], one sequence's behind another's.

        fixed: of the fixed rows, [sum of counts, num_fixed]. states: what the rows are multiplied with, [sum, D].
        """
        ends = np.cumsum(counts)
        rows: list[NDArray[np.float32]] = np.split(ops.numpy(fixed), ends[:-1])
        for i, (end, own) in enumerate(zip(ends.tolist(), owns, strict=True)):
            if own.rows:
                mine = ops.select(states, range(end - counts[i], end)) if len(owns) > 1 else states
                more = ops.numpy(ops.linear(mine, self.packed(own)))
                rows[i] = np.concatenate([rows[i], more], axis=1)
        return rows

    def packed(self, own: OwnRows) -> Weight:
        """Return a sequence's further rows as a matrix."""
        if own.packed is None:
            own.packed = self._pack(own.rows)
        return own.packed
