from __future__ import annotations

import pytest

from outpace.cache import Cache
from outpace.errors import CacheError
from tests.unit.cache.tags import TagOps, add_group, extend, follow, has_computed, holds, make_cache, read, tag, write

TEXT = list(range(100, 140))


def test_a_path_through_a_draft_is_moved_into_place_in_one_call() -> None:
    cache, ops = make_cache()
    table = cache.open(TEXT[:3])
    extend(cache, table, TEXT[:3])
    table.reserve(6)
    write(cache, table, 3, [30, 31, 32, 33, 34, 35])
    table.commit([0, 2, 5], [7, 8, 9])
    assert read(cache, table, 3, 6) == [30, 32, 35]
    assert len(ops.moves) == 1
    cache.check()


def test_a_path_without_gaps_moves_nothing() -> None:
    cache, ops = make_cache()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:9])
    assert holds(cache, table, TEXT[:9])
    assert ops.moves == []


def test_a_rejected_draft_leaves_no_trace() -> None:
    cache, _ = make_cache()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:6])
    before = (table.blocks.copy(), table.length, cache.num_available)
    table.reserve(20)
    write(cache, table, 6, [0] * 20)
    table.commit([], [])
    assert (table.blocks, table.length, cache.num_available) == before
    assert holds(cache, table, TEXT[:6])
    assert cache.open(TEXT).length == 4, "only the committed full block can be found"
    cache.check()


def test_provisional_blocks_beyond_the_path_are_given_back() -> None:
    cache, _ = make_cache(8)
    table = cache.open(TEXT)
    table.reserve(32)
    assert cache.num_available == 0
    table.commit([0], TEXT[:1])
    assert (len(table.blocks), cache.num_available) == (1, 7)


def test_a_second_reservation_replaces_the_first() -> None:
    cache, _ = make_cache()
    table = cache.open(TEXT)
    table.reserve(20)
    table.reserve(2)
    cache.check()
    with pytest.raises(AssertionError):
        table.commit([2], [1])
    table.commit([1], [1])
    assert len(table.blocks) == 1


def test_a_path_must_ascend_within_the_reservation() -> None:
    cache, _ = make_cache()
    table = cache.open(TEXT)
    table.reserve(4)
    for path in ([1, 1], [1, 0], [-1], [4], [0, 0, 2]):
        with pytest.raises(AssertionError):
            table.commit(path, [0] * len(path))


def test_without_room_nothing_changes() -> None:
    cache, _ = make_cache(2)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:5])
    with pytest.raises(CacheError, match="no room for 4 more tokens after 5: they need 1 more blocks"):
        table.reserve(4)
    assert (len(table.blocks), table.length, cache.num_available) == (2, 5, 0)
    cache.check()
    table.reserve(3)


