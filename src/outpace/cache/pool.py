"""Who holds a block: ids and reference counts, over storage that grows as it is needed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from heapq import heappop, heappush

from outpace.cache.group import TARGET, Group
from outpace.cache.prefix import PrefixIndex
from outpace.errors import UsageError
from outpace.ops.protocol import Ops
from outpace.types import KVSpec

FIRST_BLOCKS = 16  # storage of a new pool; it doubles whenever it is full


class BlockPool:
    """Hands out blocks and takes them back. A block is in exactly one of four states:

        unused   never handed out; storage for it may not exist yet
        free     given back, and nothing finds its contents
        held     by `ref_counts[block]` > 0 tables
        idle     held by no table, but the prefix index still finds it: evicted when nothing else is left

    Unused and free blocks go first (the lowest id), then storage grows, then the block that has been idle for the
    longest is evicted. Tables give blocks back last one first, and hold every block before one that they hold
    (without a sliding window), so a sequence loses its end before its beginning.

    groups: the layers that have storage in these blocks; it grows for all of them together.
    """

    def __init__(
        self, ops: Ops, spec: KVSpec, capacity: int, index: PrefixIndex | None, max_window: int | None = None
    ) -> None:
        if capacity < 1:
            raise UsageError(f"a KV cache needs room for at least 1 block ({spec.block_size} tokens), got {capacity}")
        self.block_size = spec.block_size
        self.capacity = capacity
        self.size = min(capacity, FIRST_BLOCKS)  # blocks of storage that exist
        self.target = Group(TARGET, ops, spec, max_window, self.size)
        self.groups = {TARGET: self.target}
        self._growth = threading.Lock()  # groups may be added from any thread
        self.ref_counts = [0] * self.size
        self._index = index
        self._num_used = 0  # ids from here on are unused
        self._free: list[int] = []  # heap
        self._idle: dict[int, None] = {}  # in the order in which they became idle
        self._num_held = 0

    def add_group(self, name: str, ops: Ops, spec: KVSpec, max_window: int | None, is_tapped: bool = False) -> None:
        """Add a set of layers, with storage for the blocks that exist. May be called from any thread."""
        assert name not in self.groups, f"there is a group {name!r} already"
        assert spec.block_size == self.block_size, "all groups have blocks of the same size"
        with self._growth:
            self.groups = {**self.groups, name: Group(name, ops, spec, max_window, self.size, is_tapped)}

    @property
    def num_available(self) -> int:
        """Blocks that `take` can give: unused, free and idle ones."""
        return self.capacity - self._num_held

    def take(self, count: int) -> list[int]:
        """Return `count` blocks that nobody else holds or finds, each with one reference.

        What growing the storage raises (no memory) is passed on, and nothing has changed then.
        """
        assert count <= self.num_available, "ask num_available first"
        self._grow(self._num_used + count - len(self._free))
        self._num_held += count
        return [self._take_one() for _ in range(count)]

    def _grow(self, size: int) -> None:
        if size > self.size and self.size < self.capacity:
            size = min(max(size, 2 * self.size), self.capacity)
            with self._growth:
                for group in self.groups.values():
                    group.grow(size)
                self.ref_counts += [0] * (size - self.size)
                self.size = size

    def _take_one(self) -> int:
        if self._free:
            block = heappop(self._free)
        elif self._num_used < self.size:
            block = self._num_used
            self._num_used += 1
        else:
            assert self._index is not None
            block = next(iter(self._idle))
            del self._idle[block]
            self._index.forget(block)
        self.ref_counts[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Add a reference to a held or idle block."""
        if self.ref_counts[block] == 0:
            del self._idle[block]
            self._num_held += 1
        self.ref_counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each block; the first is the first to be evicted."""
        for block in blocks:
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                self._num_held -= 1
                if self.is_findable(block):
                    self._idle[block] = None
                else:
                    heappush(self._free, block)

    def is_findable(self, block: int) -> bool:
        """Return whether the prefix index knows the block, so that its contents must stay."""
        return self._index is not None and block in self._index

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Assert that counts match the blocks that tables hold, and that no block is lost or in two states."""
        counts = Counter(block for blocks in tables for block in blocks)
        assert self.ref_counts == [counts[block] for block in range(self.size)], "reference counts match the tables"
        held = set(counts)
        assert len(held) == self._num_held
        states = sorted([*held, *self._idle, *self._free])
        assert states == list(range(self._num_used)), "every used block is held, idle or free, and only one of them"
        assert self._num_used <= self.size <= self.capacity
        assert all(group.num_blocks >= self.size for group in self.groups.values()), "storage exists in every group"
        assert all(self.is_findable(block) for block in self._idle), "idle blocks can be found"
        assert not any(self.is_findable(block) for block in self._free), "free blocks cannot be found"
        assert self._index is None or len(self._index) <= len(held) + len(self._idle), "unused blocks are unknown"
