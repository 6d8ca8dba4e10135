"""The whole cache: groups of layers over one pool of blocks, open tables, the prefix index."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from outpace.cache.group import TARGET
from outpace.cache.pool import BlockPool
from outpace.cache.prefix import PrefixIndex, root_digest
from outpace.cache.table import BlockTable
from outpace.ops.layers import KV
from outpace.ops.protocol import Ops
from outpace.types import KVSpec


class Cache:
    """All blocks of one model's KV cache, and of the drafter networks that follow it.

    capacity: the maximum number of blocks. Storage starts small and doubles as blocks are needed.
    max_window: the model's largest sliding window, if every layer has one. fingerprint: the model's identity, for the
    prefix index. share_prefixes: whether there is one.
    """

    def __init__(
        self,
        ops: Ops,
        spec: KVSpec,
        *,
        capacity: int,
        max_window: int | None = None,
        fingerprint: bytes = b"",
        share_prefixes: bool = True,
    ) -> None:
        self.spec = spec  # of the target
        self._fingerprint = fingerprint
        self._index = PrefixIndex() if share_prefixes else None
        self._pool = BlockPool(ops, spec, capacity, self._index, max_window)
        self._tables: set[BlockTable] = set()

    def add_group(
        self, name: str, ops: Ops, spec: KVSpec, max_window: int | None = None, *, is_tapped: bool = False
    ) -> None:
        """Add the layers of a drafter network: storage for every block that exists, growing with the pool's.

        `spec` must have the cache's block size, and `name` be new. What the allocation raises is passed on, and
        nothing has changed then. Open tables keep their sliding window, which may be too small for the new group.
        is_tapped: the network reads the target's hidden states, so what the target has computed it cannot catch up.
        """
        self._pool.add_group(name, ops, spec, max_window, is_tapped)

    def unused_name(self, kind: str) -> str:
        """Return a name that no group has: `kind`, "`kind` 2", ..."""
        names = itertools.chain([kind], (f"{kind} {number}" for number in itertools.count(2)))
        return next(name for name in names if name not in self.groups)

    def kv(self, group: str = TARGET) -> KV:
        """Return the storage of a group, as its ops handle it."""
        return self._pool.groups[group].kv

    def spec_of(self, group: str = TARGET) -> KVSpec:
        """Return the geometry of a group's keys and values."""
        return self._pool.groups[group].spec

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of all groups, the target's first."""
        return tuple(self._pool.groups)

    @property
    def block_size(self) -> int:
        """Slots in a block."""
        return self.spec.block_size

    @property
    def capacity(self) -> int:
        """The maximum number of blocks this cache may take."""
        return self._pool.capacity

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a slot in all groups together."""
        return sum(group.spec.bytes_per_token for group in self._pool.groups.values())

    @property
    def max_window(self) -> int | None:
        """The largest sliding window of any group, if every layer of every group has one."""
        windows = [group.max_window for group in self._pool.groups.values()]
        sliding = [window for window in windows if window is not None]
        return max(sliding) if len(sliding) == len(windows) else None

    @property
    def num_available(self) -> int:
        """Blocks that sequences could get now: unused, free, and idle ones."""
        return self._pool.num_available

    def open(self, tokens: Sequence[int], salt: bytes = b"", *, is_tapped: bool = False) -> BlockTable:
        """Return a table whose past is the longest known beginning of `tokens`, in whole blocks.

        At least the last token stays pending, so that a pass has something to compute. The caller closes the
        table. Sequences of different salts never share blocks. is_tapped: a drafter reads the target's hidden states:
        take only blocks that all such drafters' groups have computed; the others are computed once more.
        """
        root = root_digest(self._fingerprint, self.spec, salt)
        table = BlockTable(self._pool, self._index, self.max_window, root, self._tables)
        groups = [name for name, group in self._pool.groups.items() if group.is_tapped] if is_tapped else []
        table.adopt(tokens[:-1], groups)
        return table

    def check(self) -> None:
        """Assert every invariant of the cache. Slow: it recomputes all digests."""
        for table in self._tables:
            table.check()
        self._pool.check([block for block in table.blocks if block >= 0] for table in self._tables)
        if self._index is not None:
            self._index.check()