def test_blocks_for_says_what_reserve_takes() -> None:
    cache, _ = make_cache()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:5])
    assert [table.blocks_for(n) for n in (1, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]
    other = table.fork()
    assert [table.blocks_for(n) for n in (1, 4)] == [1, 2]
    other.close()
    assert table.blocks_for(1) == 0


# -- sharing -----------------------------------------------------------------------------------------


def test_an_equal_beginning_is_found_in_whole_blocks() -> None:
    cache, _ = make_cache()
    first = cache.open(TEXT)
    extend(cache, first, TEXT[:11])
    second = cache.open(TEXT)
    assert second.length == 8
    assert second.blocks == first.blocks[:2]
    assert holds(cache, second, TEXT[:8])
    assert cache.open([*TEXT[:6], 0, 0, 0]).length == 4
    cache.check()


def test_a_block_is_found_as_soon_as_its_last_token_is_committed() -> None:
    cache, _ = make_cache()
    table = cache.open(TEXT)
    for length in range(1, 20):
        extend(cache, table, TEXT[:length])
        again = cache.open(TEXT)
        assert again.length == length // 4 * 4
        again.close()
        cache.check()


def test_the_last_token_always_stays_pending() -> None:
    cache, _ = make_cache()
    extend(cache, cache.open(TEXT), TEXT[:8])
    assert cache.open(TEXT[:8]).length == 4
    assert cache.open(TEXT[:9]).length == 8


def test_what_is_written_but_not_committed_is_never_found() -> None:
    cache, _ = make_cache()
    table = cache.open(TEXT)
    table.reserve(8)
    write(cache, table, 0, [tag(TEXT[: i + 1]) for i in range(8)])
    assert cache.open(TEXT).length == 0
    table.commit(range(8), TEXT[:8])
    assert cache.open(TEXT).length == 8


def test_a_closed_text_is_found_until_its_room_is_needed() -> None:
    cache, _ = make_cache(4)
    first = cache.open(TEXT)
    extend(cache, first, TEXT[:16])
    first.close()
    assert cache.num_available == 4
    again = cache.open(TEXT)
    assert again.length == 16
    again.close()
    other = cache.open([1])
    other.reserve(8)
    assert cache.open(TEXT).length == 8, "the end of a text is evicted before its beginning"


def test_equal_texts_computed_side_by_side_end_up_in_one_block() -> None:
    cache, _ = make_cache()
    first, second = cache.open(TEXT), cache.open(TEXT)
    for table in (first, second):
        extend(cache, table, TEXT[:6])
    assert first.blocks[0] == second.blocks[0]
    assert first.blocks[1] != second.blocks[1]
    assert cache.num_available == 64 - 3
    assert holds(cache, second, TEXT[:6])
    cache.check()


# -- forks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parent_writes_first", [False, True])
def test_whoever_writes_into_a_forks_partly_used_block_first_copies_it(parent_writes_first: bool) -> None:
    cache, _ = make_cache()
    first = cache.open(TEXT)
    extend(cache, first, TEXT[:6])
    second = first.fork()
    assert second.blocks == first.blocks
    if parent_writes_first:
        extend(cache, first, [*TEXT[:6], 2])
        cache.check()
    extend(cache, second, [*TEXT[:6], 1])
    if not parent_writes_first:
        extend(cache, first, [*TEXT[:6], 2])
    assert holds(cache, second, [*TEXT[:6], 1])
    assert holds(cache, first, [*TEXT[:6], 2])
    assert first.blocks[0] == second.blocks[0]
    assert cache.num_available == 64 - 3
    cache.check()


def test_the_last_holder_of_a_block_writes_in_place() -> None:
    cache, ops = make_cache()
    first = cache.open(TEXT)
    extend(cache, first, TEXT[:6])
    first.fork().close()
    extend(cache, first, TEXT[:7])
    assert ops.moves == []


def test_a_fork_that_cannot_copy_is_refused() -> None:
    cache, _ = make_cache(2)
    first = cache.open(TEXT)
    extend(cache, first, TEXT[:6])
    second = first.fork()
    with pytest.raises(CacheError):
        second.reserve(1)
    first.close()
    second.reserve(1)
    cache.check()


# -- truncation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 4, 6, 8, 9])
def test_a_truncated_text_goes_on_differently(length: int) -> None:
    cache, _ = make_cache()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:9])
    assert table.truncate(length) == length
    cache.check()
    text = [*TEXT[:length], *range(10)]
    extend(cache, table, text)
    assert holds(cache, table, text)
    assert cache.open(TEXT[:9]).length == 8, "what was remembered stays remembered: the block was copied"
    cache.check()


def test_truncation_forgets_provisional_slots() -> None:
    cache, _ = make_cache()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:4])
    table.reserve(20)
    assert table.truncate(4) == 4
    assert len(table.blocks) == 1
    with pytest.raises(AssertionError):
        table.commit([0], [1])


def test_a_full_cache_lets_its_only_text_be_rewritten() -> None:
    cache, _ = make_cache(2)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:8])
    table.truncate(6)
    text = [*TEXT[:6], 1, 2]
    extend(cache, table, text)  # no block for a copy: the index forgets the old ending
    assert holds(cache, table, text)
    cache.check()
    table.close()
    assert cache.open(TEXT[:9]).length == 4
    assert cache.open([*text, 3]).length == 8


# -- sliding windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("max_window", [1, 2, 4, 5, 9])
def test_exactly_the_blocks_below_the_window_are_freed(max_window: int) -> None:
    cache, _ = make_cache(max_window=max_window, share_prefixes=False)
    table = cache.open(TEXT)
    for length in range(1, 40):
        extend(cache, table, TEXT[:length])
        # the token at position `length` sees positions > length - max_window
        needed = [any(p > length - max_window for p in range(b, min(b + 4, length))) for b in range(0, length, 4)]
        partly_used = length % 4 > 0
        kept = [block >= 0 for block in table.blocks]
        assert kept[: length // 4] == needed[: length // 4]
        assert not partly_used or kept[-1]
        assert holds(cache, table, TEXT[:length])
        cache.check()


def test_a_draft_frees_nothing_that_the_text_still_needs_if_it_is_rejected() -> None:
    cache, _ = make_cache(max_window=6)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:8])
    kept = table.blocks.copy()
    table.reserve(16)
    assert table.blocks[:2] == kept
    table.commit([], [])
    assert table.blocks == kept == [0, 1]
    assert holds(cache, table, TEXT[:8])


