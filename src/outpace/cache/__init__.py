"""The paged KV cache: keys and values of past tokens, in blocks that texts share.

A forward pass writes the keys and values of every token it is given, guesses too. So a text's slots have three parts
(half-open intervals; a slot holds one token's keys and values in all layers; block_size is 4 in this picture):

    slot      0           4           8           12    14    16          20
              | shared prefix         | own             | pending, draft  |
              | committed: slot s has position s        | provisional     |
              0                                         length            length + n
    block     [     7     |     2     |     9     |     5     |     3     ]
    table     blocks = [7, 2, 9, 5, 3]: slot s lives in block blocks[s // 4], at offset s % 4

One step of one text:

    table = cache.open(tokens)          # the past that other texts have left behind: whole blocks, never the last token
    table.reserve(n)                    # slots [length, length + n) may be written
    ...                                 # a forward pass writes them: pending tokens, then the draft's nodes
    table.commit(path, tokens)          # slots length + path[i] become positions length + i; the others are forgotten
    table.close()

**Written is not yet remembered.** Nothing is shared, found by others or freed by a sliding window before it is
committed. So a rejected draft leaves no trace, and every option of the cache works with drafts. When a commit fills a
block, three things happen: its digest (a SHA-256 chain over all tokens up to its end, the model, the KV format and an
optional salt) enters the prefix index; or, if an equal block is there already, the table uses that one and gives its
own back (the first wins: equal tokens have equal bits, by design); and blocks below the smallest position that any
layer still needs are given back.

Blocks are counted: a table that forks, or opens on a known beginning, adds a reference. Whoever writes into a block
that others hold or find copies its used part first. A block that no table holds but the index finds is *idle*: it
counts as available, and the one idle for the longest is overwritten when nothing else is left.

`prefix.py` says what a block holds, `pool.py` who holds it, `table.py` where one text's slots are. Ops own the
storage: the cache only asks them to allocate, grow and move slots. Calls are not thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence

from outpace.cache.pool import BlockPool
from outpace.cache.prefix import PrefixIndex, root_digest
from outpace.cache.table import BlockTable
from outpace.ops.protocol import KV, Ops
from outpace.types import KVSpec

__all__ = ["BlockTable", "Cache"]


class Cache:
    """All blocks of one model's KV cache.

    capacity: the most blocks it may take. Storage starts small and doubles as blocks are needed.
    lookback: the largest sliding window, if every layer has one: a token at position p needs positions > p - lookback.
    fingerprint: the model's identity, for the prefix index. share: whether there is one.
    """

    def __init__(
        self,
        ops: Ops,
        spec: KVSpec,
        *,
        capacity: int,
        lookback: int | None = None,
        fingerprint: bytes = b"",
        share: bool = True,
    ) -> None:
        assert lookback is None or lookback >= 1, "a token always sees itself"
        self.spec = spec
        self._lookback = lookback
        self._fingerprint = fingerprint
        self._index = PrefixIndex() if share else None
        self._pool = BlockPool(ops, spec, capacity, self._index)
        self._tables: set[BlockTable] = set()

    @property
    def kv(self) -> KV:
        """The storage, as ops handle it."""
        return self._pool.kv

    @property
    def block_size(self) -> int:
        """Slots in a block."""
        return self.spec.block_size

    @property
    def capacity(self) -> int:
        """The most blocks this cache may take."""
        return self._pool.capacity

    @property
    def num_available(self) -> int:
        """Blocks that texts could get now: unused, free, and idle ones."""
        return self._pool.num_available

    def open(self, tokens: Sequence[int], salt: bytes = b"") -> BlockTable:
        """Return a table whose past is the longest known beginning of `tokens`, in whole blocks.

        At least the last token stays pending, so that a pass has something to compute. The caller closes the
        table. Texts of different salts never share blocks.
        """
        root = root_digest(self._fingerprint, self.spec, salt)
        table = BlockTable(self._pool, self._index, self._lookback, root, self._tables)
        table.adopt(tokens[:-1])
        return table

    def check(self) -> None:
        """Assert every invariant of the cache. Slow: it recomputes all digests."""
        for table in self._tables:
            table.check()
        self._pool.check([block for block in table.blocks if block >= 0] for table in self._tables)
        if self._index is not None:
            self._index.check()
