"""Whatever happens to it, every sequence reads back what it wrote: the cache against a plain-Python model, at random.

The model knows sequences as lists of tokens, and nothing of blocks. Each slot stores a tag that is a pure function of
all tokens up to it (as real keys and values are) and of the group of layers, so a wrong move, copy, share, eviction or
claim shows as a wrong tag.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from outpace.cache import BlockTable
from outpace.errors import CacheError
from tests.unit.cache.tags import add_group, follow, has_computed, holds, kept_from, make_cache, read, tag, write

AMPLE = 1000  # blocks: nothing is ever evicted
TOKENS = st.integers(0, 1)  # so few that sequences meet again and again
SALTS = st.sampled_from([b"", b"", b"", b"salt"])
WINDOWS = st.none() | st.integers(1, 12)


@dataclass
class Known:
    """What the model knows of a further group in one table: what it must have computed, and its guesses."""

    minimum: int = 0
    ahead: list[int] = field(default_factory=list)
    holds: bool = True


@dataclass
class Opened:
    """What the model knows of one open table."""

    table: BlockTable
    salt: bytes
    window: int | None
    tokens: list[int] = field(default_factory=list)
    draft: list[tuple[int, int]] = field(default_factory=list)  # (parent, token) of each provisional slot
    groups: dict[str, Known] = field(default_factory=dict)  # those that somebody has asked for

    def path(self, node: int) -> list[int]:
        path: list[int] = []
        while node >= 0:
            path.append(node)
            node = self.draft[node][0]
        return path[::-1]

    def spell(self, node: int) -> list[int]:
        return self.tokens + [self.draft[i][1] for i in self.path(node)]

    @property
    def draft_tags(self) -> list[int]:
        return [tag(self.spell(node), self.salt) for node in range(len(self.draft))]


class CacheMachine(RuleBasedStateMachine):
    @initialize(
        capacity=st.sampled_from([AMPLE, 12, 6, 3]),
        block_size=st.sampled_from([4, 2, 1]),
        window=WINDOWS,
        share_prefixes=st.sampled_from([True, True, True, False]),
    )
    def start(self, capacity: int, block_size: int, window: int | None, share_prefixes: bool) -> None:
        with mock.patch("outpace.cache.pool.FIRST_BLOCKS", 2):  # so that storage grows often
            self.cache, self.ops = make_cache(
                capacity, block_size=block_size, max_window=window, share_prefixes=share_prefixes
            )
        self.windows, self.share_prefixes = [window], share_prefixes
        self.opened: list[Opened] = []
        self.remembered: set[tuple[bytes, tuple[int, ...]]] = set()  # beginnings in whole blocks, ever committed
        self.followed: set[tuple[str, bytes, tuple[int, ...]]] = set()  # of those, what a further group computed

    # -- what a sequence does ----------------------------------------------------------------------

    @precondition(lambda self: len(self.opened) < 4)
    @rule(data=st.data(), salt=SALTS)
    def open(self, data: st.DataObject, salt: bytes) -> None:
        base = data.draw(st.sampled_from([[], *(s.tokens for s in self.opened), *self.known_sequences()]))
        tokens = [*base, *data.draw(st.lists(TOKENS, max_size=6))]
        table = self.cache.open(tokens, salt)
        assert table.length == 0 or table.length < len(tokens), "the last token stays pending"
        self.check_found(table.length, tokens[:-1], salt)
        window = None if None in self.windows else max(self.windows)
        assert table.max_window == window
        self.opened.append(Opened(table, salt, window, tokens[: table.length]))

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), pending=st.lists(TOKENS, min_size=1, max_size=10))
    def compute(self, data: st.DataObject, pending: list[int]) -> None:
        s = self.pick(data)
        self.reserve_and_write(s, [(node - 1, token) for node, token in enumerate(pending)])
        if s.draft:
            self.keep(s, len(s.draft) - 1)

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), nodes=st.lists(st.tuples(st.integers(0, 20), TOKENS), min_size=1, max_size=14))
    def write(self, data: st.DataObject, nodes: list[tuple[int, int]]) -> None:
        s = self.pick(data)
        self.reserve_and_write(s, [(max(-1, i - 1 - up % (i + 1)), token) for i, (up, token) in enumerate(nodes)])

    def reserve_and_write(self, s: Opened, draft: list[tuple[int, int]]) -> None:
        fits = self.fits(s, len(draft))
        before = (s.table.blocks.copy(), s.table.length, self.cache.num_available)
        assert s.table.blocks_for(len(draft)) <= self.cache.num_available or not fits
        try:
            s.table.reserve(len(draft))
        except CacheError:
            assert not fits
            assert before == (s.table.blocks, s.table.length, self.cache.num_available)
        else:
            assert fits
            s.draft = draft
            write(self.cache, s.table, len(s.tokens), s.draft_tags)

    @precondition(lambda self: any(s.draft for s in self.opened))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        s = data.draw(st.sampled_from([s for s in self.opened if s.draft]))
        self.keep(s, data.draw(st.integers(-1, len(s.draft) - 1)))

    def keep(self, s: Opened, node: int) -> None:
        path = s.path(node)
        tokens = [s.draft[i][1] for i in path]
        s.table.commit(path, tokens)
        for known in s.groups.values():
            pairs = list(zip(known.ahead, tokens, strict=False))
            known.minimum += next((i for i, (guess, token) in enumerate(pairs) if guess != token), len(pairs))
            known.ahead = []
        s.tokens, s.draft = s.tokens + tokens, []
        self.remembered |= {(s.salt, tuple(s.tokens[:end])) for end in self.block_ends(len(s.tokens))}

    @precondition(lambda self: self.opened)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        s = self.pick(data)
        length = len(s.tokens) - data.draw(st.integers(0, min(8, len(s.tokens))))
        is_kept = all(block >= 0 for block in s.table.blocks[self.first_needed(s, length) :])
        kept = s.table.truncate(length)
        if is_kept:
            assert kept == length
            for known in s.groups.values():
                known.minimum, known.ahead = min(known.minimum, length), []
        else:
            self.check_found(kept, s.tokens[:length], s.salt)
            s.groups = {}
        s.tokens, s.draft = s.tokens[:kept], []

    @precondition(lambda self: len(self.opened) < 6 and any(s.tokens and not s.draft for s in self.opened))
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        s = data.draw(st.sampled_from([s for s in self.opened if s.tokens and not s.draft]))
        groups = {group: Known(known.minimum, [], known.holds) for group, known in s.groups.items()}
        self.opened.append(Opened(s.table.fork(), s.salt, s.window, s.tokens.copy(), [], groups))

    @precondition(lambda self: len(self.opened) > 2)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        s = self.pick(data)
        self.opened.remove(s)
        s.table.close()

    # -- what a further group does -----------------------------------------------------------------

    @precondition(lambda self: len(self.windows) < 3)
    @rule(window=WINDOWS)
    def add_group(self, window: int | None) -> None:
        add_group(self.cache, f"drafter {len(self.windows)}", window)
        self.windows.append(window)

    @precondition(lambda self: self.opened and len(self.windows) > 1)
    @rule(data=st.data(), guesses=st.lists(TOKENS, max_size=8))
    def follow(self, data: st.DataObject, guesses: list[int]) -> None:
        """Compute from what is there (or again from further back, or on from earlier guesses) up to somewhere."""
        s = self.pick(data)
        group = data.draw(st.sampled_from(self.cache.groups[1:]))
        if group not in s.groups:
            s.groups[group] = Known(holds=s.table.can_hold(group))
        known = s.groups[group]
        self.check_progress(s, group, known)
        if not s.table.can_hold(group):
            assert s.table.computed(group) == 0
            return
        computed, length = s.table.computed(group), len(s.tokens)
        start = data.draw(st.integers(kept_from(self.cache, s.table), computed + len(known.ahead)))
        if data.draw(st.booleans()):
            guesses = [token for _, token in s.draft][: len(guesses)]
        ahead = [*known.ahead[: max(0, start - length)], *guesses][: len(s.draft)]
        end = data.draw(st.integers(start, length)) if start <= length else length
        tokens = [*s.tokens, *ahead] if end == length else s.tokens[:end]
        follow(self.cache, s.table, group, tokens, min(start, len(tokens)), s.salt)
        known.minimum, known.ahead = max(known.minimum, min(end, length)), ahead if end == length else []

    # -- what must hold after every step -----------------------------------------------------------

    @invariant()
    def every_sequence_reads_back_what_it_wrote(self) -> None:
        for s in self.opened:
            assert holds(self.cache, s.table, s.tokens, s.salt)
            start = len(s.tokens)
            assert read(self.cache, s.table, start, start + len(s.draft)) == s.draft_tags

    @invariant()
    def what_a_group_has_computed_is_there(self) -> None:
        for s in self.opened:
            for group, known in s.groups.items():
                self.check_progress(s, group, known)
                for at, token in enumerate(known.ahead, len(s.tokens)):
                    expected = tag([*s.tokens, *known.ahead[: at - len(s.tokens)], token], s.salt, group)
                    assert read(self.cache, s.table, at, at + 1, group) == [expected]

    @invariant()
    def blocks_are_conserved(self) -> None:
        held = {block for s in self.opened for block in s.table.blocks if block >= 0}
        assert self.cache.num_available == self.cache.capacity - len(held)
        assert all(block < self.ops.sizes[-1] for block in held), "storage exists for every block"
        self.cache.check()

    @invariant()
    def nothing_provisional_is_shared(self) -> None:
        ref_counts = Counter(block for s in self.opened for block in s.table.blocks)
        for s in self.opened:
            assert s.table.ref_counts == [ref_counts[block] if block >= 0 else 0 for block in s.table.blocks]
            if s.draft:
                own = s.table.blocks[len(s.tokens) // self.cache.block_size :]
                assert all(ref_counts[block] == 1 for block in own)

    @invariant()
    def exactly_what_no_token_will_need_is_freed(self) -> None:
        for s in self.opened:
            latest = self.first_needed(s, len(s.tokens))
            # For a group that lags, older blocks are kept; but not for ever.
            earliest = self.first_needed(s, len(s.tokens) - s.window) if s.groups and s.window is not None else latest
            freed = [block < 0 for block in s.table.blocks]
            assert earliest <= sum(freed) <= latest
            assert freed == sorted(freed, reverse=True)

    # -- the model ---------------------------------------------------------------------------------

    def pick(self, data: st.DataObject) -> Opened:
        return data.draw(st.sampled_from(self.opened))

    def known_sequences(self) -> list[list[int]]:
        return [list(tokens) for _, tokens in sorted(self.remembered)]

    def block_ends(self, length: int) -> range:
        return range(self.cache.block_size, length + 1, self.cache.block_size)

    def first_needed(self, s: Opened, length: int) -> int:
        """Return the first block with a position > length - window."""
        block = 0
        while s.window is not None and (block + 1) * self.cache.block_size - 1 <= length - s.window:
            block += 1
        return block

    def fits(self, s: Opened, count: int) -> bool:
        """Return whether there are blocks: new ones, and a copy if another sequence has the partly used last one."""
        size, blocks = self.cache.block_size, s.table.blocks
        need = max(0, -(-(len(s.tokens) + count) // size) - len(blocks))
        if len(s.tokens) % size:
            need += any(blocks[len(s.tokens) // size] in o.table.blocks for o in self.opened if o is not s)
        return need <= self.cache.num_available

    def check_found(self, length: int, tokens: list[int], salt: bytes) -> None:
        """Assert that a found beginning was committed, and is the longest that cannot have been evicted."""
        known = [end for end in self.block_ends(len(tokens)) if (salt, tuple(tokens[:end])) in self.remembered]
        assert length == 0 or (self.share_prefixes and length in known)
        if self.share_prefixes and self.cache.capacity == AMPLE:
            assert length == max(known, default=0)
        elif self.share_prefixes and None in self.windows:
            for s in self.opened:
                same = [end for end in known if s.salt == salt and s.tokens[:end] == tokens[:end]]
                if s.window is None:
                    assert length >= max((end for end in same if end <= len(s.tokens)), default=0)

    def check_progress(self, s: Opened, group: str, known: Known) -> None:
        """Assert that what the group has computed is there, at least as much as it must be, and held while it can."""
        window = self.windows[self.cache.groups.index(group)]
        is_held, computed = s.table.can_hold(group), s.table.computed(group)
        assert has_computed(self.cache, s.table, group, s.tokens, s.salt)
        if s.window is None:
            assert is_held
        elif window is None or window > s.window:
            assert not is_held
        elif known.holds:
            assert is_held or known.minimum < len(s.tokens) - s.window, "it is lost only more than a window behind"
        known.holds = is_held
        if is_held:
            assert computed >= known.minimum, "it is never computed twice"
            known.minimum = computed
        if is_held and self.share_prefixes and s.window is None:
            whole = [(group, s.salt, tuple(s.tokens[:end])) for end in self.block_ends(len(s.tokens))]
            if self.cache.capacity == AMPLE:
                run = next((i for i, key in enumerate(whole) if key not in self.followed), len(whole))
                assert computed >= run * self.cache.block_size, "what was computed for any sequence is found"
            self.followed.update(whole[: computed // self.cache.block_size])


def test_every_sequence_reads_back_what_it_wrote_whatever_else_the_cache_does() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))


@pytest.mark.slow
def test_every_sequence_reads_back_what_it_wrote_in_many_long_runs() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=600, stateful_step_count=80, deadline=None))