def test_a_window_holds_a_bounded_number_of_blocks() -> None:
    cache, _ = make_cache(5, max_window=8)
    table = cache.open(TEXT)
    for length in range(1, 40):
        extend(cache, table, TEXT[:length])
        assert 5 - cache.num_available <= 3
    cache.check()


def test_truncation_within_the_window_keeps_the_text() -> None:
    cache, _ = make_cache(max_window=6, share_prefixes=False)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:16])
    assert table.truncate(15) == 15
    extend(cache, table, [*TEXT[:15], 1, 2])
    assert holds(cache, table, [*TEXT[:15], 1, 2])
    cache.check()


def test_truncation_behind_the_window_keeps_what_the_index_still_finds() -> None:
    cache, _ = make_cache(max_window=6)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:30])
    assert table.truncate(11) == 8
    assert holds(cache, table, TEXT[:8])
    extend(cache, table, [*TEXT[:8], 1, 2, 3])
    cache.check()


def test_truncation_behind_the_window_keeps_nothing_without_an_index() -> None:
    cache, _ = make_cache(max_window=6, share_prefixes=False)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:30])
    assert table.truncate(11) == 0
    assert (table.blocks, cache.num_available) == ([], 64)
    extend(cache, table, TEXT[:11])
    assert holds(cache, table, TEXT[:11])


def test_a_windowed_text_is_found_by_the_blocks_that_its_window_needs() -> None:
    cache, _ = make_cache(8, max_window=6)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:32])
    table.close()
    other = cache.open([1])
    other.reserve(12)  # evicts the blocks that left the window first
    again = cache.open(TEXT)
    assert again.length == 32
    assert [block >= 0 for block in again.blocks] == [False] * 6 + [True] * 2
    assert holds(cache, again, TEXT[:32])
    cache.check()


def test_a_window_of_one_token_does_not_make_unknown_text_known() -> None:
    cache, _ = make_cache(max_window=1)
    extend(cache, cache.open(TEXT), TEXT[:8])
    assert cache.open([*TEXT[:8], 1, 2, 3, 4, 5]).length == 8


# -- further groups of layers ------------------------------------------------------------------------


def with_group(capacity: int = 64, max_window: int | None = None) -> tuple[Cache, TagOps]:
    cache, _ = make_cache(capacity, max_window=max_window)
    return cache, add_group(cache, max_window=max_window)


def test_a_group_catches_up_and_its_progress_is_found_block_by_block() -> None:
    cache, _ = with_group()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:14])
    assert table.computed("drafter") == 0
    follow(cache, table, "drafter", TEXT[:10])
    assert table.computed("drafter") == 10
    assert has_computed(cache, table, "drafter", TEXT)
    again = cache.open(TEXT)
    assert again.length == 12
    assert again.computed("drafter") == 8, "whole blocks only"
    assert has_computed(cache, again, "drafter", TEXT)
    cache.check()


@pytest.mark.parametrize(
    ("path", "tokens", "computed"),
    [([0, 1, 2, 3], [7, 8, 9, 6], 10), ([0, 1, 2], [7, 8, 9], 9), ([0, 1, 3], [7, 8, 6], 8), ([0, 3], [7, 6], 7),
     ([2], [9], 6), ([], [], 6)],
)  # fmt: skip
def test_guesses_count_as_far_as_they_are_committed_at_their_position(path, tokens, computed) -> None:
    cache, ops = with_group()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:6])
    table.reserve(4)
    follow(cache, table, "drafter", [*TEXT[:6], 7, 8])
    follow(cache, table, "drafter", [*TEXT[:6], 7, 8, 9, 6], start=8)
    table.reserve(4)  # as the target's own pass does
    table.commit(path, tokens)
    assert table.computed("drafter") == computed
    assert has_computed(cache, table, "drafter", [*TEXT[:6], *tokens])
    assert ops.moves == [], "the target's compaction does not touch other groups"
    cache.check()


def test_a_smaller_second_reservation_keeps_what_a_group_wrote_ahead() -> None:
    cache, _ = with_group()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:6])
    table.reserve(20)
    blocks = table.blocks.copy()
    follow(cache, table, "drafter", TEXT[:20])
    table.reserve(5)
    assert table.blocks == blocks
    cache.check()
    write(cache, table, 6, [tag(TEXT[: i + 1]) for i in range(6, 11)])
    table.commit(range(5), TEXT[6:11])
    assert table.computed("drafter") == 11
    assert has_computed(cache, table, "drafter", TEXT)


