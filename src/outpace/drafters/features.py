"""The target's hidden states of each sequence, kept for a drafter until it has read them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.cache import BlockTable, Cache
from outpace.ops.layers import Array
from outpace.ops.protocol import Ops
from outpace.runner import Pass, ScheduledSequence

Hidden = tuple[Array, ...]  # the tapped layers' states in one pass, [T, D] each
Row = tuple[Hidden, int]  # one position's place in them


@dataclass(slots=True)
class HeldRows:
    """One sequence's hidden states of the positions [first, end), as far as they may still be needed."""

    first: int = 0
    rows: list[Row] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.first + len(self.rows)

    def of(self, begin: int, end: int) -> list[Row]:
        """Return the rows of the positions [begin, end), which are held."""
        return self.rows[begin - self.first : end - self.first]

    def cut(self, position: int) -> None:
        """Forget the rows from a position on; go on from there."""
        del self.rows[max(position - self.first, 0) :]
        if self.end != position:
            self.rows.clear()
        if not self.rows:
            self.first = position

    def drop(self, position: int) -> None:
        """Forget the rows before a position."""
        count = min(max(position - self.first, 0), len(self.rows))
        del self.rows[:count]
        self.first += count


def runs_of(rows: Sequence[Row]) -> list[tuple[Hidden, list[int]]]:
    """Return the arrays that rows lie in, one after another, each with its rows."""
    runs: list[tuple[Hidden, list[int]]] = []
    last: Hidden | None = None
    for hidden, row in rows:
        if hidden is not last:
            runs.append((hidden, []))
            last = hidden
        runs[-1][1].append(row)
    return runs


class HiddenStates:
    """The hidden states of all sequences of one drafter, by sequence id.

    taps: the target's layers. Rows are the target's own arrays; whoever has read them drops them.
    """

    def __init__(self, ops: Ops, cache: Cache, taps: Sequence[int]) -> None:
        self._ops, self._taps = ops, tuple(taps)
        self._held: dict[int, HeldRows] = {}
        self._ends = _Ends(ops, cache.block_size, cache.capacity)

    def __len__(self) -> int:
        return len(self._held)

    def of(self, sequence: int) -> HeldRows:
        """Return what is held of a sequence."""
        return self._held.setdefault(sequence, HeldRows())

    def keep(self, passed: Pass) -> None:
        """Keep the rows of what a pass has committed, each sequence's own."""
        hidden = tuple(passed.hidden[tap] for tap in self._taps)
        for part, rows in zip(passed.batch, passed.rows, strict=True):
            held = self.of(part.id)
            held.cut(part.start)
            self.begin(held, part.table, part.start)
            path = part.verification.path if part.verification is not None else ()
            own = [rows[i] for i in range(part.num_pending)] + [rows[part.num_pending + node] for node in path]
            held.rows += [(hidden, row) for row in own]
            self._ends.keep(part, hidden, own)

    def begin(self, held: HeldRows, table: BlockTable, start: int) -> None:
        """Find the hidden state before position `start`, if there are none: a prefix or a fork starts in the middle.

        Other sequences with the same beginning may have left it behind.
        """
        if (not held.rows or held.end < start) and (row := self._ends.find(table, start)) is not None:
            held.first, held.rows = start - 1, [row]

    def gather(self, rows: Sequence[Row]) -> list[Array]:
        """Return rows of several passes' hidden states as one array for each tap, [rows, D]."""
        parts = [[self._ops.select(tap, own) for tap in hidden] for hidden, own in runs_of(rows)]
        if len(parts) == 1:
            return parts[0]
        return [self._ops.stack(taps) for taps in zip(*parts, strict=True)]

    def forget(self, sequence: int) -> None:
        """Drop everything of a sequence; others with the same beginning may still go on from its ends."""
        self._held.pop(sequence, None)


class _Ends:
    """Hidden states at places where another sequence may go on: ends of blocks, and of passes that compute prompts.

    They are known by the digest of all tokens before; the `capacity` latest are kept.
    """

    def __init__(self, ops: Ops, block_size: int, capacity: int) -> None:
        self._ops, self._block_size, self._capacity = ops, block_size, capacity
        self._rows: OrderedDict[bytes, Row] = OrderedDict()

    def keep(self, part: ScheduledSequence, hidden: Hidden, rows: Sequence[int]) -> None:
        """Keep what a part of a pass brought; rows: of the committed positions from its start on."""
        end, size = part.start + len(rows), self._block_size
        if part.table.length < end:
            return  # it keeps no cache
        lengths = list(range((part.start // size + 1) * size, end + 1, size))
        if part.verification is None and lengths[-1:] != [end]:
            lengths.append(end)
        if lengths:
            picked = [rows[length - part.start - 1] for length in lengths]
            copies = tuple(self._ops.select(tap, picked) for tap in hidden)
            for i, length in enumerate(lengths):
                self._rows[part.table.digest(length)] = (copies, i)
            while len(self._rows) > self._capacity:
                self._rows.popitem(last=False)

    def find(self, table: BlockTable, length: int) -> Row | None:
        """Return the hidden state of the last of the first `length` committed tokens, if it is known."""
        return self._rows.get(table.digest(length)) if 0 < length <= table.length else None
