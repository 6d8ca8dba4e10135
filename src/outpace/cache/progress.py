"""How far a group of layers has come in one table: the target decides what is committed, further groups follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.cache.group import Group
from outpace.cache.prefix import PrefixIndex


@dataclass(slots=True)
class Progress:
    """Which of a table's slots hold the group's keys and values.

    computed: committed positions [0, computed) do, or were freed. ahead: the tokens whose keys and
    values lie in the slots from the table's length on; only a group that has computed everything is ahead.
    num_marked: blocks before this one are marked as computed in the prefix index.
    """

    group: Group
    computed: int = 0
    ahead: list[int] = field(default_factory=list)
    num_marked: int = 0

    def advance(self, start: int, tokens: Sequence[int], length: int) -> None:
        """Take in that the slots from `start` on hold `tokens`, in a table of `length` committed positions."""
        assert start <= self.computed + len(self.ahead), "there must be no gap"
        self.computed = max(self.computed, min(start + len(tokens), length))
        self.ahead = [*self.ahead[: max(0, start - length)], *tokens[max(0, length - start) :]]

    def commit(self, tokens: Sequence[int]) -> None:
        """Count the guesses that came true: those that are the tokens now committed, up to the first that is not."""
        for guess, token in zip(self.ahead, tokens, strict=False):
            if guess != token:
                break
            self.computed += 1
        self.ahead = []

    def mark(self, index: PrefixIndex, blocks: Sequence[int], first: int) -> None:
        """Let the index know the table's full blocks, from `first` on, that the group has computed."""
        num_blocks = self.computed // self.group.spec.block_size
        for place in range(max(self.num_marked, first), num_blocks):
            index.mark(blocks[place], self.group.name)
        self.num_marked = max(self.num_marked, num_blocks)

    def copy_block(self, place: int, source: int, target: int) -> None:
        """Copy what the group has computed of the block at `place` in the table from one block to another.

        The target may be held and found by others: what they have computed of it has the same bits.
        """
        size = self.group.spec.block_size
        if (count := min(self.computed - place * size, size)) > 0:
            self.group.copy(source, target, count)

    def truncate(self, length: int) -> None:
        """Forget everything from `length` on."""
        self.computed = min(self.computed, length)
        self.num_marked = min(self.num_marked, length // self.group.spec.block_size)
        self.ahead = []

    def fork(self) -> Progress:
        """Return the same progress, for a table of its own."""
        assert not self.ahead
        return Progress(self.group, self.computed, [], self.num_marked)
