"""Whatever happens to it, every text reads back what it wrote: the cache against a plain-Python model, at random.

The model knows texts as lists of tokens, and nothing of blocks. Each slot stores a tag that is a pure function of all
tokens up to it (as real keys and values are), so a wrong move, copy, share or eviction shows as a wrong tag.
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
from tests.unit.cache.tags import holds, make_cache, read, tag, write

AMPLE = 1000  # blocks: nothing is ever evicted
TOKENS = st.integers(0, 1)  # so few that texts meet again and again
SALTS = st.sampled_from([b"", b"", b"", b"salt"])


@dataclass
class Text:
    """What the model knows of one open table."""

    table: BlockTable
    salt: bytes
    tokens: list[int] = field(default_factory=list)
    draft: list[tuple[int, int]] = field(default_factory=list)  # (parent, token) of each provisional slot

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
        lookback=st.none() | st.integers(1, 12),
        share=st.sampled_from([True, True, True, False]),
    )
    def start(self, capacity: int, block_size: int, lookback: int | None, share: bool) -> None:
        with mock.patch("outpace.cache.pool.FIRST_BLOCKS", 2):  # so that storage grows often
            self.cache, self.ops = make_cache(capacity, block_size=block_size, lookback=lookback, share=share)
        self.lookback, self.share = lookback, share
        self.texts: list[Text] = []
        self.remembered: set[tuple[bytes, tuple[int, ...]]] = set()  # beginnings in whole blocks, ever committed

    # -- what a text does ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.texts) < 4)
    @rule(data=st.data(), salt=SALTS)
    def open(self, data: st.DataObject, salt: bytes) -> None:
        base = data.draw(st.sampled_from([[], *(text.tokens for text in self.texts), *self.known_texts()]))
        tokens = [*base, *data.draw(st.lists(TOKENS, max_size=6))]
        table = self.cache.open(tokens, salt)
        assert table.length == 0 or table.length < len(tokens), "the last token stays pending"
        self.check_found(table.length, tokens[:-1], salt)
        self.texts.append(Text(table, salt, tokens[: table.length]))

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), pending=st.lists(TOKENS, min_size=1, max_size=10))
    def compute(self, data: st.DataObject, pending: list[int]) -> None:
        text = self.pick(data)
        self.reserve_and_write(text, [(node - 1, token) for node, token in enumerate(pending)])
        if text.draft:
            self.keep(text, len(text.draft) - 1)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), nodes=st.lists(st.tuples(st.integers(0, 20), TOKENS), min_size=1, max_size=14))
    def write(self, data: st.DataObject, nodes: list[tuple[int, int]]) -> None:
        text = self.pick(data)
        self.reserve_and_write(text, [(max(-1, i - 1 - up % (i + 1)), token) for i, (up, token) in enumerate(nodes)])

    def reserve_and_write(self, text: Text, draft: list[tuple[int, int]]) -> None:
        fits = self.fits(text, len(draft))
        before = (text.table.blocks.copy(), text.table.length, self.cache.num_available)
        assert text.table.blocks_for(len(draft)) <= self.cache.num_available or not fits
        try:
            text.table.reserve(len(draft))
        except CacheError:
            assert not fits
            assert before == (text.table.blocks, text.table.length, self.cache.num_available)
        else:
            assert fits
            text.draft = draft
            write(self.cache, text.table, len(text.tokens), text.draft_tags)

    @precondition(lambda self: any(text.draft for text in self.texts))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from([text for text in self.texts if text.draft]))
        self.keep(text, data.draw(st.integers(-1, len(text.draft) - 1)))

    def keep(self, text: Text, node: int) -> None:
        path = text.path(node)
        text.table.commit(path, [text.draft[i][1] for i in path])
        text.tokens, text.draft = text.spell(node), []
        size = self.cache.block_size
        self.remembered |= {(text.salt, tuple(text.tokens[:end])) for end in range(size, len(text.tokens) + 1, size)}

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        text = self.pick(data)
        length = len(text.tokens) - data.draw(st.integers(0, min(8, len(text.tokens))))
        is_kept = all(block >= 0 for block in text.table.blocks[self.first_needed(length) :])
        kept = text.table.truncate(length)
        if is_kept:
            assert kept == length
        else:
            self.check_found(kept, text.tokens[:length], text.salt)
        text.tokens, text.draft = text.tokens[:kept], []

    @precondition(lambda self: len(self.texts) < 6 and any(text.tokens and not text.draft for text in self.texts))
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from([text for text in self.texts if text.tokens and not text.draft]))
        self.texts.append(Text(text.table.fork(), text.salt, text.tokens.copy()))

    @precondition(lambda self: len(self.texts) > 2)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        text = self.pick(data)
        self.texts.remove(text)
        text.table.close()

    # -- what must hold after every step -------------------------------------------------------------------

    @invariant()
    def every_text_reads_back_what_it_wrote(self) -> None:
        for text in self.texts:
            assert holds(self.cache, text.table, text.tokens, text.salt)
            start = len(text.tokens)
            assert read(self.cache, text.table, start, start + len(text.draft)) == text.draft_tags

    @invariant()
    def blocks_are_conserved(self) -> None:
        held = {block for text in self.texts for block in text.table.blocks if block >= 0}
        assert self.cache.num_available == self.cache.capacity - len(held)
        assert all(block < self.ops.sizes[-1] for block in held), "storage exists for every block"
        self.cache.check()

    @invariant()
    def nothing_provisional_is_shared(self) -> None:
        holders = Counter(block for text in self.texts for block in text.table.blocks)
        for text in self.texts:
            if text.draft:
                own = text.table.blocks[len(text.tokens) // self.cache.block_size :]
                assert all(holders[block] == 1 for block in own)

    @invariant()
    def exactly_what_no_token_will_need_is_freed(self) -> None:
        for text in self.texts:
            first = self.first_needed(len(text.tokens))
            assert [block < 0 for block in text.table.blocks] == [i < first for i in range(len(text.table.blocks))]

    # -- the model -------------------------------------------------------------------------------------------

    def pick(self, data: st.DataObject) -> Text:
        return data.draw(st.sampled_from(self.texts))

    def known_texts(self) -> list[list[int]]:
        return [list(tokens) for _, tokens in sorted(self.remembered)]

    def first_needed(self, length: int) -> int:
        """Return the first block with a position > length - lookback."""
        block = 0
        while self.lookback is not None and (block + 1) * self.cache.block_size - 1 <= length - self.lookback:
            block += 1
        return block

    def fits(self, text: Text, count: int) -> bool:
        """Return whether there is room: new blocks, and a copy if another text has the partly used last one."""
        size, blocks = self.cache.block_size, text.table.blocks
        need = max(0, -(-(len(text.tokens) + count) // size) - len(blocks))
        if len(text.tokens) % size:
            need += any(blocks[len(text.tokens) // size] in o.table.blocks for o in self.texts if o is not text)
        return need <= self.cache.num_available

    def check_found(self, length: int, tokens: list[int], salt: bytes) -> None:
        """Assert that a found beginning was committed, and is the longest that cannot have been evicted."""
        size = self.cache.block_size
        known = [end for end in range(size, len(tokens) + 1, size) if (salt, tuple(tokens[:end])) in self.remembered]
        assert length == 0 or (self.share and length in known)
        if self.share and self.cache.capacity == AMPLE:
            assert length == max(known, default=0)
        elif self.share and self.lookback is None:
            for text in self.texts:
                same = [end for end in known if text.salt == salt and text.tokens[:end] == tokens[:end]]
                assert length >= max((end for end in same if end <= len(text.tokens)), default=0)


def test_every_text_reads_back_what_it_wrote_whatever_else_the_cache_does() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=120, stateful_step_count=40, deadline=None))


@pytest.mark.slow
def test_every_text_reads_back_what_it_wrote_in_many_long_runs() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=600, stateful_step_count=80, deadline=None))