def test_guesses_of_a_draft_that_was_never_committed_are_replaced() -> None:
    cache, _ = with_group()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:6])
    table.reserve(4)
    follow(cache, table, "drafter", [*TEXT[:6], 1, 2, 3])
    follow(cache, table, "drafter", [*TEXT[:6], 1, 9], start=6)
    table.commit(range(3), [1, 2, 3])
    assert table.computed("drafter") == 7
    assert has_computed(cache, table, "drafter", [*TEXT[:6], 1, 2, 3])


def test_a_group_may_not_leave_gaps_contradict_the_sequence_or_leave_the_reservation() -> None:
    cache, _ = with_group()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:6])
    for start, tokens in ((1, TEXT[1:3]), (0, [1]), (0, TEXT[:7])):
        with pytest.raises(AssertionError):
            table.advance("drafter", start, tokens)
    with pytest.raises(AssertionError):
        table.computed("target")


@pytest.mark.parametrize("length", [0, 3, 4, 9, 10, 14])
def test_truncation_cuts_a_groups_progress_and_a_copied_tail_keeps_it(length: int) -> None:
    cache, _ = with_group()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:14])
    follow(cache, table, "drafter", TEXT[:10])
    table.truncate(length)
    assert table.computed("drafter") == min(10, length)
    tokens = [*TEXT[:length], *range(10)]
    extend(cache, table, tokens)
    assert table.computed("drafter") == min(10, length)
    assert has_computed(cache, table, "drafter", tokens)
    cache.check()


def test_a_fork_has_its_parents_progress_and_goes_its_own_way() -> None:
    cache, _ = with_group()
    first = cache.open(TEXT)
    extend(cache, first, TEXT[:6])
    follow(cache, first, "drafter", TEXT[:6])
    second = first.fork()
    for table, token in ((first, 1), (second, 2)):
        table.reserve(1)
        follow(cache, table, "drafter", [*TEXT[:6], token])
        write(cache, table, 6, [tag([*TEXT[:6], token])])
    first.commit([0], [1])
    second.commit([0], [2])
    assert (first.computed("drafter"), second.computed("drafter")) == (7, 7)
    assert has_computed(cache, first, "drafter", [*TEXT[:6], 1])
    assert has_computed(cache, second, "drafter", [*TEXT[:6], 2])
    assert first.blocks[0] == second.blocks[0]


def test_a_fork_finds_what_its_sibling_computes_of_their_common_blocks() -> None:
    cache, _ = with_group()
    first = cache.open(TEXT)
    extend(cache, first, TEXT[:14])
    second = first.fork()
    follow(cache, first, "drafter", TEXT[:14])
    assert second.computed("drafter") == 12
    follow(cache, second, "drafter", TEXT[:14])  # writes into the last block that both have: what is there already
    assert has_computed(cache, first, "drafter", TEXT)
    cache.check()


@pytest.mark.parametrize("first_computed", [0, 3, 4, 6])
@pytest.mark.parametrize("second_computed", [0, 3, 4, 6])
def test_a_block_that_is_exchanged_for_its_duplicate_costs_no_progress(first_computed, second_computed) -> None:
    cache, ops = with_group()
    first, second = cache.open(TEXT), cache.open(TEXT)
    for table, computed in ((first, first_computed), (second, second_computed)):
        table.reserve(6)
        write(cache, table, 0, [tag(TEXT[: i + 1]) for i in range(6)])
        follow(cache, table, "drafter", TEXT[:computed])
        table.commit(range(6), TEXT[:6])
    assert first.blocks[0] == second.blocks[0]
    whole = 4 if max(first_computed, second_computed) >= 4 else 0
    assert first.computed("drafter") == max(first_computed, whole)
    assert second.computed("drafter") == max(second_computed, whole)
    num_copied = sum(len(sources) for sources, _ in ops.moves)
    assert num_copied == (0 if first_computed >= 4 else min(second_computed, 4)), "nothing is copied that is there"
    for table in (first, second):
        assert has_computed(cache, table, "drafter", TEXT)
    cache.check()


def test_wrong_guesses_never_reach_a_shared_block() -> None:
    cache, _ = with_group()
    first, second = cache.open(TEXT), cache.open(TEXT)
    extend(cache, first, TEXT[:4])
    follow(cache, first, "drafter", TEXT[:3])
    second.reserve(4)
    follow(cache, second, "drafter", [TEXT[0], 1, 2, 3])
    write(cache, second, 0, [tag(TEXT[: i + 1]) for i in range(4)])
    second.commit(range(4), TEXT[:4])
    assert first.blocks == second.blocks
    assert (first.computed("drafter"), second.computed("drafter")) == (3, 1)
    assert has_computed(cache, first, "drafter", TEXT)
    assert has_computed(cache, second, "drafter", TEXT)


