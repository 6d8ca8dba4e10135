from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from outpace.cache.pool import FIRST_BLOCKS, BlockPool
from outpace.cache.prefix import PrefixIndex
from outpace.errors import UsageError
from outpace.types import KVSpec
from tests.unit.cache.tags import TagOps

SPEC = KVSpec(num_layers=1, num_kv_heads=1, head_width=1, block_size=2)


def make_pool(capacity: int) -> tuple[BlockPool, TagOps, PrefixIndex]:
    ops, index = TagOps(), PrefixIndex()
    return BlockPool(ops, SPEC, capacity, index), ops, index  # type: ignore[arg-type]


def test_the_lowest_free_ids_go_first() -> None:
    pool, _, _ = make_pool(8)
    assert pool.take(5) == [0, 1, 2, 3, 4]
    pool.release([3, 1])
    assert pool.take(3) == [1, 3, 5]
    pool.check([range(6)])


def test_storage_starts_small_doubles_as_needed_and_stops_at_capacity() -> None:
    pool, ops, _ = make_pool(3 * FIRST_BLOCKS)
    pool.take(FIRST_BLOCKS)
    assert ops.sizes == [FIRST_BLOCKS]
    pool.take(1)
    pool.take(FIRST_BLOCKS)
    assert ops.sizes == [FIRST_BLOCKS, 2 * FIRST_BLOCKS, 3 * FIRST_BLOCKS]
    assert pool.num_available == FIRST_BLOCKS - 1


def test_one_large_request_grows_storage_once() -> None:
    pool, ops, _ = make_pool(100 * FIRST_BLOCKS)
    pool.take(5 * FIRST_BLOCKS)
    assert ops.sizes == [FIRST_BLOCKS, 5 * FIRST_BLOCKS]


def test_growing_keeps_what_is_stored() -> None:
    pool, _, _ = make_pool(2 * FIRST_BLOCKS)
    pool.target.kv[0][5] = 99
    pool.take(FIRST_BLOCKS + 1)
    assert pool.target.kv[0][5] == 99


def test_nothing_changes_when_storage_cannot_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, ops, _ = make_pool(2 * FIRST_BLOCKS)
    taken = pool.take(3)

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ops, "kv_grow", no_memory)
    with pytest.raises(MemoryError):
        pool.take(FIRST_BLOCKS)
    pool.check([taken])
    assert pool.num_available == 2 * FIRST_BLOCKS - 3
    assert pool.take(1) == [3]


def test_storage_of_all_groups_grows_together_or_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _, _ = make_pool(4 * FIRST_BLOCKS)
    other = TagOps()
    pool.add_group("drafter", other, SPEC, None)  # type: ignore[arg-type]
    assert other.sizes == [FIRST_BLOCKS]
    taken = pool.take(3)

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(other, "kv_grow", no_memory)
        with pytest.raises(MemoryError):
            pool.take(3 * FIRST_BLOCKS)
    pool.check([taken])
    assert pool.num_available == 4 * FIRST_BLOCKS - 3
    taken += pool.take(FIRST_BLOCKS)  # less than what the first group has by now
    pool.check([taken])
    assert other.sizes[-1] == pool.size == 2 * FIRST_BLOCKS


def test_a_group_that_another_thread_adds_while_storage_grows_has_storage_for_every_block() -> None:
    pool, ops, _ = make_pool(4 * FIRST_BLOCKS)
    other = TagOps()
    adder = threading.Thread(target=lambda: pool.add_group("drafter", other, SPEC, None))  # type: ignore[arg-type]
    grow = ops.kv_grow

    def growing(kv: list[Any], num_blocks: int) -> None:
        adder.start()
        adder.join(0.1)  # without a lock it would be through by now, with the old size
        grow(kv, num_blocks)

    ops.kv_grow = growing  # type: ignore[method-assign]
    taken = pool.take(2 * FIRST_BLOCKS)
    adder.join()
    assert pool.groups["drafter"].num_blocks == pool.size == 2 * FIRST_BLOCKS
    pool.check([taken])


def test_a_group_that_cannot_be_allocated_is_not_added(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _, _ = make_pool(4)
    other = TagOps()

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(other, "kv_alloc", no_memory)
    with pytest.raises(MemoryError):
        pool.add_group("drafter", other, SPEC, None)  # type: ignore[arg-type]
    assert list(pool.groups) == ["target"]


def test_a_group_with_another_block_size_or_a_known_name_is_a_bug() -> None:
    pool, _, _ = make_pool(4)
    for name, spec in (("target", SPEC), ("drafter", replace(SPEC, block_size=4))):
        with pytest.raises(AssertionError):
            pool.add_group(name, TagOps(), spec, None)  # type: ignore[arg-type]


def test_a_block_that_the_index_finds_is_evicted_only_when_nothing_else_is_left() -> None:
    pool, _, index = make_pool(4)
    pool.take(2)
    index.add(b"a", 0)
    pool.release([0, 1])
    assert pool.num_available == 4
    assert pool.take(3) == [1, 2, 3]
    assert index.find(b"a") == 0
    assert pool.take(1) == [0]
    assert index.find(b"a") is None


def test_the_block_that_is_idle_for_the_longest_is_evicted_first() -> None:
    pool, _, index = make_pool(3)
    for block in pool.take(3):
        index.add(bytes([block]), block)
    pool.release([1, 0, 2])
    pool.hold(1)
    pool.release([1])  # used again: now the youngest
    assert [pool.take(1), pool.take(1), pool.take(1)] == [[0], [2], [1]]


def test_a_block_is_available_again_only_after_its_last_holder() -> None:
    pool, _, _ = make_pool(1)
    pool.take(1)
    pool.hold(0)
    pool.release([0])
    assert pool.num_available == 0
    pool.release([0])
    assert pool.num_available == 1


def test_a_cache_without_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 block"):
        make_pool(0)


def test_check_notices_a_lost_block() -> None:
    pool, _, _ = make_pool(4)
    pool.take(2)
    with pytest.raises(AssertionError):
        pool.check([[0]])
