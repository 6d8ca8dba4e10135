"""One sequence's blocks: slots are written provisionally, and only `commit` makes them its past."""

from __future__ import annotations

from collections.abc import Sequence
from operator import lt

from outpace.cache.group import TARGET
from outpace.cache.pool import BlockPool
from outpace.cache.prefix import PrefixIndex, chain_digest
from outpace.cache.progress import Progress
from outpace.errors import CacheError


class BlockTable:
    """Where one sequence's keys and values are. Made by `Cache.open` and `fork`, given back by `close`.

    blocks: slot s (position s, once committed) lives in blocks[s // block_size]; -1 where it was freed.
    length: committed slots. reserved: provisional slots behind them. All are read by everybody, and changed here only.
    max_window: a committed position p is kept as long as a token at a position < p + max_window may come (None: for
    ever). It is fixed when the table is made.
    """

    __slots__ = (
        "_boundary",
        "_digests",
        "_first",
        "_index",
        "_is_open",
        "_pool",
        "_progress",
        "_root",
        "_tables",
        "_tokens",
        "_writable",
        "blocks",
        "length",
        "max_window",
        "reserved",
    )

    def __init__(
        self, pool: BlockPool, index: PrefixIndex | None, max_window: int | None, root: bytes, tables: set[BlockTable]
    ) -> None:
        self.blocks: list[int] = []
        self.length = 0
        self.reserved = 0
        self.max_window = max_window
        self._pool, self._index, self._root = pool, index, root
        self._tables = tables  # all open tables of the cache
        self._tokens: list[int] = []  # committed
        self._digests: list[bytes] = []  # of the committed full blocks, while there is an index
        self._progress: dict[str, Progress] = {}  # of the further groups that somebody has asked for
        self._first = 0  # blocks before this one were freed
        self._writable = 0  # slots before this one can be written without further ado, if they are not committed
        self._boundary = 0  # a commit that reaches this length changes blocks; any other only counts
        self._is_open = True
        tables.add(self)

    # -- the past grows ----------------------------------------------------------------------------

    @property
    def ref_counts(self) -> list[int]:
        """How many tables hold each of `blocks`, this one included; 0 where it was freed."""
        return [self._pool.ref_counts[block] if block >= 0 else 0 for block in self.blocks]

    def blocks_for(self, count: int) -> int:
        """Return how many of the cache's available blocks `reserve(count)` needs at least."""
        size = self._pool.block_size
        new = max(0, -(-(self.length + count) // size) - len(self.blocks))
        return new + (self._tail_used() > 0 and self._pool.ref_counts[self.blocks[self.length // size]] > 1)

    def reserve(self, count: int) -> None:
        """Make the provisional slots [length, length + count) writable, count > 0.

        A second reservation replaces the first. Slots that both have keep what was written into them; a smaller one
        is free of cost. Allocates blocks, and copies a partly used last block that others hold or find. Raises
        CacheError, with nothing changed, where there are not enough blocks.
        """
        assert self._is_open
        assert count > 0
        if self.length + count > self._writable:
            self._allocate(count)
        self.reserved = count

    def commit(self, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Keep the provisional slots length + path[i] as positions length + i; forget the others.

        path: strictly ascending, so a slot only moves down, into a place whose contents are done with. tokens: their
        ids. Only the target's slots move: a further group has its guesses by position already, and those that are
        `tokens` count as computed. Full blocks become shareable (where there is a duplicate, this table takes that and
        gives its own back); provisional blocks beyond, and blocks that no layer needs any more, are given back.
        """
        count = len(path)
        assert self._is_open
        assert count == len(tokens)
        if count:
            assert 0 <= path[0] <= path[-1] < self.reserved, "only reserved slots can be kept"
            assert all(map(lt, path, path[1:])), "a path ascends"
            if path[-1] >= count:
                self._compact(path)
        if self._progress:
            for progress in self._progress.values():
                progress.commit(tokens)
        self._tokens += tokens
        self.reserved = 0
        self.length += count
        if self.length >= self._boundary:
            self._update_blocks()

    def _tail_used(self) -> int:
        return self.length % self._pool.block_size

    def _allocate(self, count: int) -> None:
        pool, size = self._pool, self._pool.block_size
        need = self.blocks_for(count)
        if need > pool.num_available:
            raise CacheError(
                f"no room for {count} more tokens after {self.length}: they need {need} more blocks of {size} tokens, "
                f"and {pool.num_available} of the cache's {pool.capacity} are available; "
                f"use a shorter sequence, fewer sequences at once, or a larger cache"
            )
        if self._tail_used():
            self._own_tail(has_spare=need < pool.num_available)
        self.blocks += pool.take(max(0, -(-(self.length + count) // size) - len(self.blocks)))
        self._writable = len(self.blocks) * size
        self._boundary = 0  # provisional blocks may have to be given back

    def _own_tail(self, has_spare: bool) -> None:
        """Make a partly used last block this table's alone: by a copy, or where none can be had, by forgetting it."""
        pool, place = self._pool, self.length // self._pool.block_size
        block = self.blocks[place]
        is_shared = pool.ref_counts[block] > 1
        if is_shared or (has_spare and pool.is_findable(block)):
            (self.blocks[place],) = pool.take(1)
            pool.target.copy(block, self.blocks[place], self._tail_used())
            for progress in self._progress.values():
                progress.copy_block(place, block, self.blocks[place])
            pool.release([block])
        elif pool.is_findable(block):
            assert self._index is not None
            self._index.forget(block)

    def _compact(self, path: Sequence[int]) -> None:
        moved = [(self.length + p, self.length + i) for i, p in enumerate(path) if p != i]
        target = self._pool.target
        target.ops.kv_move(target.kv, [self._slot(s) for s, _ in moved], [self._slot(t) for _, t in moved])

    def _slot(self, logical: int) -> int:
        place, offset = divmod(logical, self._pool.block_size)
        return self.blocks[place] * self._pool.block_size + offset

    def _update_blocks(self) -> None:
        """Remember full blocks, give back what is not needed, and find the length at which that happens next."""
        size = self._pool.block_size
        full = self.length // size
        if self._index is not None:
            for place in range(len(self._digests), full):
                self._remember(self._index, place)
            for progress in self._progress.values():
                progress.mark(self._index, self.blocks, self._first)
        self._release_from(-(-self.length // size))
        first = self._first_kept()
        for place in range(self._first, first):
            self._pool.release([self.blocks[place]])
            self.blocks[place] = -1
        self._first = first
        self._boundary = (full + 1) * size
        if self.max_window is not None:
            self._boundary = min(self._boundary, (first + 1) * size + self.max_window - 1)

    def _remember(self, index: PrefixIndex, place: int) -> None:
        """Make a block that is now full findable, or use its duplicate that already is."""
        size = self._pool.block_size
        parent = self._digests[-1] if self._digests else self._root
        digest = chain_digest(parent, self._tokens[place * size : (place + 1) * size])
        self._digests.append(digest)
        block, duplicate = self.blocks[place], index.find(digest)
        if duplicate is None:
            index.add(digest, block)
            return
        for progress in self._progress.values():
            if not index.is_computed(duplicate, progress.group.name):
                progress.copy_block(place, block, duplicate)
        self._pool.hold(duplicate)
        self._pool.release([block])
        self.blocks[place] = duplicate

    def _release_from(self, num_blocks: int) -> None:
        """Give back all blocks from `num_blocks` on, the last one first."""
        if num_blocks < len(self.blocks):
            self._pool.release(block for block in reversed(self.blocks[num_blocks:]) if block >= 0)
            del self.blocks[num_blocks:]
            self._writable = min(self._writable, num_blocks * self._pool.block_size)

    def _first_needed(self, length: int) -> int:
        """Return the first block that the token at position `length` needs: it sees positions > length - max_window."""
        if self.max_window is None:
            return 0
        return max(0, length - self.max_window + 1) // self._pool.block_size

    def _first_kept(self) -> int:
        """Return the first block that is still needed: by the next token, or by a group that computes older ones.

        A group that lags by more than a window is not waited for: it cannot be computed in this table any more.
        """
        first = self._first_needed(self.length)
        if first > self._first:
            for progress in self._progress.values():
                if self._holds(progress):
                    assert self.max_window is not None
                    first = min(first, self._first_needed(max(progress.computed, self.length - self.max_window)))
        return first

    def digest(self, length: int) -> bytes:
        """Return a name of the first `length` committed tokens: equal for equal beginnings of the same salt."""
        assert 0 <= length <= self.length
        size = self._pool.block_size
        full = length // size
        known = min(full, len(self._digests))
        parent = self._digests[known - 1] if known else self._root
        for start in range(known * size, length, size):
            parent = chain_digest(parent, self._tokens[start : min(start + size, length)])
        return parent

    # -- further groups of layers --------------------------------------------------------------------

    def can_hold(self, group: str) -> bool:
        """Return whether the group can be computed here: not where slots were freed that it still needs.

        That is so where it lags behind by more than a sliding window, or needs a larger one than this table keeps.
        """
        return self._holds(self._progress_of(group))

    def computed(self, group: str) -> int:
        """Return how many leading committed positions hold the group's keys and values; 0 where it cannot be held.

        Blocks that the group has computed for other tables count, so this may rise by itself.
        """
        progress = self._progress_of(group)
        return progress.computed if self._holds(progress) else 0

    def advance(self, group: str, start: int, tokens: Sequence[int]) -> None:
        """Take in that the group's slots [start, start + len(tokens)) now hold the keys and values of `tokens`.

        They follow, without a gap, on what is computed, or on what was written ahead before. Slots from `length` on
        must be reserved: they count as computed once the same tokens are committed at these positions. Committed
        slots may lie in blocks that other tables hold: equal tokens have equal bits, so nothing changes for them.
        """
        progress, length = self._progress_of(group), self.length
        assert self._holds(progress), "freed slots cannot be written"
        assert start + len(tokens) <= length + self.reserved, "reserve first"
        assert list(tokens[: max(0, length - start)]) == self._tokens[start : start + len(tokens)], "as committed"
        progress.advance(start, tokens, length)
        if self._index is not None:
            progress.mark(self._index, self.blocks, self._first)

    def _progress_of(self, group: str) -> Progress:
        """Return how far a group has come, with the blocks that were computed elsewhere."""
        progress = self._progress.get(group)
        if progress is None:
            assert group != TARGET, "what the target has computed is `length`"
            progress = self._progress[group] = Progress(self._pool.groups[group])
        size = self._pool.block_size
        end = max(progress.computed, self._first * size)
        if self._index is not None:
            while end // size < len(self._digests) and self._index.is_computed(self.blocks[end // size], group):
                end = (end // size + 1) * size
        progress.computed = end
        return progress

    def _holds(self, progress: Progress) -> bool:
        if self.max_window is None:
            return True
        window = progress.group.max_window
        has_window = window is not None and window <= self.max_window
        return has_window and self._first <= self._first_needed(progress.computed)

    # -- other ways to get and to lose a past --------------------------------------------------------

    def adopt(self, tokens: Sequence[int], groups: Sequence[str] = ()) -> None:
        """Take the longest beginning of `tokens` that the index has in whole blocks as this empty table's past.

        groups: only blocks that these have computed too.
        """
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
            if block is not None and not all(self._index.is_computed(block, group) for group in groups):
                block = None
            if block is None and self.max_window is None:
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
        self.reserved = self._writable = self._boundary = 0
        if self._first_needed(length) < self._first:
            tokens = self._tokens[:length]
            self._clear()
            self.adopt(tokens)
        else:
            size = self._pool.block_size
            self._release_from(-(-length // size))
            self.length = length
            del self._tokens[length:], self._digests[length // size :]
            for progress in self._progress.values():
                progress.truncate(length)
        return self.length

    def fork(self) -> BlockTable:
        """Return a table with the same past. Blocks are shared; whoever writes into the last one copies it first."""
        assert self._is_open
        assert not self.reserved, "fork between steps: provisional slots belong to one table"
        other = BlockTable(self._pool, self._index, self.max_window, self._root, self._tables)
        other.blocks, other.length, other._first = self.blocks.copy(), self.length, self._first
        other._tokens, other._digests = self._tokens.copy(), self._digests.copy()
        other._progress = {group: progress.fork() for group, progress in self._progress.items()}
        for block in other.blocks[other._first :]:
            self._pool.hold(block)
        self._writable = 0
        return other

    def close(self) -> None:
        """Give all blocks back; full ones stay findable until they are needed. Closing twice is fine."""
        if self._is_open:
            self._clear()
            self._is_open = False
            self._tables.remove(self)

    def _clear(self) -> None:
        self._release_from(0)
        self._tokens, self._digests, self._progress = [], [], {}
        self.length = self.reserved = self._writable = self._boundary = self._first = 0

    def check(self) -> None:
        """Assert this table's invariants."""
        size, pool, index = self._pool.block_size, self._pool, self._index
        full = self.length // size
        assert self._is_open
        assert len(self._tokens) == self.length
        assert self._first <= self._first_needed(self.length), "nothing was freed that the next token needs"
        assert [block < 0 for block in self.blocks] == [place < self._first for place in range(len(self.blocks))]
        assert len(set(self.blocks[self._first :])) == len(self.blocks) - self._first, "no block is used twice"
        if self.reserved:
            assert self.length + self.reserved <= self._writable <= len(self.blocks) * size, (
                "provisional slots have blocks"
            )
        else:
            assert len(self.blocks) == -(-self.length // size), "there are no blocks beyond the sequence"
        for block in self.blocks[full:] if self._writable > self.length else ():
            assert pool.ref_counts[block] == 1, "a writable slot is held by nobody else"
            assert not pool.is_findable(block), "a writable slot cannot be found"
        assert len(self._digests) == (0 if index is None else full)
        parent = self._root
        for place, digest in enumerate(self._digests):
            parent = chain_digest(parent, self._tokens[place * size : (place + 1) * size])
            assert digest == parent, "digests follow from the tokens"
            if index is not None and place >= self._first:
                assert index.find(digest) == self.blocks[place], "equal committed blocks are one block"
        for progress in self._progress.values():
            self._check_progress(progress)

    def _check_progress(self, progress: Progress) -> None:
        name, size = progress.group.name, self._pool.block_size
        assert self._pool.groups[name] is progress.group
        assert progress.computed <= self.length, "only what is committed is computed"
        if progress.ahead:
            assert progress.computed == self.length, "only a group without gaps is ahead"
            assert self.length + len(progress.ahead) <= self._writable, "what is ahead has blocks"
        assert progress.num_marked <= progress.computed // size
        if self._index is not None:
            for place in range(self._first, progress.computed // size):
                assert self._index.is_computed(self.blocks[place], name), "the index knows what is computed"