def test_what_a_group_computed_of_an_evicted_block_is_forgotten() -> None:
    cache, _ = with_group(3)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:8])
    follow(cache, table, "drafter", TEXT[:8])
    table.close()
    other = cache.open([1])
    extend(cache, other, [1] * 9)
    other.close()
    table = cache.open(TEXT[:5])
    extend(cache, table, TEXT[:5])
    assert table.computed("drafter") == 0
    cache.check()


# -- further groups and sliding windows --------------------------------------------------------------


def test_blocks_stay_while_a_group_that_lags_needs_them_and_then_go() -> None:
    cache, _ = with_group(max_window=6)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:8])
    follow(cache, table, "drafter", TEXT[:6])
    extend(cache, table, TEXT[:12])
    assert table.blocks[0] >= 0, "position 6 sees position 1"
    follow(cache, table, "drafter", TEXT[:12])
    extend(cache, table, TEXT[:14])
    assert [block >= 0 for block in table.blocks] == [False, True, True, True], "position 12 sees position 7"
    follow(cache, table, "drafter", TEXT[:14])
    extend(cache, table, TEXT[:15])
    assert [block >= 0 for block in table.blocks] == [False, False, True, True]
    assert table.computed("drafter") == 14
    assert has_computed(cache, table, "drafter", TEXT)
    cache.check()


def test_truncation_behind_the_window_takes_a_groups_progress_along() -> None:
    cache, _ = with_group(max_window=6)
    table = cache.open(TEXT)
    for end in range(1, 31):
        extend(cache, table, TEXT[:end])
        follow(cache, table, "drafter", TEXT[:end])
    assert table.truncate(11) == 8
    assert table.computed("drafter") == 8
    tokens = [*TEXT[:8], *range(4)]
    extend(cache, table, tokens)
    assert table.computed("drafter") == 8
    assert has_computed(cache, table, "drafter", tokens)
    cache.check()


def test_a_group_that_lags_by_more_than_a_window_is_not_waited_for() -> None:
    cache, _ = with_group(max_window=6)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:4])
    follow(cache, table, "drafter", TEXT[:4])
    assert table.can_hold("drafter")
    extend(cache, table, TEXT[:30])
    assert not table.can_hold("drafter")
    assert table.computed("drafter") == 0
    assert sum(block >= 0 for block in table.blocks) <= 4
    with pytest.raises(AssertionError):
        table.advance("drafter", 0, [])
    cache.check()


def test_a_group_that_was_lost_is_back_when_another_table_has_computed_the_window() -> None:
    cache, _ = with_group(max_window=6)
    first, second = cache.open(TEXT), cache.open(TEXT)
    assert second.computed("drafter") == 0
    for end in range(1, 17):
        extend(cache, first, TEXT[:end])
        follow(cache, first, "drafter", TEXT[:end])
    extend(cache, second, TEXT[:16])
    assert second.blocks[:2] == [-1, 1], "it lags, but not for ever"
    assert second.blocks[2:] == first.blocks[2:]
    assert second.can_hold("drafter")
    assert second.computed("drafter") == 16
    assert has_computed(cache, second, "drafter", TEXT)
    cache.check()


def test_an_open_table_keeps_its_window_when_a_group_with_a_larger_one_is_added() -> None:
    cache, _ = make_cache(max_window=6)
    old = cache.open(TEXT)
    add_group(cache, max_window=None)
    new = cache.open(TEXT)
    assert (old.max_window, new.max_window, cache.max_window) == (6, None, None)
    assert not old.can_hold("drafter")
    for table in (old, new):
        extend(cache, table, TEXT[:30])
    assert old.blocks[0] < 0
    assert new.blocks[0] >= 0
    assert new.can_hold("drafter")
    cache.check()


# -- the end -----------------------------------------------------------------------------------------


def test_closing_twice_is_fine_and_a_closed_table_is_unusable() -> None:
    cache, _ = make_cache()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:6])
    table.close()
    table.close()
    assert cache.num_available == 64
    cache.check()
    for use in (lambda: table.reserve(1), lambda: table.commit([], []), lambda: table.truncate(0), table.fork):
        with pytest.raises(AssertionError):
            use()


def test_closing_with_provisional_slots_gives_everything_back() -> None:
    cache, _ = make_cache()
    table = cache.open(TEXT)
    table.reserve(30)
    table.close()
    assert cache.num_available == 64
    assert cache.open(TEXT).length == 0
    cache.check()
