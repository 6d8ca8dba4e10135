"""One text's blocks: slots are written provisionally, and only `commit` makes them its past."""

from __future__ import annotations

from collections.abc import Sequence
from operator import lt

from outpace.cache.pool import BlockPool
from outpace.cache.prefix import PrefixIndex, chain_digest
from outpace.errors import CacheError


class BlockTable:
    """Where one text's keys and values are. Made by `Cache.open` and `fork`, given back by `close`.

    blocks: slot s (position s, once committed) lives in blocks[s // block_size]; -1 where it was freed.
    length: committed slots. Both are read by everybody and changed by this class only.
    """

    __slots__ = (
        "_digests",
        "_first",
        "_index",
        "_is_open",
        "_lookback",
        "_pool",
        "_reserved",
        "_room",
        "_root",
        "_tables",
        "_tokens",
        "_wake",
        "blocks",
        "length",
    )

    def __init__(
        self, pool: BlockPool, index: PrefixIndex | None, lookback: int | None, root: bytes, tables: set[BlockTable]
    ) -> None:
        self.blocks: list[int] = []
        self.length = 0
        self._pool, self._index, self._lookback, self._root = pool, index, lookback, root
        self._tables = tables  # all open tables of the cache
        self._tokens: list[int] = []  # committed
        self._digests: list[bytes] = []  # of the committed full blocks, while there is an index
        self._first = 0  # blocks before this one were freed
        self._reserved = 0  # provisional slots
        self._room = 0  # slots before this one can be written without further ado, if they are not committed
        self._wake = 0  # a commit that reaches this length has more to do than to count
        self._is_open = True
        tables.add(self)

    # -- the past grows ----------------------------------------------------------------------------

    @property
    def holders(self) -> list[int]:
        """How many tables hold each of `blocks`, this one included; 0 where it was freed."""
        return [self._pool.refs[block] if block >= 0 else 0 for block in self.blocks]

    def blocks_for(self, count: int) -> int:
        """Return how many of the cache's available blocks `reserve(count)` needs at least."""
        size = self._pool.block_size
        new = max(0, -(-(self.length + count) // size) - len(self.blocks))
        return new + (self._tail_used() > 0 and self._pool.refs[self.blocks[self.length // size]] > 1)

    def reserve(self, count: int) -> None:
        """Make the provisional slots [length, length + count) writable, count > 0; forget earlier provisional ones.

        Allocates blocks, and copies a partly used last block that others hold or find. Raises CacheError, with
        nothing changed, where there is no room.
        """
        assert self._is_open
        assert count > 0
        if self.length + count > self._room:
            self._make_room(count)
        self._reserved = count

    def commit(self, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Keep the provisional slots length + path[i] as positions length + i; forget the others.

        path: strictly ascending, so a slot only moves down, into a place whose contents are done with. tokens: their
        ids. Full blocks become shareable (where an equal one already is, this table takes that and gives its own
        back); provisional blocks beyond, and blocks that no layer needs any more, are given back.
        """
        count = len(path)
        assert self._is_open
        assert count == len(tokens)
        if count:
            assert 0 <= path[0] <= path[-1] < self._reserved, "only reserved slots can be kept"
            assert all(map(lt, path, path[1:])), "a path ascends"
            if path[-1] >= count:
                self._compact(path)
        self._tokens += tokens
        self._reserved = 0
        self.length += count
        if self.length >= self._wake:
            self._settle()

    def _tail_used(self) -> int:
        return self.length % self._pool.block_size

    def _make_room(self, count: int) -> None:
        pool, size = self._pool, self._pool.block_size
        need = self.blocks_for(count)
        if need > pool.num_available:
            raise CacheError(
                f"no room for {count} more tokens after {self.length}: they need {need} more blocks of {size} tokens, "
                f"and {pool.num_available} of the cache's {pool.capacity} are available; "
                f"use a shorter text, fewer texts at once, or a larger cache"
            )
        if self._tail_used():
            self._own_tail(has_spare=need < pool.num_available)
        self.blocks += pool.take(max(0, -(-(self.length + count) // size) - len(self.blocks)))
        self._room = len(self.blocks) * size
        self._wake = 0  # provisional blocks may have to be given back

    def _own_tail(self, has_spare: bool) -> None:
        """Make a partly used last block this table's alone: by a copy, or where none can be had, by forgetting it."""
        pool, place = self._pool, self.length // self._pool.block_size
        block = self.blocks[place]
        is_shared = pool.refs[block] > 1
        if is_shared or (has_spare and pool.is_findable(block)):
            (self.blocks[place],) = pool.take(1)
            pool.copy(block, self.blocks[place], self._tail_used())
            pool.release([block])
        elif pool.is_findable(block):
            assert self._index is not None
            self._index.forget(block)

    def _compact(self, path: Sequence[int]) -> None:
        moved = [(self.length + p, self.length + i) for i, p in enumerate(path) if p != i]
        pool = self._pool
        pool.ops.kv_move(pool.kv, [self._slot(s) for s, _ in moved], [self._slot(t) for _, t in moved])

    def _slot(self, logical: int) -> int:
        place, offset = divmod(logical, self._pool.block_size)
        return self.blocks[place] * self._pool.block_size + offset

    def _settle(self) -> None:
        """Remember full blocks, give back what is not needed, and find the length at which that happens next."""
        size = self._pool.block_size
        full = self.length // size
        if self._index is not None:
            for place in range(len(self._digests), full):
                self._remember(self._index, place)
        self._cut(-(-self.length // size))
        first = self._first_needed(self.length)
        for place in range(self._first, first):
            self._pool.release([self.blocks[place]])
            self.blocks[place] = -1
        self._first = first
        self._wake = (full + 1) * size
        if self._lookback is not None:
            self._wake = min(self._wake, (first + 1) * size + self._lookback - 1)

    def _remember(self, index: PrefixIndex, place: int) -> None:
        """Make a block that is now full findable, or use the equal one that already is."""
        size = self._pool.block_size
        parent = self._digests[-1] if self._digests else self._root
        digest = chain_digest(parent, self._tokens[place * size : (place + 1) * size])
        self._digests.append(digest)
        block, twin = self.blocks[place], index.find(digest)
        if twin is None:
            index.add(digest, block)
        else:
            self._pool.hold(twin)
            self._pool.release([block])
            self.blocks[place] = twin

    def _cut(self, num_blocks: int) -> None:
        """Give back all blocks from `num_blocks` on, the last one first."""
        if num_blocks < len(self.blocks):
            self._pool.release(block for block in reversed(self.blocks[num_blocks:]) if block >= 0)
            del self.blocks[num_blocks:]
            self._room = min(self._room, num_blocks * self._pool.block_size)

    def _first_needed(self, length: int) -> int:
        """Return the first block that the token at position `length` needs: it sees positions > length - lookback."""
        if self._lookback is None:
            return 0
        return max(0, length - self._lookback + 1) // self._pool.block_size

    # -- other ways to get and to lose a past --------------------------------------------------------

    def adopt(self, tokens: Sequence[int]) -> None:
        """Take the longest beginning of `tokens` that the index has in whole blocks as this empty table's past."""
        assert self._is_open
        assert not self.blocks
        if self._index is None:
            return
        size = self._pool.block_size
        digests: list[bytes] = []
        found: list[int] = []
        length = run = 0  # run: blocks found one after another, up to here
        for end in range(size, len(tokens) + 1, size):
            digests.append(chain_digest(digests[-1] if digests else self._root, tokens[end - size : end]))
            block = self._index.find(digests[-1])
            if block is None and self._lookback is None:
                break
            found.append(-1 if block is None else block)
            run = 0 if block is None else run + 1
            if run >= max(1, end // size - self._first_needed(end)):
                length = end
        num_blocks = length // size
        self._first = self._first_needed(length)
        self.blocks = [-1] * self._first + found[self._first : num_blocks]
        for block in self.blocks[self._first :]:
            self._pool.hold(block)
        self.length, self._tokens, self._digests = length, list(tokens[:length]), digests[:num_blocks]

    def truncate(self, length: int) -> int:
        """Forget the committed slots from `length` on, and provisional ones; return the length that was kept.

        It is `length`, unless a sliding window has passed and blocks are needed again that were freed: then
        what the index still finds (0 if nothing). The tokens after it are pending again, for the caller.
        """
        assert self._is_open
        assert 0 <= length <= self.length
        self._reserved = self._room = self._wake = 0
        if self._first_needed(length) < self._first:
            tokens = self._tokens[:length]
            self._clear()
            self.adopt(tokens)
        else:
            size = self._pool.block_size
            self._cut(-(-length // size))
            self.length = length
            del self._tokens[length:], self._digests[length // size :]
        return self.length

    def fork(self) -> BlockTable:
        """Return a table with the same past. Blocks are shared; whoever writes into the last one copies it first."""
        assert self._is_open
        assert not self._reserved, "fork between steps: provisional slots belong to one table"
        other = BlockTable(self._pool, self._index, self._lookback, self._root, self._tables)
        other.blocks, other.length, other._first = self.blocks.copy(), self.length, self._first
        other._tokens, other._digests = self._tokens.copy(), self._digests.copy()
        for block in other.blocks[other._first :]:
            self._pool.hold(block)
        self._room = 0
        return other

    def close(self) -> None:
        """Give all blocks back; full ones stay findable until their room is needed. Closing twice is fine."""
        if self._is_open:
            self._clear()
            self._is_open = False
            self._tables.remove(self)

    def _clear(self) -> None:
        self._cut(0)
        self._tokens, self._digests = [], []
        self.length = self._reserved = self._room = self._wake = self._first = 0

    def check(self) -> None:
        """Assert this table's invariants."""
        size, pool, index = self._pool.block_size, self._pool, self._index
        full = self.length // size
        assert self._is_open
        assert len(self._tokens) == self.length
        assert self._first == self._first_needed(self.length), "exactly what no layer needs was freed"
        assert [block < 0 for block in self.blocks] == [place < self._first for place in range(len(self.blocks))]
        assert len(set(self.blocks[self._first :])) == len(self.blocks) - self._first, "no block is used twice"
        if self._reserved:
            assert self.length + self._reserved <= self._room <= len(self.blocks) * size, (
                "provisional slots have blocks"
            )
        else:
            assert len(self.blocks) == -(-self.length // size), "there are no blocks beyond the text"
        for block in self.blocks[full:] if self._room > self.length else ():
            assert pool.refs[block] == 1, "a writable slot is held by nobody else"
            assert not pool.is_findable(block), "a writable slot cannot be found"
        assert len(self._digests) == (0 if index is None else full)
        parent = self._root
        for place, digest in enumerate(self._digests):
            parent = chain_digest(parent, self._tokens[place * size : (place + 1) * size])
            assert digest == parent, "digests follow from the tokens"
            if index is not None and place >= self._first:
                assert index.find(digest) == self.blocks[place], "equal committed blocks are one block"
