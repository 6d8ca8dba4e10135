from __future__ import annotations

import pytest

from outpace.cache.group import Group
from outpace.cache.prefix import PrefixIndex
from outpace.cache.progress import Progress
from outpace.types import KVSpec
from tests.unit.cache.tags import TagOps

SPEC = KVSpec(num_layers=1, num_kv_heads=1, head_width=1, block_size=4)


def make_progress(computed: int = 0, ahead: list[int] | None = None) -> Progress:
    return Progress(Group("drafter", TagOps(), SPEC, None, 8), computed, ahead or [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("computed", "ahead", "start", "tokens", "expected"),
    [
        (0, [], 0, [1, 2, 3], (3, [])),  # it lags, and still does
        (0, [], 0, [1, 2, 3, 4, 5, 6, 7], (5, [6, 7])),  # through what is committed, and ahead
        (5, [], 5, [6, 7], (5, [6, 7])),
        (5, [6, 7], 7, [8], (5, [6, 7, 8])),  # on from its guesses
        (5, [6, 7, 8], 6, [9], (5, [6, 9])),  # another guess
        (5, [6, 7], 4, [5, 8], (5, [8])),  # from further back
        (5, [6, 7], 2, [3, 4], (5, [])),  # what it forgets it was ahead, it computes again
        (4, [], 1, [2], (4, [])),
    ],
)
def test_it_takes_in_what_was_written(computed, ahead, start, tokens, expected) -> None:
    progress = make_progress(computed, ahead)
    progress.advance(start, tokens, length=5)
    assert (progress.computed, progress.ahead) == expected


@pytest.mark.parametrize(("start", "length"), [(6, 10), (9, 5)])
def test_a_gap_is_a_bug(start: int, length: int) -> None:
    progress = make_progress(5, [6, 7, 8] if length == 5 else [])
    with pytest.raises(AssertionError, match="gap"):
        progress.advance(start, [1], length)


@pytest.mark.parametrize(
    ("ahead", "tokens", "computed"),
    [([6, 7], [6, 7, 8], 7), ([6, 7], [6], 6), ([6, 7], [6, 8], 6), ([7, 7], [6, 7], 5), ([], [6], 5), ([6], [], 5)],
)
def test_guesses_that_came_true_are_computed_up_to_the_first_that_did_not(ahead, tokens, computed) -> None:
    progress = make_progress(5, ahead)
    progress.commit(tokens)
    assert (progress.computed, progress.ahead) == (computed, [])


def test_only_whole_blocks_are_marked_and_each_of_them_once() -> None:
    index = PrefixIndex()
    for block in (7, 3, 5):
        index.add(bytes([block]), block)
    progress = make_progress(7)
    progress.mark(index, [7, 3, 5], first=0)
    assert [index.is_computed(block, "drafter") for block in (7, 3, 5)] == [True, False, False]
    index.forget(7)
    progress.computed = 12
    progress.mark(index, [7, 3, 5], first=0)
    assert [index.is_computed(block, "drafter") for block in (7, 3, 5)] == [False, True, True]


def test_freed_blocks_are_not_marked() -> None:
    index = PrefixIndex()
    index.add(b"a", 7)
    make_progress(8).mark(index, [-1, 7], first=1)
    assert index.is_computed(7, "drafter")


@pytest.mark.parametrize(("computed", "num_copied"), [(12, 4), (8, 4), (7, 3), (4, 0), (2, 0)])
def test_a_block_is_copied_as_far_as_it_is_computed(computed: int, num_copied: int) -> None:
    progress = make_progress(computed)
    progress.copy_block(1, source=2, target=3)
    moves = progress.group.ops.moves  # type: ignore[attr-defined]
    assert moves == ([(list(range(8, 8 + num_copied)), list(range(12, 12 + num_copied)))] if num_copied else [])


def test_truncation_forgets_what_lies_behind() -> None:
    progress = make_progress(9, [1])
    progress.num_marked = 2
    progress.truncate(20)
    assert (progress.computed, progress.ahead, progress.num_marked) == (9, [], 2)
    progress.truncate(7)
    assert (progress.computed, progress.num_marked) == (7, 1)


def test_a_fork_goes_its_own_way() -> None:
    progress = make_progress(5)
    other = progress.fork()
    other.advance(5, [6], length=6)
    assert (progress.computed, other.computed) == (5, 6)
    with pytest.raises(AssertionError):
        make_progress(5, [6]).fork()
