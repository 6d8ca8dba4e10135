"""The output matrix of a drafter: rows for some tokens only, the likeliest first; some of them always looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outpace.ops.layers import Weight
from outpace.ops.protocol import Ops
from outpace.types import RawTensor
from outpace.weights.trained import Entries


@dataclass(frozen=True, slots=True, eq=False)
class ReducedHead:
    """An output matrix [rows, D]. fixed: its first rows, packed; the others are packed for those who need them."""

    ops: Ops
    fixed: Weight
    stored: RawTensor | None  # all rows; None: all of them are fixed

    @staticmethod
    def of(ops: Ops, stored: RawTensor, num_fixed: int) -> ReducedHead:
        """Return the head whose first `num_fixed` rows everybody looks at."""
        return ReducedHead(ops, ops.pack(rows_of(stored, range(num_fixed))), stored)

    def pack(self, rows: Sequence[int]) -> Weight:
        """Return some rows as a matrix."""
        assert self.stored is not None, "there are no rows but the fixed ones"
        return self.ops.pack(rows_of(self.stored, rows))


def rows_of(tensor: RawTensor, rows: Sequence[int]) -> RawTensor:
    """Return some rows of a stored matrix, in the order given."""
    picked = tensor.data[rows.start : rows.stop] if isinstance(rows, range) else tensor.data[list(rows)]
    return RawTensor(tensor.name, picked, tensor.format, (len(rows), tensor.shape[1]))


def read_head(entries: Entries, vocab_size: int) -> tuple[int, tuple[int, ...]]:
    """Return a drafter's `num_fixed` and `head_tokens`: how many rows are always looked at, and each row's token.

    Where the entry `head` says that it has none, the head is the target's, with all of its rows.
    """
    num_fixed, tokens = entries.count("num_fixed"), entries.counts("head_tokens")
    if not tokens or len(set(tokens)) < len(tokens) or max(tokens) >= vocab_size:
        raise entries.error("head_tokens", f"must be different ids in [0, {vocab_size})")
    if not 1 <= num_fixed <= len(tokens):
        raise entries.error("num_fixed", f"must be in [1, {len(tokens)}], is {num_fixed}")
    if not entries.flag("head", True) and (num_fixed < len(tokens) or tokens != tuple(range(vocab_size))):
        raise entries.error("head", "is the target's, so its rows must be the target's too, in order")
    return num_fixed, tokens
